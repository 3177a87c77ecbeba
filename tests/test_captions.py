"""Captioned images of every layout: the same rows, and one line for everything that is not one."""

import io
import json
import tarfile

import numpy as np
import pytest
from pictures import picture, save
from PIL import Image

from ddistill.data.captions.choices import Choices
from ddistill.data.captions.sources import open_source
from ddistill.data.captions.texts import decode_text, has_markup, normalise, without_markup
from ddistill.data.decode import ImageSpec, decode
from ddistill.errors import ConfigError, DataError

CAPTIONS = {"a": "a red fox", "b": "two ships, at sea", "c": "café"}


def read(text, **choices):
    return open_source(str(text), Choices(**choices))


def lines(source):
    """Kind and reason of every problem, without the folder."""
    for problem in source.problems:
        assert "\n" not in problem.line
        assert problem.line.startswith(problem.where)
    return {(p.where.rpartition("/")[2], p.kind, p.kept) for p in source.problems}


def rows(source):
    return [(row.name.rpartition("/")[2].partition(".")[0], row.caption) for row in source.rows]


def pixels(source):
    return [decode(source.content(row), ImageSpec(0, 3)) for row in source.rows]


def images(root, names="abc"):
    for i, name in enumerate(names):
        save(root / f"{name}.png", picture(i))
    return root


def with_texts(root):
    for name, text in CAPTIONS.items():
        (root / f"{name}.txt").write_text(f"{text}\n", encoding="utf-8")
    return root


def jsonl(root, *values):
    text = "".join(json.dumps(value) + "\n" for value in values)
    (root / "metadata.jsonl").write_text(text, encoding="utf-8")
    return root


def coco(path, names, annotations):
    images = [{"id": 7 + i, "file_name": f"{name}.png"} for i, name in enumerate(names)]
    path.write_text(json.dumps({"images": images, "annotations": annotations}))
    return path


def tar(path, members):
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def png(seed):
    buffer = io.BytesIO()
    Image.fromarray(picture(seed)).save(buffer, "PNG")
    return buffer.getvalue()


def test_every_layout_gives_the_same_rows(tmp_path):
    texts = with_texts(images(tmp_path / "texts"))
    table = jsonl(
        images(tmp_path / "table"),
        *({"file_name": f"{n}.png", "text": text} for n, text in CAPTIONS.items()),
    )
    annotations = coco(
        tmp_path / "captions.json",
        "abc",
        [{"image_id": 7 + i, "caption": text} for i, text in enumerate(CAPTIONS.values())],
    )
    members = [
        (f"{name}{ending}", content)
        for i, (name, text) in enumerate(CAPTIONS.items())
        for ending, content in ((".png", png(i)), (".txt", text.encode()))
    ]
    archive = tar(tmp_path / "00000.tar", members)
    found = [
        read(texts),
        read(table),
        read(f"coco:{annotations}:{texts}"),
        read(archive),
        read(f"tars:{tmp_path}/*.tar"),
    ]
    for source in found:
        assert rows(source) == list(CAPTIONS.items())
        assert source.problems == ()
        for i, image in enumerate(pixels(source)):
            np.testing.assert_array_equal(image, picture(i))
    assert [s.kind for s in found] == ["txt", "metadata", "coco", "webdataset", "webdataset"]
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(CAPTIONS.values()), encoding="utf-8")
    for alone in (read(prompts), read(f"coco:{annotations}")):
        assert alone.content is None
        assert [row.caption for row in alone.rows] == list(CAPTIONS.values())


def test_a_digest_changes_with_captions_and_not_with_the_place(tmp_path):
    one, two = with_texts(images(tmp_path / "one")), with_texts(images(tmp_path / "two"))
    assert read(one).digest == read(two).digest
    (two / "a.txt").write_text("a red dog")
    assert read(one).digest != read(two).digest


def test_text_files_that_cannot_be_used_are_named(tmp_path):
    root = with_texts(images(tmp_path / "set", "abcdefg"))
    (root / "d.txt").write_bytes("caf\xe9".encode("latin-1"))
    (root / "e.txt").write_text(" \n")
    (root / "f.txt").write_bytes("a cat &amp; a <b>dog</b>".encode("utf-16"))
    (root / "lonely.txt").write_text("no picture")
    (root / "notes.doc").write_text("x")
    save(root / "a.jpg", picture(1))
    found = read(root)
    assert rows(found) == [*CAPTIONS.items(), ("f", "a cat &amp; a <b>dog</b>")]
    assert lines(found) == {
        ("a.png", "duplicate", False),
        ("d.txt", "encoding", False),
        ("e.txt", "empty caption", False),
        ("f.txt", "markup", True),
        ("g.png", "no caption", False),
        ("lonely.txt", "not used", False),
        ("set", "not used", False),
    }
    text = "\n".join(problem.line for problem in found.problems)
    assert "d.txt: is not UTF-8 text, at byte 3 (left out)" in text
    assert "set: not read: 1 .doc (left out)" in text
    assert dict(rows(read(root, markup="strip")))["f"] == "a cat & a dog"


def test_rows_of_a_table_that_cannot_be_used_are_named(tmp_path):
    root = jsonl(
        images(tmp_path / "set"),
        {"file_name": "a.png", "text": "first"},
        {"file_name": "a.png", "text": "second"},
        {"file_name": "gone.png", "text": "x"},
        {"file_name": "../a.png", "text": "x"},
        {"text": "x"},
        {"file_name": "b.png", "text": 3},
    )
    found = read(root)
    assert rows(found) == [("a", "first")]
    assert sorted(kind for _, kind, _ in lines(found)) == [
        "duplicate", "no caption", "no caption", "not used", "not used", "not used",
    ]  # fmt: skip
    for number in (2, 3, 4, 5, 6):
        assert any(f"metadata.jsonl, line {number}" in p.line for p in found.problems)
    assert any("c.png: no row in the metadata" in p.line for p in found.problems)


def test_two_tables_are_refused_with_words_of_the_command(tmp_path):
    root = jsonl(images(tmp_path / "set"), {"file_name": "a.png", "text": "x"})
    (root / "metadata.csv").write_text("file_name,text\na.png,x\n")
    with pytest.raises(DataError, match="both describe these images.*captions 'txt' or"):
        read(root)
    (root / "metadata.jsonl").unlink()
    assert rows(read(root)) == [("a", "x")]
    (root / "metadata.csv").write_text("name,text\na.png,x\n")
    with pytest.raises(DataError, match="the first line needs.*captions 'txt' or 'template'"):
        read(root)


def test_columns_of_tables(tmp_path):
    rows_of = [{"file_name": f"{n}.png", "id": n, "caption": t} for n, t in CAPTIONS.items()]
    root = jsonl(images(tmp_path / "set"), *rows_of)
    assert rows(read(root)) == list(CAPTIONS.items())
    assert rows(read(root, column="id")) == [(n, n) for n in CAPTIONS]
    with pytest.raises(ConfigError, match=r"column='captoin'.*Did you mean 'caption'\?"):
        read(root, column="captoin")
    jsonl(root, *({k: v for k, v in row.items() if k != "caption"} for row in rows_of))
    with pytest.raises(ConfigError, match="none of the columns text, caption"):
        read(root)


def test_one_or_all_of_several_captions(tmp_path):
    several = {n: [f"{n} {i}" for i in range(5)] for n in "abc"}
    root = images(tmp_path / "set")
    jsonl(root, *({"file_name": f"{n}.png", "text": t} for n, t in several.items()))
    pairs = [(7 + i, text) for i, texts in enumerate(several.values()) for text in texts]
    annotations = coco(
        tmp_path / "captions.json", "abc", [{"image_id": i, "caption": t} for i, t in pairs]
    )
    for source in (root, f"coco:{annotations}:{root}"):
        every = read(source, per_image="all")
        assert [row.caption for row in every.rows] == [t for ts in several.values() for t in ts]
        by_seed = {seed: rows(read(source, seed=seed)) for seed in range(6)}
        assert all([name for name, _ in found] == list("abc") for found in by_seed.values())
        assert all(text in several[name] for found in by_seed.values() for name, text in found)
        assert len({str(found) for found in by_seed.values()}) > 2
        assert rows(read(source, seed=3)) == by_seed[3]
        # All captions of an image are in one split.
        parts = every.parts(0.4)
        names = {split: {row.name for row in part.rows} for split, part in parts.items()}
        assert not names["train"] & names.get("test", set())
        assert sum(len(part) for part in parts.values()) == 15


def test_a_template_names_the_class_of_the_folder(tmp_path):
    root = tmp_path / "set"
    for i, name in enumerate(("tabby_cat/1", "tabby_cat/2", "dog/1", "loose")):
        save(root / f"{name}.png", picture(i))
    found = read(root, template="a photo of a {}")
    assert [row.caption for row in found.rows] == ["a photo of a dog"] + [
        "a photo of a tabby cat"
    ] * 2
    assert [row.label for row in found.rows] == [0, 1, 1]
    assert found.class_names == ("dog", "tabby_cat")
    assert lines(found) == {("loose.png", "no caption", False)}
    with pytest.raises(ConfigError, match="has no captions.*Give a template"):
        read(root)
    with pytest.raises(ConfigError, match=r"template='a photo'.*needs \{\} once"):
        read(root, template="a photo")


def test_captions_of_several_kinds_have_to_be_chosen(tmp_path):
    root = jsonl(with_texts(images(tmp_path / "set")), {"file_name": "a.png", "text": "row"})
    with pytest.raises(ConfigError, match="Set captions to one of metadata, txt"):
        read(root)
    assert rows(read(root, captions="txt")) == list(CAPTIONS.items())
    assert rows(read(root, captions="metadata")) == [("a", "row")]
    with pytest.raises(ConfigError, match="captions='template' needs a template"):
        read(root, captions="template")


def test_annotations_that_cannot_be_used_are_named(tmp_path):
    root = images(tmp_path / "set", "ab")
    annotations = [
        {"image_id": 7, "caption": "first\nline"},
        {"image_id": 99, "caption": "x"},
        {"image_id": 7},
        {"image_id": 9, "caption": "its image is missing"},
    ]
    path = coco(tmp_path / "captions.json", "abc", annotations)
    found = read(f"coco:{path}:{root}")
    assert rows(found) == [("a", "first line")]
    reasons = "\n".join(problem.line for problem in found.problems)
    for part in (
        "entry 1 of annotations: image_id 99 is no image of the file (left out)",
        "entry 2 of annotations: has no text as its caption (left out)",
        "image 8 (b.png): no annotation has a caption of it (left out)",
        "image 9 (c.png): ",
    ):
        assert part in reasons
    assert len(found.problems) == 4
    empty = tmp_path / "empty"
    empty.mkdir()
    coco(path, "abc", [{"image_id": 7 + i, "caption": "x"} for i in range(3)])
    with pytest.raises(DataError, match=r"can be used: 3 x unreadable image.*a\.png"):
        read(f"coco:{path}:{empty}")
    path.write_text(json.dumps({"images": [{"id": 1}], "annotations": [{"bbox": []}]}))
    with pytest.raises(DataError, match=r"captions_val2014\.json instead of instances"):
        read(f"coco:{path}")
    outside = {"images": [{"id": 1, "file_name": "/etc/x.png"}], "annotations": []}
    path.write_text(json.dumps(outside))
    with pytest.raises(DataError, match="no path below the folder of images"):
        read(f"coco:{path}:{root}")
    path.write_text("[1, 2")
    with pytest.raises(DataError, match="not valid JSON"):
        read(f"coco:{path}:{root}")


def test_examples_of_archives_that_cannot_be_used_are_named(tmp_path):
    described = json.dumps({"caption": "from json", "url": "x"}).encode()
    path = tar(
        tmp_path / "00000.tar",
        [
            ("1.png", png(1)), ("1.json", described),
            ("2.png", png(2)),
            ("3.txt", b"no image"),
            ("4.png", png(4)), ("4.png", png(5)), ("4.txt", b"four"),
            ("5.png", png(5)), ("5.txt", b"caf\xe9"),
            ("6.png", b""), ("6.txt", b"six"),
            ("7.png", png(7)), ("7.txt", b""),
            ("README", b"x"),
        ],
    )  # fmt: skip
    found = read(path)
    assert rows(found) == [("1", "from json"), ("4", "four")]
    np.testing.assert_array_equal(pixels(found)[1], picture(4))
    assert [(p.where.partition(", ")[2], p.kind) for p in found.problems] == [
        ("2", "no caption"),
        ("3", "not used"),
        ("4.png", "duplicate"),
        ("5", "encoding"),
        ("6.png", "unreadable image"),
        ("README", "not used"),  # found while the files of 7 were collected
        ("7", "empty caption"),
    ]


def test_damaged_and_compressed_archives_are_refused(tmp_path):
    members = [(f"{i}.png", png(i)) for i in range(3)] + [("0.txt", b"x")]
    path = tar(tmp_path / "0.tar", [("0.png", png(0)), ("0.txt", b"zero"), *members[1:3]])
    whole = path.read_bytes()
    path.write_bytes(whole[:900])
    with pytest.raises(DataError, match=r"0\.tar is no whole tar archive"):
        read(path)
    path.write_bytes(b"x" * 2000)
    with pytest.raises(DataError, match=r"0\.tar is no whole tar archive"):
        read(path)
    # Cut between two files: nothing but the missing end tells.
    offset = whole.index(b"1.png\0")
    path.write_bytes(whole[:offset])
    found = read(path)
    assert rows(found) == [("0", "zero")]
    assert [(p.kind, p.kept) for p in found.problems] == [("not used", True)]
    assert "examples at its end may be missing (kept)" in found.problems[0].line
    (tmp_path / "1.tar.gz").write_bytes(b"")
    with pytest.raises(DataError, match=r"1\.tar\.gz is compressed"):
        read(f"tars:{tmp_path}")
    with pytest.raises(DataError, match="is no tar archive, and no folder or pattern"):
        read(f"tars:{tmp_path}/none/*.tar")


def test_lines_of_prompts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_bytes(b"one\r\n\ntwo\tand  more\ncaf\xe9\none\n")
    found = read(f"prompts:{path}")
    assert [row.caption for row in found.rows] == ["one", "two and more", "one"]
    assert lines(found) == {
        ("prompts.txt, line 2", "empty caption", False),
        ("prompts.txt, line 4", "encoding", False),
    }
    path.write_text("häuser\nzwei", encoding="utf-16")
    assert [row.caption for row in read(path).rows] == ["häuser", "zwei"]


def test_sources_that_are_not_known(tmp_path):
    with pytest.raises(ConfigError, match=r"'coc' is no layout. Did you mean 'coco'\?"):
        read("coc:x.json:y")
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(ConfigError, match="add the folder of its images"):
        read(tmp_path / "x.json")
    for name in ("captions.pkl", "latents.PTH"):
        (tmp_path / name).write_bytes(b"\x80\x04N.")
        with pytest.raises(ConfigError, match="is a pickle, which can run any program"):
            read(tmp_path / name)
    with pytest.raises(DataError, match="is no folder of images"):
        read(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no"):
        read(tmp_path / "empty")


@pytest.mark.parametrize(
    "text, found",
    [
        ("I <3 you & me", False),
        ("a < b > c", False),
        ("a <i>cat</i>", True),
        ("salt &amp; pepper", True),
        ("&#39;", True),
        ("AT&T; x", False),
        ("a<br/>b", True),
    ],
)
def test_markup(text, found):
    assert has_markup(text) == found


def test_texts():
    assert normalise(" a\x00b\n c\u0301 ") == "a b \u0107"
    assert without_markup("salt&nbsp;&amp; <b>pepper</b><!-- x -->") == "salt & pepper"
    with pytest.raises(ValueError, match="half of a surrogate pair"):
        normalise("x\ud800")
    with pytest.raises(ValueError, match="is not UTF-16 text"):
        decode_text(b"\xff\xfea")
