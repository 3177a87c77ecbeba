"""CLIP's tokenizer: the ids of transformers, special tokens, and files that do not fit."""

import gzip
import json
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from tiny_sd import WORDS, merges, write_tokenizer

from ddistill.errors import ConfigError
from ddistill.interop.tokenizer import END, START, read_tokenizer

pytest.importorskip("tokenizers")

HARD = [
    "",
    "a photo of a cat",
    "  A\tPHOTO\n\nof  the   Cat ",
    "élan, naïve café; cafe\u0301",
    "the cat's and the dogs' digits: 1234, don't we'll I'm",
    "red 🐈‍⬛ cat!!! ... <b>html</b> &amp; #tag_of",
    "猫の写真 фото кота",
    "a <|endoftext|> cat <|startoftext|>",
    "word " * 200,
    "x" * 500,
    "\x00\x1f\u200b\ufeff",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """vocab.json and merges.txt of a tokenizer with few words."""
    folder = tmp_path_factory.mktemp("tokenizer") / "tokenizer"
    write_tokenizer(folder, merges(WORDS))
    return folder


def captions(count=1000):
    """Texts of words, numbers, marks and capitals, and the hard ones."""
    rng = np.random.default_rng(0)
    marks = ["", ",", ".", "!", "'s", "-", " 42 ", " é ", "(", ")", "🙂"]
    words = [*WORDS, "unknown", "Straße", "don't", "TWENTY-ONE", "e-mail@x.org"]
    made = []
    for _ in range(count - len(HARD)):
        chosen = rng.choice(words, rng.integers(1, 40))
        made.append(" ".join(f"{w}{rng.choice(marks)}" for w in chosen))
    return HARD + made


def test_a_text_is_start_words_end_and_padding(folder):
    read = read_tokenizer(folder, 12)
    vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    words = [vocabulary[f"{word}</w>"] for word in ("a", "photo", "of", "a", "cat")]
    start, end = vocabulary[START], vocabulary[END]
    found = read(["A photo  of a cat", "", "cat " * 30])
    assert found.dtype == np.int32
    assert found[0].tolist() == [start, *words, *[end] * 6]
    assert found[1].tolist() == [start, *[end] * 11]
    assert found[2].tolist() == [start, *[vocabulary["cat</w>"]] * 10, end]
    assert read.vocabulary == len(vocabulary)
    with pytest.raises(TypeError, match="A text is needed; 3 is a int"):
        read([3])
    assert read(["a \udce9 cat"]).shape == (1, 12)


def test_two_point_x_pads_with_its_own_token(tmp_path):
    vocabulary = write_tokenizer(tmp_path / "tokenizer", merges(WORDS), pad="!")
    assert vocabulary["!"] == 0
    found = read_tokenizer(tmp_path / "tokenizer", 5)(["cat"])[0]
    assert found.tolist()[2:] == [vocabulary[END], 0, 0]
    settings = tmp_path / "tokenizer" / "tokenizer_config.json"
    settings.rename(settings.with_name("special_tokens_map.json"))
    again = read_tokenizer(tmp_path / "tokenizer", 5)
    np.testing.assert_array_equal(again(["cat"])[0], found)


def compare(folder, saved):
    """Compares ids with transformers' for both kinds of files."""
    transformers = pytest.importorskip("transformers")
    theirs = transformers.CLIPTokenizer.from_pretrained(folder)
    texts = captions()
    options = {"padding": "max_length", "max_length": 77, "truncation": True}
    wanted = theirs(texts, **options, return_tensors="np").input_ids
    np.testing.assert_array_equal(read_tokenizer(folder, 77)(texts), wanted)
    theirs.save_pretrained(saved)
    if (saved / "tokenizer.json").is_file():
        for name in ("vocab.json", "merges.txt"):
            (saved / name).unlink(missing_ok=True)
        np.testing.assert_array_equal(read_tokenizer(saved, 77)(texts), wanted)


@pytest.mark.parity
def test_ids_are_those_of_transformers(folder, tmp_path):
    compare(folder, tmp_path)


@pytest.mark.parity
def test_ids_of_the_real_vocabulary_are_those_of_transformers(tmp_path):
    """open_clip ships CLIP's merges; its modules are not imported."""
    spec = find_spec("open_clip")
    if spec is None or spec.origin is None:
        pytest.skip("open_clip is not installed")
    packed = Path(spec.origin).with_name("bpe_simple_vocab_16e6.txt.gz").read_bytes()
    lines = gzip.decompress(packed).decode("utf-8").split("\n")[1 : 49152 - 256 - 2 + 1]
    write_tokenizer(tmp_path / "tokenizer", [tuple(line.split()) for line in lines])
    ids = read_tokenizer(tmp_path / "tokenizer", 77)(["a photo of a cat"])[0]
    assert ids[:8].tolist() == [49406, 320, 1125, 539, 320, 2368, 49407, 49407]
    compare(tmp_path / "tokenizer", tmp_path / "saved")


def test_files_that_are_no_tokenizer_are_named(folder, tmp_path, monkeypatch):
    def copy(name, **changes):
        made = tmp_path / name
        made.mkdir()
        for path in folder.iterdir():
            (made / path.name).write_bytes(path.read_bytes())
        for file, text in changes.items():
            (made / file.replace("_", ".")).write_text(text)
        return made

    cases = [
        (copy("a", vocab_json="{}"), "lacks the token '<|startoftext|>'|holds no tokenizer"),
        (copy("b", merges_txt="#version: 0.2\na b c\n"), "line 2 is 'a b c'; two tokens are need"),
        (copy("c", merges_txt=""), "merges.txt is empty"),
        (copy("d", vocab_json="[1]"), "vocab.json holds a list; an object is needed"),
        (copy("e", tokenizer_json="{}"), "holds no tokenizer of CLIP"),
    ]
    (tmp_path / "f").mkdir()
    cases.append((tmp_path / "f", "vocab.json is missing; a tokenizer has tokenizer.json, or"))
    for made, message in cases:
        with pytest.raises(ConfigError, match=message) as error:
            read_tokenizer(made, 77)
        assert "\n" not in str(error.value)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ConfigError, match=r"pip install 'ddistill\[text\]'"):
        read_tokenizer(folder, 77)
