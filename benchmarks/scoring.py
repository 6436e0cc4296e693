"""Time to the log-probability of every answer of a task: ours against other ways, in one run.

All ways get the same network object and the same (prompt, answer) pairs as text; the token ids each
makes of them are checked to be the same before anything is timed. See README.md for the keys.
"""

import argparse
import copy
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import common
import numpy as np
import torch

import calib_utils as cu

TOLERANCE = 1e-2  # nats; float32 sums in another order differ by less
SUBSET = 32  # pairs on which a batch size is chosen
SEQUENCE_PAIRS = 64  # timed by a forward per pair, scaled up
FULL_SEQUENCE_SIZES = (1, 2, 4, 8, 16, 32)
CACHED_SIZES = (16, 64, 256)

# Log-probabilities of some pairs, given as indices, with some batch size. [pair]
Way = Callable[[np.ndarray, int], np.ndarray]


@dataclass(frozen=True)
class Pairs:
    """Every answer of a task behind its prompt, as text and as token ids, end token included."""

    prompt: str
    prompt_ids: list[int]
    is_chat: bool
    texts: list[str]
    ids: list[list[int]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", default="rng-3")
    parser.add_argument("--peers", action="store_true", help="also lm-eval and minicons (minutes)")
    common.add_options(parser)
    options = common.parse(parser)
    logging.disable(logging.WARNING)

    model, task = cu.load_model(options.model, device="cpu"), cu.get_task(options.task)
    prompt = cu.render_prompt(model, task)
    pairs = make_pairs(model, task)
    n_pairs = len(pairs.texts)
    cu.answer_probabilities(model, cu.get_task("rng-1"))  # loads the weights, warms up

    peak = common.gemm_peak_flops()
    ours = common.timed(lambda: cu.answer_probabilities(model, task), options.repeats)
    forward = common.timed(lambda: common.forward_only(model, prompt), options.repeats)
    peak = max(peak, common.gemm_peak_flops())
    bound = forward_flops(model.network, prompt) / peak
    record = {
        "benchmark": "scoring",
        "model": model.name,
        "task": task.name,
        "dtype": model.dtype,
        **common.describe(),
        "n_answers": len(task.answers),
        "n_nodes": prompt.trie.n_nodes,
        "n_prompt_tokens": len(prompt.ids),
        **ours.columns("ours"),
        **forward.columns("ours_forward"),
        "gemm_peak_gflops": peak / 1e9,
        "bound_wall_s": bound,
        "gemm_share": bound / ours.wall_s,
        "gemm_share_forward": bound / forward.wall_s,
    }
    reference = ours.value.log_p.to_numpy()

    def compare(name: str, way: Way, sizes: tuple[int, ...], limit: int = n_pairs) -> None:
        subset = common.spread(n_pairs, max(SUBSET, *sizes))
        way(subset[:4], 4)
        tried = {size: common.timed(partial(way, subset, size), 1).wall_s for size in sizes}
        size = min(tried, key=tried.get)
        chosen = common.spread(n_pairs, limit)
        timing = common.timed(partial(way, chosen, size), options.repeats)
        timing = timing.scaled(n_pairs / len(chosen))
        difference = float(np.abs(timing.value - reference[chosen]).max())
        record.update(timing.columns(name))
        more = {
            "pairs_timed": len(chosen),
            "extrapolated": len(chosen) < n_pairs,
            "batch_size": size,
            "batch_sizes_tried": " ".join(map(str, sizes)),
            "ratio_wall": timing.wall_s / ours.wall_s,
            "ratio_cpu": timing.cpu_s / ours.cpu_s,
            "max_abs_difference_nats": difference,
        }
        record.update({f"{name}_{key}": value for key, value in more.items()})
        print(f"{name}: {timing.wall_s:.1f} s, batch {size}", file=sys.stderr)
        assert difference <= TOLERANCE, f"{name} differs from ours by {difference} nat"

    compare("cached_batch", cached_batch(model.network, pairs), CACHED_SIZES)
    compare("sequence", sequence(model.network, pairs), (1,), SEQUENCE_PAIRS)
    if options.peers:
        compare("lm_eval", lm_eval(model, pairs), FULL_SEQUENCE_SIZES)
        compare("minicons", minicons(model, pairs), FULL_SEQUENCE_SIZES)
    common.save(record, options.out)


def make_pairs(model, task) -> Pairs:
    """The pairs, with a check that their text tokenizes to the ids that we score."""
    prompt, tokenizer = cu.render_prompt(model, task), model.tokenizer
    end = prompt.end_ids[0]
    texts = [prompt.lead + a + tokenizer.convert_ids_to_tokens(end) for a in task.answers]
    assert prompt.sequences.answer == tuple(range(len(texts)))
    ids = [[*symbols, end] for symbols in prompt.sequences.symbols]
    for text, expected in zip(texts, ids, strict=True):
        whole = tokenizer(prompt.text + text, add_special_tokens=not prompt.is_chat).input_ids
        assert whole == [*prompt.ids, *expected], f"{text!r} does not tokenize as it is scored"
    return Pairs(prompt.text, list(prompt.ids), prompt.is_chat, texts, ids)


def forward_flops(network, prompt) -> float:
    """Least work of matrix products: every unique token once, the output head only at nodes.

    Attention's own products and everything element-wise count as nothing. Dense models only.
    """
    head = network.get_output_embeddings()
    linear = (module for module in network.modules() if isinstance(module, torch.nn.Linear))
    per_token = sum(module.weight.numel() for module in linear if module is not head)
    nodes = prompt.trie.n_nodes  # the root is the prompt's last token
    return 2.0 * (per_token * (len(prompt.ids) + nodes - 1) + head.weight.numel() * nodes)


def sequence(network, pairs: Pairs) -> Way:
    """A forward pass per pair, without padding; the output head only where it is needed."""

    @torch.inference_mode()
    def run(chosen: np.ndarray, batch_size: int) -> np.ndarray:
        found = []
        for i in chosen:
            whole = torch.tensor([[*pairs.prompt_ids, *pairs.ids[i][:-1]]])
            keep = len(pairs.ids[i])
            logits = network(input_ids=whole, use_cache=False, logits_to_keep=keep).logits[0]
            log_p = logits.log_softmax(-1)
            found.append(log_p.gather(1, torch.tensor(pairs.ids[i])[:, None]).sum().item())
        return np.array(found)

    return run


def cached_batch(network, pairs: Pairs) -> Way:
    """The prompt once; every answer from a copy of its cache, in batches padded on the right."""

    @torch.inference_mode()
    def run(chosen: np.ndarray, batch_size: int) -> np.ndarray:
        out = network(input_ids=torch.tensor([pairs.prompt_ids]), logits_to_keep=1)
        first = out.logits[0, -1].log_softmax(-1)
        found = []
        for start in range(0, len(chosen), batch_size):
            ids = [pairs.ids[i] for i in chosen[start : start + batch_size]]
            width = max(map(len, ids))
            padded = torch.tensor([row + [0] * (width - len(row)) for row in ids])
            real = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in ids])
            cache = copy.deepcopy(out.past_key_values)
            cache.batch_repeat_interleave(len(ids))
            # Padding comes last, where the causal mask already hides it.
            logits = network(input_ids=padded[:, :-1], past_key_values=cache).logits
            rest = logits.log_softmax(-1).gather(2, padded[:, 1:, None])[..., 0]
            found.append(first[padded[:, 0]] + (rest * real[:, 1:]).sum(1))
        return torch.cat(found).numpy()

    return run


def lm_eval(model, pairs: Pairs) -> Way:
    """lm-evaluation-harness: HFLM.loglikelihood on the same module."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    class Harness(HFLM):
        def _encode_pair(self, context, continuation):
            # The original moves white space from the prompt's end into the continuation and scores
            # it too; chat templates end in a line break, so that would be another number.
            whole, split = self.tok_encode(context + continuation), len(self.tok_encode(context))
            return whole[:split], whole[split:]

    def harness(batch_size: int) -> Harness:
        return Harness(pretrained=model.network, tokenizer=model.tokenizer, batch_size=batch_size)

    lm = harness(1)
    for text, ids in zip(pairs.texts, pairs.ids, strict=True):
        assert lm._encode_pair(pairs.prompt, text) == (pairs.prompt_ids, ids)

    def run(chosen: np.ndarray, batch_size: int) -> np.ndarray:
        arguments = [(pairs.prompt, pairs.texts[i]) for i in chosen]
        requests = [Instance("loglikelihood", {}, a, i) for i, a in enumerate(arguments)]
        answers = harness(batch_size).loglikelihood(requests, disable_tqdm=True)
        return np.array([log_p for log_p, _ in answers])

    return run


def minicons(model, pairs: Pairs) -> Way:
    """minicons: IncrementalLMScorer.conditional_score on the same module."""
    from minicons.scorer import IncrementalLMScorer

    # It finds the prompt's length by leaving out padding tokens. Where padding is the end-of-turn
    # token, which a chat prompt contains, it would score some of the prompt: pad with another one.
    tokenizer = copy.deepcopy(model.tokenizer)
    used = {*pairs.prompt_ids, *(token for row in pairs.ids for token in row)}
    tokenizer.pad_token = next(
        str(token) for i, token in tokenizer.added_tokens_decoder.items() if i not in used
    )
    scorer = IncrementalLMScorer(model.network, "cpu", tokenizer=tokenizer)
    encode = partial(scorer.prime_text, separator="", chat=pairs.is_chat)
    for text, ids in zip(pairs.texts, pairs.ids, strict=True):
        encoded, offsets = encode([pairs.prompt], [text])
        assert encoded["input_ids"][0].tolist() == [*pairs.prompt_ids, *ids]
        assert offsets == [len(pairs.prompt_ids) - 1]

    def run(chosen: np.ndarray, batch_size: int) -> np.ndarray:
        # Equal lengths together, as lm-evaluation-harness does on its own.
        order = sorted(range(len(chosen)), key=lambda at: -len(pairs.ids[chosen[at]]))
        found = np.empty(len(chosen))
        for start in range(0, len(order), batch_size):
            part = order[start : start + batch_size]
            found[part] = scorer.conditional_score(
                [pairs.prompt] * len(part),
                [pairs.texts[chosen[at]] for at in part],
                separator="",
                reduction=lambda log_p: log_p.sum().item(),
                chat=pairs.is_chat,
            )
        return found

    return run


if __name__ == "__main__":
    main()
