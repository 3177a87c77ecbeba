"""The columns of parquet files that are read as image, class and texts.

`datasets` writes an image as {"bytes": ..., "path": ...} and notes in the schema which columns are
images and classes, with the names of the classes.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from ddistill.data.columns import NO_LABELS, check_column
from ddistill.errors import DataError
from ddistill.text import printable

# pyarrow has no type information, and is imported only where parquet is read.
Schema: TypeAlias = Any
DataType: TypeAlias = Any

_IMAGE, _LABEL = ("image", "img"), "label"


@dataclass(frozen=True)
class Columns:
    """Columns of a set.

    Attributes:
      image: the column with the images.
      label: the column with the classes; "" for none.
      classes: names of the classes by number, as the schema declares them; () where the values of
        the column are the classes.
      texts: the columns of texts.
    """

    image: str
    label: str
    classes: tuple[str, ...]
    texts: tuple[str, ...]


def choose_columns(schema: Schema, image_column: str, label_column: str, title: str) -> Columns:
    """The columns to read.

    Args:
      schema: of a file.
      image_column, label_column: see `ParquetSettings`.
      title: the file in messages.

    Raises:
      ConfigError: a setting names no column.
      DataError: there is no column of images, or it is not clear which column is meant.
    """
    from pyarrow import types

    declared = _declared(schema, title)
    image = _image(schema, declared, image_column, title)
    label = _label(schema, declared, label_column, title)
    names = declared.get(label, {}).get("names") if label else None
    if names is not None and not (
        isinstance(names, list) and names and all(isinstance(name, str) for name in names)
    ):
        raise DataError(f"{title}: the schema's names of the classes of '{label}' are no texts.")
    texts = [
        field.name
        for field in schema
        if field.name not in (image, label) and _is_text(types, field.type)
    ]
    return Columns(image, label, tuple(names or ()), tuple(texts))


def _declared(schema: Schema, title: str) -> dict[str, Mapping[str, Any]]:
    """By column, the feature that `datasets` has noted in the schema."""
    raw = (schema.metadata or {}).get(b"huggingface")
    if raw is None:
        return {}
    try:
        features = json.loads(raw)["info"]["features"]
        return {n: f for n, f in features.items() if n in schema.names and isinstance(f, Mapping)}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise DataError(
            f"{title}: the features that the schema notes for 'huggingface' cannot be read. Write "
            "the file again with datasets, or with pyarrow and without schema metadata."
        ) from None


def _image(schema: Schema, declared: Mapping[str, Mapping], given: str, title: str) -> str:
    from pyarrow import types

    typed = [field.name for field in schema if _is_image(types, field.type)]
    if given:
        check_column("data.image_column", given, typed, f"images of {title}")
        return given
    found = [name for name in typed if declared.get(name, {}).get("_type") == "Image"] or typed
    usual = [name for name in _IMAGE if name in found]
    if usual or len(found) == 1:
        return (usual or found)[0]
    if not found:
        raise DataError(
            f"{title} has no column of encoded images, bytes or {{bytes, path}}; its columns: "
            f"{', '.join(map(printable, schema.names)) or 'none'}."
        )
    raise DataError(
        f"{title} has the image columns {', '.join(map(printable, found))}. Set data.image_column "
        "to one of them."
    )


def _label(schema: Schema, declared: Mapping[str, Mapping], given: str, title: str) -> str:
    if given == NO_LABELS:
        return ""
    if given:
        check_column("data.label_column", given, schema.names, title)
        return given
    if _LABEL in schema.names:
        return _LABEL
    found = [name for name, f in declared.items() if f.get("_type") == "ClassLabel"]
    if len(found) > 1:
        raise DataError(
            f"{title} has the columns of classes {', '.join(map(printable, found))}. Set "
            f"data.label_column to one of them, or to '{NO_LABELS}'."
        )
    return found[0] if found else ""


def _is_image(types: Any, kind: DataType) -> bool:
    if types.is_struct(kind):
        fields = {kind.field(i).name: kind.field(i).type for i in range(kind.num_fields)}
        return "bytes" in fields and _is_image(types, fields["bytes"])
    return types.is_binary(kind) or types.is_large_binary(kind)


def _is_text(types: Any, kind: DataType) -> bool:
    return types.is_string(kind) or types.is_large_string(kind)
