"""A tokenizer of CLIP's form with a vocabulary of one's own: words, pairs, ids, files."""

import json
import random

import numpy as np
import pytest

from ddistill.data.byte_pairs import (
    BytePairTokenizer,
    frequent_words,
    pairs_of_words,
    parse_merges,
    words_of,
)

WORDS = ("photo", "of", "three", "cats", "thin", "red", "street", "café", "dog's")
TOKENIZER = BytePairTokenizer(pairs_of_words(WORDS), 12)
TEXTS = (
    "a photo of three cats",
    "",
    "  A\tPhoto,\n of 22 dogs & it's 3rd CAFÉ!!! ",
    "cafe\u0301 caf\u00e9 stra\u00dfe ΑΣ ΣΑΣ \u0130stanbul",
    "emoji \U0001f600\U0001f468\u200d\U0001f469 \u732b \u00b2 \u2167 x_y __ 'tis don't we're 's",
    "three " * 40,
    "<b>bold</b> &amp; #1 <|endoftext|x",
)


def test_words():
    assert words_of("A CAT's 22, _x '") == ["a", "cat", "'s", "2", "2", ",", "_", "x", "'"]
    assert words_of("it'll've  don't!? cafe\u0301") == [
        *("it", "'ll", "'ve", "don", "'t", "!?", "caf\u00e9"),
    ]  # fmt: skip
    assert words_of(" \n") == []
    assert frequent_words(["b a", "c a", "b"], 2) == ("a", "b")


def test_the_pair_of_the_lowest_rank_is_joined_first():
    # By hand: "ab" before "bc", and then "abc".
    pairs = (("a", "b"), ("b", "c</w>"), ("ab", "c</w>"), ("ab", "ab"))
    tokenizer = BytePairTokenizer(pairs, 6)
    assert tokenizer._tokens("abc") == ["abc</w>"]
    assert tokenizer._tokens("bc") == ["bc</w>"]
    assert tokenizer._tokens("ababac") == ["abab", "a", "c</w>"]
    assert BytePairTokenizer((pairs[1], pairs[0], pairs[2]), 6)._tokens("abc") == ["a", "bc</w>"]


def test_ids():
    """The letters have the ids of CLIP, where "a" is 320 and "!" is 256."""
    assert len(TOKENIZER.ids) == TOKENIZER.facts.vocabulary == 514 + len(TOKENIZER.merges)
    start, end = len(TOKENIZER.ids) - 2, len(TOKENIZER.ids) - 1
    ids = TOKENIZER(["a!", "", "red " * 20])
    assert ids.dtype == np.int32
    assert ids[0].tolist() == [start, 320, 256, *[end] * 9]
    assert tuple(ids[1].tolist()) == TOKENIZER.facts.null == (start, *[end] * 11)
    assert ids[2].tolist() == [start, *[TOKENIZER.ids["red</w>"]] * 10, end]
    changed = BytePairTokenizer(TOKENIZER.merges[::-1], 12), BytePairTokenizer(TOKENIZER.merges, 9)
    assert len({t.facts.digest for t in (TOKENIZER, *changed)}) == 3
    again = BytePairTokenizer(TOKENIZER.merges, 12)
    assert (again, again.facts) == (TOKENIZER, TOKENIZER.facts)


def test_files_give_the_same_tokenizer():
    files = TOKENIZER.files()
    assert parse_merges(files["merges.txt"]) == TOKENIZER.merges
    assert json.loads(files["vocab.json"]) == TOKENIZER.ids
    assert json.loads(files["tokenizer_config.json"])["model_max_length"] == 12
    with pytest.raises(ValueError, match="line 3 is not a pair"):
        parse_merges("#version: 0.2\na b\na b c\n")


def library(tokenizer, folder):
    """The same tokenizer, of the library that transformers uses, from the files."""
    tokenizers = pytest.importorskip("tokenizers")
    from tokenizers import Regex, models, normalizers, pre_tokenizers

    for name, text in tokenizer.files().items():
        (folder / name).write_text(text, encoding="utf-8")
    known = models.BPE.from_file(
        str(folder / "vocab.json"),
        str(folder / "merges.txt"),
        end_of_word_suffix="</w>",
        unk_token="<|endoftext|>",
    )
    made = tokenizers.Tokenizer(known)
    made.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    return made


@pytest.mark.parity
def test_ids_are_those_of_the_library(tmp_path):
    other = library(TOKENIZER, tmp_path)
    rng = random.Random(0)
    alphabet = "aábc deé 'st.!1½²三猫Ω\u03c3ς\u0301ß_-\u200d😀İ\t"
    drawn = ["".join(rng.choices(alphabet, k=rng.randrange(30))) for _ in range(2000)]
    for text in (*TEXTS, *drawn):
        own = [i for word in words_of(text) for i in TOKENIZER._word(word)]
        assert own == other.encode(text, add_special_tokens=False).ids, repr(text)
