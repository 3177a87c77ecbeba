"""Captions in the annotations of COCO (captions_train2014.json and its kind)."""

import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from ddistill.data.captions.choices import Choices
from ddistill.data.captions.rows import (
    DUPLICATE,
    IMAGE,
    MISSING,
    UNUSED,
    CaptionSource,
    Collector,
    Row,
)
from ddistill.data.names import text_of
from ddistill.errors import DataError
from ddistill.runtime.files import DamagedFile, read_object
from ddistill.runtime.schemas import OBJECT, Schema, list_of

_ANNOTATIONS = Schema({"images": list_of(OBJECT, 1), "annotations": list_of(OBJECT)})


def read_coco(annotations: Path, images: Path | None, choices: Choices) -> CaptionSource:
    """The captioned images of an annotation file, in the order of their ids.

    Args:
      annotations: {"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]};
        COCO has five to seven captions an image, see `Choices.per_image`.
      images: the folder of the images; None for the captions alone.
      choices: which of the captions of an image are used.

    Raises:
      DataError: the file is damaged or holds no captions, or no image of it is in the folder.
    """
    try:
        found = read_object(annotations, _ANNOTATIONS)
    except DamagedFile as error:
        raise DataError(f"{error}. Annotations of COCO with captions are needed.") from None
    except OSError as error:
        raise DataError(f"{annotations} cannot be read: {error.strerror}.") from error
    if images is not None and not images.is_dir():
        raise DataError(f"{images} is no folder with the images of {annotations}.")
    collector = Collector(choices.markup)
    names = _names(annotations, found["images"], collector)
    captions = _captions(annotations, found["annotations"], names, collector)
    for number in sorted(names):
        name = names[number]
        where = f"{annotations}, image {number} ({name})"
        if not captions[number]:
            collector.note(MISSING, where, "no annotation has a caption of it")
            continue
        row = Row(text_of(name), "")
        if images is not None:
            place = os.path.join(images, name)
            try:
                row = row._replace(place=place, size=os.stat(place).st_size)
            except OSError as error:
                collector.note(IMAGE, where, f"{place}: {error.strerror}")
                continue
        for caption in choices.among(captions[number], row.name):
            collector.add(where, row._replace(caption=caption))
    title = f"the annotations {annotations}"
    return collector.source("coco", title, _path if images is not None else None)


def _path(row: Row) -> str:
    return str(row.place)


def _names(path: Path, images: list[Mapping], collector: Collector) -> dict[int, str]:
    """By id the file of every image."""
    names: dict[int, str] = {}
    for i, image in enumerate(images):
        number, name = image.get("id"), image.get("file_name")
        where = f"{path}, entry {i} of images"
        if type(number) is not int or not isinstance(name, str) or not name:
            collector.note(UNUSED, where, "has no id and file_name")
        elif "\\" in name or PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            collector.note(UNUSED, where, f"{name!r} is no path below the folder of images")
        elif number in names:
            collector.note(DUPLICATE, where, f"the id {number} is that of {names[number]} too")
        else:
            names[number] = name
    return names


def _captions(
    path: Path, annotations: list[Mapping], names: Mapping[int, str], collector: Collector
) -> dict[int, list[str]]:
    """By id of an image its captions in the order of the file.

    Raises:
      DataError: no annotation has a caption, as in files of boxes.
    """
    if annotations and not any("caption" in annotation for annotation in annotations):
        raise DataError(
            f"{path} holds annotations without captions. Take the file with captions, such as "
            "captions_val2014.json instead of instances_val2014.json."
        )
    captions: dict[int, list[str]] = {number: [] for number in names}
    for i, annotation in enumerate(annotations):
        number, text = annotation.get("image_id"), annotation.get("caption")
        where = f"{path}, entry {i} of annotations"
        if number not in captions:
            collector.note(UNUSED, where, f"image_id {number!r} is no image of the file")
        elif not isinstance(text, str):
            collector.note(MISSING, where, "has no text as its caption")
        else:
            captions[number].append(text)
    return captions
