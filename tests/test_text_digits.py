"""The embedded captioned digits: words that the pixels bear out, tokens, prompts."""

import hashlib

import jax
import numpy as np
import pytest

from ddistill import data
from ddistill.data.byte_pairs import frequent_words, words_of
from ddistill.data.conditions import Tokens
from ddistill.data.digits import read_scans
from ddistill.data.facts import FACTS, DataFacts
from ddistill.data.summary import summary
from ddistill.data.text_digits import (
    DIGITS,
    LENGTH,
    TEMPLATES,
    THICK,
    THIN,
    UNSAID,
    WORDS,
    caption,
    captions,
    digit_tokenizer,
    ink_limits,
    mean_ink,
    prompts,
    read_thickness,
)
from ddistill.data.tokenized import tokenized
from ddistill.data.words import chance
from ddistill.errors import ConfigError, DataError


@pytest.fixture(scope="module", params=["train", "test"])
def digits(request):
    return data.load({"name": "text_digits"}, request.param)


@pytest.fixture(scope="module")
def limits():
    return ink_limits()


def thickness(text):
    return next((word for word in (THIN, THICK) if word in text), "")


def test_the_digit_of_a_caption_is_the_label(digits):
    for text, label in zip(digits.texts["caption"], digits.labels):
        assert [word for word in words_of(text) if word in DIGITS] == [DIGITS[label]]


def test_the_thickness_of_a_caption_is_the_ink_beside_scans_of_the_digit(digits):
    # From the grey levels of scikit-learn, without the code that makes the captions.
    levels, _ = read_scans()
    by_pixels = {scan.tobytes(): int(scan.sum()) for scan in levels}
    train = data.load({"name": "digits"}, "train")
    sums = np.round((train.images + 1) * 8).sum(axis=(1, 2, 3))
    for digit in range(10):
        own = np.flatnonzero(digits.labels == digit)
        low, high = np.quantile(sums[train.labels == digit], (0.4, 0.6))
        for i in own:
            pixels = np.round((digits.images[i, ..., 0] + 1) * 8).astype(np.uint8)
            ink = by_pixels[pixels.tobytes()]
            expected = THIN if ink < low else THICK if ink > high else ""
            assert thickness(digits.texts["caption"][i]) == expected


def test_shares_of_words():
    train = data.load({"name": "text_digits"}, "train")
    texts, labels = np.array(train.texts["caption"]), train.labels
    words = np.array([thickness(text) for text in texts])
    for digit in range(10):
        own = words[labels == digit]
        for word, share in ((THIN, 0.4), (THICK, 0.4), ("", UNSAID)):
            assert abs(np.mean(own == word) - share) < 0.04, (digit, word)
    patterns = [[caption(d, w, k) for d in range(10) for w in (THIN, THICK, "")] for k in range(3)]
    shares = [np.isin(texts, pattern).mean() for pattern in patterns]
    assert sum(shares) == pytest.approx(1)
    assert min(shares) > 0.28
    # All words, and no other ones; each template with and without the thickness.
    assert set(frequent_words(texts, 99)) == set(WORDS)
    assert len(set(texts)) == len(TEMPLATES) * 30


def test_captions_depend_on_one_scan_alone(digits, limits):
    order = np.random.default_rng(0).permutation(len(digits))[:50]
    again = captions(digits.take(order), digits.labels[order], limits)
    assert again == tuple(digits.texts["caption"][i] for i in order)


def test_captions_of_this_version():
    """Other captions would be another data set under the same name."""
    train = data.load({"name": "text_digits"}, "train")
    text = "\n".join(train.texts["caption"])
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "92dba79a38ffb62f"
    assert train.texts["caption"][:3] == ("the digit zero, thin", "the digit one", "a thick two")


def test_token_ids_are_the_conditions(digits):
    tokens = {i: token for token, i in digit_tokenizer().ids.items()}
    assert digits.tokens.shape == (len(digits), LENGTH)
    assert digits.tokens.dtype == np.int32
    for text, ids in zip(digits.texts["caption"], digits.tokens):
        # One token a word, and nothing is cut off.
        words = [f"{word}</w>" for word in words_of(text)]
        ends = ["<|endoftext|>"] * (LENGTH - 1 - len(words))
        assert [tokens[i] for i in ids] == ["<|startoftext|>", *words, *ends]
        assert ends
    rows = np.array([5, 3, 5])
    batch = digits.take_conditions(rows)
    assert isinstance(batch, Tokens)
    np.testing.assert_array_equal(batch.ids, digits.tokens[[5, 3, 5]])
    assert [x.shape for x in jax.tree.leaves(digits.conditions)] == [(len(digits), LENGTH)]
    plain = data.load({"name": "digits"}, "test")
    np.testing.assert_array_equal(plain.take_conditions(rows), plain.labels[rows])


def test_facts_and_identity_have_the_tokenizer(digits):
    facts = DataFacts.of(digits)
    assert facts.tokenizer == digit_tokenizer().facts
    written = facts.to_json()
    assert FACTS.problem(written) == ""
    assert DataFacts.from_json(written) == facts
    split = "train" if len(digits) > 1000 else "test"
    plain = data.load({"name": "digits"}, split)
    assert plain.identity.items() < digits.identity.items()
    assert digits.identity.keys() - plain.identity.keys() == {"tokens", "tokenizer"}
    assert not {"tokenizer", "encoder", "has_images"} & DataFacts.of(plain).to_json().keys()
    assert "7 tokens each, by the tokenizer byte pairs" in "\n".join(summary(digits))


def test_prompts_and_their_measure(digits, limits):
    asked = prompts()
    assert len(set(asked)) == 20
    assert asked[0].text == "a thin handwritten zero"
    known = set(digits.texts["caption"])
    assert {prompt.text for prompt in asked} <= known
    assert digit_tokenizer()([p.text for p in asked]).max(axis=1).tolist() == [562] * 20
    # Real scans obey their own captions, and disobey the other word.
    said = [
        (i, p) for i, text in enumerate(digits.texts["caption"]) for p in asked if p.text == text
    ]
    images = digits.take([i for i, _ in said])
    own = [prompt for _, prompt in said]
    assert len(own) > 50
    read = read_thickness(images, np.array([prompt.digit for prompt in own]))
    assert [(THIN, THICK)[i] for i in read] == [prompt.thickness for prompt in own]
    # By chance a half.
    every = digits.take(range(len(digits)))
    assert 0.42 < read_thickness(every, digits.labels).mean() < 0.58


def test_words_of_captions_and_their_level_of_chance(digits):
    captions = digits.texts["caption"]
    digit, thickness = digits.words
    np.testing.assert_array_equal(digit.asked(captions), digits.labels)
    said = [THIN in text.split() or THICK in text.split() for text in captions]
    np.testing.assert_array_equal(thickness.asked(captions) >= 0, said)
    assert thickness.asked(["the digit two, thick", "two thin lines", "athin two"]).tolist() == [
        *(1, 0, -1)
    ]
    assert chance(digit.asked(captions)) == pytest.approx(0.1, abs=0.002)
    assert chance(thickness.asked(captions)) == pytest.approx(0.5, abs=0.005)
    assert chance(np.array([0, 0, 0, 1, -1])) == 0.75**2 + 0.25**2
    assert chance(np.array([-1])) == 0


def test_mean_ink():
    images = np.stack([np.full((8, 8, 1), value, np.float32) for value in (-1, 0, 1)])
    np.testing.assert_allclose(mean_ink(images), [0, 0.5, 1])


def test_captions_of_other_sets_become_tokens(tmp_path):
    digits = data.load({"name": "digits"}, "test")
    tokenizer = digit_tokenizer()
    with pytest.raises(ConfigError, match="column='text' is no column of digits"):
        tokenized(digits, tokenizer, tokenizer.facts, "text")
    from dataclasses import replace

    captioned = replace(digits, texts={"text": ("a zero",) * len(digits)})
    found = tokenized(captioned, tokenizer, tokenizer.facts, "text")
    np.testing.assert_array_equal(found.tokens, tokenizer(["a zero"] * len(digits)))
    wrong = replace(tokenizer.facts, length=9)
    with pytest.raises(DataError, match=r"gives \(360, 7\) for 360 texts.*\(360, 9\)"):
        tokenized(captioned, tokenizer, wrong, "text")
