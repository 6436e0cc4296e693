"""Bytes behind tokens, and every way to write a string."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from calib_utils.core import prompts
from calib_utils.core.prompts import Vocabulary
from calib_utils.errors import ModelFormatError, TokenizationError


@pytest.fixture(scope="module")
def tiny_vocabulary(tokenizer_of):
    return Vocabulary(tokenizer_of())


@pytest.fixture(scope="module")
def sentencepiece():
    """A SentencePiece-style vocabulary: word-start marks, byte fallback, a newline twice."""
    pieces = ["<s>", "</s>", *[f"<0x{byte:02X}>" for byte in range(256)], "▁", "a", "▁a", "\n", "é"]
    backend = Tokenizer(models.BPE({p: i for i, p in enumerate(pieces)}, [], byte_fallback=True))
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    return tokenizer, {piece: i for i, piece in enumerate(pieces)}


@given(st.text(max_size=12))
def test_the_bytes_of_a_texts_tokens_are_the_texts_bytes(tokenizer_of, text):
    tokenizer = tokenizer_of()
    found = Vocabulary(tokenizer)._bytes
    assert b"".join(found[i] for i in tokenizer(text).input_ids) == text.encode()


def test_special_tokens_write_nothing(tokenizer_of, tiny_vocabulary):
    tokenizer = tokenizer_of()
    assert not set(tokenizer.all_special_ids) & set(tiny_vocabulary._bytes)
    assert len(tiny_vocabulary._bytes) == 256 + 4


@given(st.text(alphabet="ab1, x", min_size=1, max_size=7))
def test_segmentations_are_those_of_brute_force(tokenizer_of, text):
    known = Vocabulary(tokenizer_of())
    by_text = {piece: token for token, piece in known._bytes.items()}
    expected = set()
    cuts = range(1, len(text))
    for count in range(len(text)):
        for chosen in itertools.combinations(cuts, count):
            bounds = [0, *chosen, len(text)]
            pieces = [text[i:j].encode() for i, j in itertools.pairwise(bounds)]
            if all(piece in by_text for piece in pieces):
                expected.add(tuple(by_text[piece] for piece in pieces))
    found = known.segmentations(text)
    assert len(found) == len(set(found))
    assert set(found) == expected


@given(st.text(min_size=1, max_size=5))
def test_the_tokenizers_own_segmentation_is_among_them(tokenizer_of, text):
    tokenizer = tokenizer_of()
    assert tuple(tokenizer(text).input_ids) in Vocabulary(tokenizer).segmentations(text)


def test_tokens_starting_with_a_text(tokenizer_of, tiny_vocabulary):
    tokenizer = tokenizer_of()
    found = [tokenizer.decode([i]) for i in tiny_vocabulary.starting_with(" ")]
    assert sorted(found) == [" ", " a", " ab"]


def test_sentencepiece_tokens_and_their_byte_fallbacks(sentencepiece):
    tokenizer, ids = sentencepiece
    known = Vocabulary(tokenizer)
    space, a, both = ids["▁"], ids["a"], ids["▁a"]
    space_byte, a_byte = ids["<0x20>"], ids["<0x61>"]
    expected = {(both,), *itertools.product((space, space_byte), (a, a_byte))}
    assert set(known.segmentations(" a")) == expected
    assert set(known.segmentations("é")) == {(ids["é"],), (ids["<0xC3>"], ids["<0xA9>"])}
    assert known.starting_with("\n") == sorted([ids["\n"], ids["<0x0A>"]])
    assert ids["</s>"] not in known._bytes


def test_added_tokens_that_are_not_special_are_plain_text(tokenizer_of):
    tokenizer = tokenizer_of()
    tokenizer.add_tokens(["é x"])
    token = tokenizer.convert_tokens_to_ids("é x")
    assert (token,) in Vocabulary(tokenizer).segmentations("é x")


def test_a_text_with_too_many_segmentations_is_refused(tiny_vocabulary, monkeypatch):
    monkeypatch.setattr(prompts, "MAX_SEGMENTATIONS", 100)
    assert len(tiny_vocabulary.segmentations("ab" * 6)) == 64
    with pytest.raises(TokenizationError, match="more than 100 segmentations"):
        tiny_vocabulary.segmentations("ab" * 7)


def test_a_text_that_cannot_be_written_is_refused(tokenizer_of):
    known = Vocabulary(tokenizer_of())
    known._ids.pop(b"x")
    with pytest.raises(TokenizationError, match="'ax' cannot be written"):
        known.segmentations("ax")


def test_a_tokenizer_of_another_kind_is_refused():
    backend = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    backend.decoder = decoders.WordPiece()
    with pytest.raises(ModelFormatError, match="neither byte-level nor SentencePiece"):
        Vocabulary(PreTrainedTokenizerFast(tokenizer_object=backend))
