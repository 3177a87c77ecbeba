"""`ddistill new NAME [--images=FOLDER]`: writes a config file for your own images."""

import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path

from ddistill import recipes
from ddistill.command_line import Parser, one_line_ending
from ddistill.config_names import shipped_configs
from ddistill.errors import ConfigError
from ddistill.runtime.files import expand
from ddistill.text import printable

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,99}")
# The folder in a config that is written without --images.
_NO_FOLDER = "images"

TEMPLATE = '''\
"""{name}: a diffusion teacher of the images in a folder, and students of few steps.

    {program} train {name}:smoke     trains for seconds, to show that everything fits together
    {program} train {name}           trains, samples, scores and writes runs/{name}/report.html

The same command resumes a stopped training. --config.KEY=VALUE changes any setting for one run,
such as --config.seed=1; --print_config prints all settings.
"""

from ddistill import recipes


def get_config(variant: str = ""):
    settings = recipes.own_images(
        {name!r},  # the run is kept in the folder runs/{name}
        # JPEG, PNG, ...: all in this folder, or with a sub-folder for each class.
        {folder!r},
        # Side in pixels, a multiple of 4. Larger images are scaled down and cropped to a square;
        # twice the side takes about four times as long.
        image_size=32,
        channels=3,  # 3 for colours, 1 for grey
        # Whether the networks are told the class of an image; None: if there are sub-folders.
        conditional=None,
        # "sfddm": each student learns from the teacher. "pd": a chain that halves the steps.
        # "o2mkd": four students of half the width, each for a range of noise levels.
        method="sfddm",
        steps=None,  # sampler steps of the students, such as (4, 2, 1); None: those of the method
        # "small" for a CPU, "base" for one GPU, "large" for a fast GPU or TPU.
        size="small",
        updates=0,  # of the teacher; 0: those of the size
        # Whether training mirrors images at random: True for faces or landscapes, not for letters.
        flip=False,
        seed=0,
    )
    return recipes.own_images_config(settings, variant)
'''


@one_line_ending()
def main(argv: Sequence[str] | None = None, program: str = "ddistill new") -> None:
    """Entry point of the command line; exit status 1 with a message where nothing is written."""
    parser = Parser(program, "Writes NAME.py, a config file for your own images, into this folder.")
    parser.add_argument("name", metavar="NAME", help="of the experiment")
    parser.add_argument(
        "--images", metavar="FOLDER", default="", help="the images; a sub-folder for each class"
    )
    options = parser.parse_all(argv)
    start = program.removesuffix(" new")
    path = new(options.name, options.images, start)
    print(printable(f"{path}: written. Read it, then try it: {start} train {options.name}:smoke"))
    if not options.images:
        print(f"It reads the folder '{_NO_FOLDER}' beside it; change that, or put images there.")


def new(name: str, images: str = "", program: str = "ddistill") -> Path:
    """Writes a config file into the current folder.

    Args:
      name: of the experiment and, with `.py`, of the file.
      images: a folder of images, which is listed and checked first; "" for a folder `images` that
        need not exist yet.
      program: the command in the comments of the file.

    Raises:
      ConfigError: the name cannot be used, the file exists, or there are too few images.
      DataError: the folder cannot be read as images.
    """
    _check_name(name)
    path = Path(f"{name}.py")
    if path.exists() or path.is_symlink():
        raise ConfigError(f"{path} exists, and nothing is overwritten. Choose another name.")
    if name.isidentifier() and _is_module(name):
        raise ConfigError(f"{path} would hide the Python module '{name}'. Choose another name.")
    if images:
        if not expand(images).is_dir():
            raise ConfigError(f"--images={images} is not a folder.")
        recipes.own_images(name, images)
    text = TEMPLATE.format(name=name, folder=images or _NO_FOLDER, program=program)
    # A path that is not UTF-8 is written with the escapes that Python reads back.
    with path.open("x", encoding="utf-8", errors="backslashreplace") as file:
        file.write(text)
    return path


def _is_module(name: str) -> bool:
    """Whether a module has the name; a folder of images here is none, though `-m` finds it."""
    found = importlib.util.find_spec(name)
    if found is None or found.origin is not None:
        return found is not None
    here = Path(name).resolve()
    return any(Path(place).resolve() != here for place in found.submodule_search_locations or ())


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        close = re.sub(r"[^A-Za-z0-9_-]+", "_", name.removesuffix(".py")).strip("_-")
        hint = f" Did you mean '{close}'?" if _NAME.fullmatch(close) else ""
        raise ConfigError(
            f"NAME={name!r} must begin with a letter and have letters, digits, '_' and '-' alone; "
            f"'.py' is added.{hint}"
        )
    if name in shipped_configs():
        raise ConfigError(f"NAME={name}: ddistill has a config of that name. Choose another name.")
