"""How different texts are: by the angle between their embeddings, and by shared n-grams (Table 1).

Texts in, vectors or one number out. Knows torch encoders and the folder layout of
sentence-transformers. Knows no prompt and no validity.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.helpers import extract_all_word_ngrams
from tqdm.auto import tqdm

from calib_utils.errors import InvalidRequestError, ModelFormatError, UnknownNameError
from calib_utils.files import sha256_of_folder
from calib_utils.models import weights
from calib_utils.models.registry import DEFAULT_ENCODER, ENCODERS

# The names that a pooling config gives its switches; the files of others are refused.
_POOLINGS = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "first",
    "pooling_mode_lasttoken": "last",
}
_PARTS = {"Transformer", "Pooling", "Normalize"}
_LONGEST = 8192  # tokens, where neither file nor tokenizer names a limit


@dataclass(frozen=True)
class Embedder:
    """A sentence embedder, with its weights loaded on first use."""

    name: str
    folder: Path
    pooling: str

    @cached_property
    def tokenizer(self):
        """The Hugging Face tokenizer."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.folder, trust_remote_code=False)

    @cached_property
    def max_tokens(self) -> int:
        """Texts are cut to this many tokens, as the embedder's own files say."""
        named = _json(self.folder / "sentence_bert_config.json").get("max_seq_length")
        return int(named or min(self.tokenizer.model_max_length, _LONGEST))

    @cached_property
    def network(self):
        """The torch module in float32, in evaluation mode."""
        import torch
        from transformers import AutoModel

        options = {"dtype": torch.float32, "use_safetensors": True, "trust_remote_code": False}
        try:
            return AutoModel.from_pretrained(self.folder, **options).eval()
        except Exception as error:
            raise ModelFormatError(
                f"{self.name}: the weights in {self.folder} cannot be loaded "
                f"({type(error).__name__}: {error}); delete the folder and load again, or choose "
                f"an embedder that needs no code of its own, such as {DEFAULT_ENCODER}"
            ) from error

    def embed(self, texts: Sequence[str], batch_size: int = 32) -> np.ndarray:
        """Unit vectors [text, dimension], float64; equal texts of a call have equal vectors."""
        import torch

        if not len(texts):
            raise InvalidRequestError("0 texts: give at least 1")
        # Texts of like length share a batch, so that little of it is padding.
        unique = sorted(dict.fromkeys(texts), key=len)
        batches = [unique[i : i + batch_size] for i in range(0, len(unique), batch_size)]
        options = {"padding": True, "truncation": True, "max_length": self.max_tokens}
        found = {}
        for batch in tqdm(batches, desc=f"embedding by {self.name}", unit="batch", leave=False):
            inputs = self.tokenizer(batch, return_tensors="pt", **options)
            with torch.inference_mode():
                hidden = self.network(**inputs).last_hidden_state
                pooled = _pool(hidden, inputs["attention_mask"], self.pooling).double()
            vectors = torch.nn.functional.normalize(pooled, dim=-1).numpy()
            found |= zip(batch, vectors, strict=True)
        return np.stack([found[text] for text in texts])


def load_embedder(name: str | Path = DEFAULT_ENCODER) -> Embedder:
    """A sentence embedder by embedded name, hub id or local folder; errors as `load_model`'s.

    `all-MiniLM-L6-v2` comes from a package index and needs no hub. A folder or repository may be in
    the layout of sentence-transformers, whose pooling is followed; a plain encoder is pooled by the
    mean.
    """
    text, folder = str(name), Path(name).expanduser()
    if text in ENCODERS:
        folder = weights.encoder_folder(ENCODERS[text])
    elif not folder.is_dir():
        if "/" not in text:
            hint = "Or give a hub id (owner/name) or a local folder."
            raise UnknownNameError("sentence embedder", text, ENCODERS, hint)
        folder = weights.hub_folder(text, None)
    sha256_of_folder(folder)  # refuses what is not safetensors
    return Embedder(text, folder, _pooling(folder))


def _pooling(folder: Path) -> str:
    """The pooling that the folder's own files ask for."""
    modules = _json(folder / "modules.json") or []
    types = {module["type"].rsplit(".", 1)[-1]: module["path"] for module in modules}
    if extra := set(types) - _PARTS:
        raise ModelFormatError(
            f"{folder}: modules {sorted(extra)} are not supported, only {sorted(_PARTS)}; choose "
            "another embedder"
        )
    if "Pooling" not in types:
        return "mean"
    config = _json(folder / types["Pooling"] / "config.json")
    switched = {key for key, on in config.items() if key.startswith("pooling_mode") and on is True}
    if len(switched) != 1 or not switched <= set(_POOLINGS):
        raise ModelFormatError(
            f"{folder}: pooling {sorted(switched)} is not supported, only one of "
            f"{sorted(_POOLINGS)}; choose another embedder"
        )
    return _POOLINGS[switched.pop()]


def _pool(hidden, mask, pooling: str):
    """[text, dimension] from hidden states [text, token, dimension]; padding on either side."""
    import torch

    if pooling == "mean":
        weight = mask.unsqueeze(-1).to(hidden.dtype)
        return (hidden * weight).sum(dim=1) / weight.sum(dim=1)
    place = torch.arange(mask.shape[1], device=mask.device) * mask
    at = place.argmax(dim=1) if pooling == "last" else mask.argmax(dim=1)  # the last or first 1
    return hidden[torch.arange(len(hidden), device=hidden.device), at]


def _json(path: Path):
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


# Self-BLEU is sacrebleu's BLEU; only the counting of references is done here, once for all texts.

_TOKENIZE = BLEU().tokenizer
_GROUP = 4  # texts compared at a time


def embedding_diversity(vectors: np.ndarray) -> float:
    """Mean over pairs of texts of 1 - cosine, in [0, n / (n - 1)]; NaN for fewer than two texts.

    The cosines sum to |sum of unit vectors|^2 - n, at least -n; so the cost is linear in n.

    Args:
        vectors: [text, dimension], finite and none of length 0; need not have unit length.

    >>> embedding_diversity(np.array([[1.0, 0.0], [-2.0, 0.0]]))
    2.0
    """
    vectors = np.asarray(vectors, dtype=np.float64)
    n = len(vectors)
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    if not (np.isfinite(lengths) & (lengths > 0)).all():
        raise InvalidRequestError(
            f"vectors of length {float(lengths.min()):g}: a cosine needs finite vectors other than "
            "0; leave out the texts behind them"
        )
    if n < 2:
        return float("nan")
    total = (vectors / lengths).sum(axis=0)
    # Equal vectors: rounding in the square must not make the mean negative.
    return max(float(1 - (total @ total - n) / (n * (n - 1))), 0.0)


def self_bleu(texts: Sequence[str], order: int = 4) -> float:
    """Mean BLEU of each text against all others, in [0, 1]: the n-gram order reading of "n = 4".

    High where texts repeat one another. It rises with the number of texts, since each one more is a
    reference more: compare equal numbers only. NaN for fewer than two texts.

    The scores equal those of `sacrebleu.BLEU.sentence_score` text by text (`13a` tokens, effective
    order), which would count every reference anew for each text. Here an n-gram's largest count
    among the *other* texts is its largest or second largest count, so texts are counted once.

    >>> round(self_bleu(["one of the two", "one of the two", "something else"]), 2)
    0.67
    """
    if len(texts) < 2:
        return float("nan")
    counted = [_counted(text, order) for text in texts]
    largest, second = Counter(), Counter()
    for ngrams, _ in counted:
        for ngram, count in ngrams.items():
            if count > largest[ngram]:
                largest[ngram], second[ngram] = count, largest[ngram]
            elif count > second[ngram]:
                second[ngram] = count
    lengths = Counter(length for _, length in counted)
    scores = []
    for ngrams, length in counted:
        correct, total = [0] * order, [0] * order
        for ngram, count in ngrams.items():
            # A text that holds the largest count has the second largest as its reference.
            other = second[ngram] if count == largest[ngram] else largest[ngram]
            total[len(ngram) - 1] += count
            correct[len(ngram) - 1] += min(count, other)
        # BLEU's reference length: that of the nearest other text, the shorter of two.
        others = lengths - Counter([length])
        closest = min(others, key=lambda other: (abs(other - length), other))
        score = BLEU.compute_bleu(
            correct, total, length, closest, "exp", effective_order=True, max_ngram_order=order
        )
        scores.append(score.score / 100)
    return float(np.mean(scores))


def self_bleu_in_groups(texts: Sequence[str], rounds: int = 20, seed: int = 0) -> float:
    """Mean self-BLEU of four texts at a time: the other reading of "n = 4".

    The texts are shuffled and cut into groups, and what is left over sits out; the mean over
    `rounds` seeded shuffles. But for chance it does not depend on how many texts there are. NaN for
    fewer than four.
    """
    if len(texts) < _GROUP:
        return float("nan")
    rng = np.random.default_rng(seed)
    scores = []
    for _ in range(rounds):
        shuffled = [texts[i] for i in rng.permutation(len(texts))]
        starts = range(0, len(texts) - _GROUP + 1, _GROUP)
        scores += [self_bleu(shuffled[start : start + _GROUP]) for start in starts]
    return float(np.mean(scores))


@lru_cache(maxsize=10_000)  # a text is in one group of every round
def _counted(text: str, order: int) -> tuple[Counter, int]:
    """How often each n-gram up to an order occurs, and the number of tokens."""
    return extract_all_word_ngrams(_TOKENIZE(text.rstrip()), 1, order)
