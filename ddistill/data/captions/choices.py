"""How the captions of a source are chosen: where they are, and which of several an image gets."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from ddistill.errors import ConfigError, check_choice

# Where the captions of a folder are.
PLACES = ("auto", "metadata", "txt", "template")
PER_IMAGE = ("one", "all")
MARKUPS = ("keep", "strip")


@dataclass(frozen=True)
class Choices:
    """The choices of a reader of captions.

    Attributes:
      captions: one of `PLACES`, for folders. "auto" takes tables of metadata where there are any,
        then text files beside the images; class folders need a template.
      column: of the captions in tables; "" for the first of `COLUMNS` that there is.
      template: the caption of class folders, with {} for the name of the class.
      per_image: "one" takes one of several captions of an image, chosen by the hash of `seed` and
        the name of the image; "all" makes a row of each.
      markup: "keep" leaves HTML in captions as it is, "strip" leaves the text of it.
      seed: of the choice among captions.
    """

    captions: str = "auto"
    column: str = ""
    template: str = ""
    per_image: str = "one"
    markup: str = "keep"
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("captions", self.captions, PLACES)
        check_choice("per_image", self.per_image, PER_IMAGE)
        check_choice("markup", self.markup, MARKUPS)
        if self.template and self.template.count("{}") != 1:
            raise ConfigError(
                f"template={self.template!r} cannot be: it needs {{}} once, in the place of the "
                "name of the class, as in 'a photo of a {}'."
            )

    def among(self, captions: Sequence[str], name: str) -> Sequence[str]:
        """The captions of an image that are used; the choice does not depend on other images."""
        if self.per_image == "all" or len(captions) < 2:
            return captions
        text = f"{self.seed}\0{name}"
        raw = hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()
        return [captions[int.from_bytes(raw[:8], "big") % len(captions)]]


# Names of columns of captions in tables, the usual ones first.
COLUMNS = ("text", "caption", "prompt", "captions", "description")
