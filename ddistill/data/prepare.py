"""Prepares a TFDS image set for reading: `python -m ddistill.data.prepare NAME [--data_dir=DIR]`.

Downloads NAME and writes it as array_record, which is read without TensorFlow ever after. Making
it needs the extra `prepare`. A set that is already there as tfrecord is converted, without download
and without TensorFlow.
"""

import importlib.util
import os
import shutil
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

from ddistill.command_line import Parser, one_line_ending
from ddistill.data.tfds_files import FORMAT, INFO, Prepared, check_shards, data_folder, find
from ddistill.errors import DataError
from ddistill.runtime.files import write_json
from ddistill.text import printable

EXTRA = ("tensorflow", "importlib_resources")


@one_line_ending()
def main(
    argv: Sequence[str] | None = None, program: str = "python -m ddistill.data.prepare"
) -> None:
    """Prepares the set named on the command line; a message and exit status 1 where it cannot."""
    parser = Parser(program, (__doc__ or "").split("\n\n")[1])
    parser.add_argument(
        "name", metavar="NAME", help="a TFDS set, such as cifar10 or name/config, or its folder"
    )
    parser.add_argument(
        "--data_dir",
        default="",
        help="where prepared sets lie (default: $TFDS_DATA_DIR or ~/tensorflow_datasets)",
    )
    given = parser.parse_all(argv)
    found = prepare(given.name, given.data_dir)
    counts = ", ".join(f"{n} {split}" for split, n in found.splits.items())
    print(printable(f"{found.title} is ready in {found.folder}: {counts} examples."))
    where = f" and data.data_dir='{given.data_dir}'" if given.data_dir else ""
    print(printable(f"Use it with data.name='tfds', data.path='{given.name}'{where}."))


def prepare(name: str, data_dir: str = "") -> Prepared:
    """Makes sure that a set is there as array_record.

    Args:
      name: name of a TFDS set, or the folder of one that is there in another format.
      data_dir: where prepared sets lie; see `ddistill.data.tfds_files.data_folder`.

    Raises:
      DataError: the extra is missing, the set is not known, or it cannot be made.
    """
    try:
        found = find(name, data_dir)
    except DataError:
        if _is_folder(name):
            raise
        _download(name, data_folder(data_dir))
        return find(name, data_dir)
    if found.format != FORMAT:
        convert(found)
    return find(name, data_dir)


def convert(found: Prepared) -> None:
    """Writes an array_record copy of a tfrecord set, in a folder inside that of the set.

    The records of both formats are the same bytes. The set itself stays as it is, because TFDS
    opens a folder in its first format only.

    Raises:
      DataError: the set is in another format, or a shard is missing or damaged.
    """
    if found.format != "tfrecord":
        raise DataError(
            f"{found.folder} is stored as {found.format}, which is not converted here. "
            "Prepare the set again in another folder: --data_dir=FOLDER."
        )
    check_shards(found, "tfrecord")
    partial = found.folder / f"incomplete.{FORMAT}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    copy = Prepared(partial, {**found.info, "fileFormat": FORMAT})
    for path in found.folder.iterdir():
        if path.suffix in (".json", ".txt"):
            shutil.copy(path, partial)
    for split in found.info["splits"]:
        for index, count in enumerate(split["shardLengths"]):
            source = found.shard(split, index, "tfrecord")
            _convert_shard(source, copy.shard(split, index, FORMAT), int(count))
    write_json(partial / INFO, copy.info)
    partial.rename(found.folder / FORMAT)


def read_tfrecord(path: Path) -> Iterator[bytes]:
    """The records of a tfrecord file: length, its checksum, that many bytes, their checksum.

    The checksums are not looked at; the number of records is, by the caller.

    Raises:
      DataError: the file ends inside a record.
    """
    with path.open("rb") as file:
        while header := file.read(12):
            length = struct.unpack("<Q", header[:8])[0] if len(header) == 12 else -1
            body = file.read(length + 4) if 0 <= length < 2**40 else b""
            if len(body) != length + 4:
                raise DataError(f"{path} is cut off or damaged.")
            yield body[:-4]


def _convert_shard(source: Path, target: Path, count: int) -> None:
    from array_record.python import array_record_module

    # One record a group, so that single records are read without their neighbours.
    writer = array_record_module.ArrayRecordWriter(str(target), "group_size:1")
    written = 0
    try:
        for record in read_tfrecord(source):
            writer.write(record)
            written += 1
    finally:
        writer.close()
    if written != count:
        raise DataError(f"{source} holds {written} records, {count} should be there.")


def _download(name: str, root: Path) -> None:
    """Lets TFDS download and write a set.

    Raises:
      DataError: the extra is missing, the set is unknown to TFDS, or TFDS cannot make it.
    """
    absent = [m for m in EXTRA if importlib.util.find_spec(m) is None]
    if absent:
        raise DataError(
            f"Preparing '{name}' needs {' and '.join(absent)}. Install the extra 'prepare': "
            "pip install -e '.[prepare]' in ddistill's folder. (Only preparing needs it; reading "
            "does not.)"
        )
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=root, file_format=FORMAT)
    # An unknown config is a ValueError, missing modules of a set are an ImportError, ...
    except Exception as error:
        raise DataError(f"TFDS does not open '{name}': {_first_line(error)}") from error
    try:
        builder.download_and_prepare()
    # Downloads, archives and the set's own code fail in ways that cannot be listed.
    except Exception as error:
        raise DataError(
            f"'{name}' could not be prepared in {root}: {type(error).__name__}: "
            f"{_first_line(error)} What was downloaded is kept in {root / 'downloads'}; the same "
            "command goes on from there."
        ) from error


def _is_folder(name: str) -> bool:
    return Path(name).is_absolute() or name.startswith((".", "~"))


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return text if text.endswith(".") else f"{text}."


if __name__ == "__main__":
    main()
