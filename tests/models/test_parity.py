"""Scoring a trie is one plain forward pass per prefix, for every architecture of the panel."""

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import calib_utils as cu
from calib_utils.core.tries import Sequences, build_trie
from calib_utils.models import scoring
from calib_utils.models.generation import Continuations

# Float32 rounding, in standard deviations of the logits over the vocabulary.
TOLERANCE = 5e-5
# The library's chunked and stepwise linear attention differ by 5e-6 to 3e-4 over draws of the decay
# rates, since a chunk takes differences of sums that grow with its length.
LINEAR_ATTENTION_TOLERANCE = 5e-4
BATCHES = (1, 3, 1000)


@torch.no_grad()
def plain_logits(network, ids):
    return network(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]


@pytest.fixture(scope="module")
def reference(tiny, small_task):
    """(prompt, logits [node, vocab]) of a tiny model, a full forward pass per node."""
    found = {}

    def get(architecture):
        if architecture not in found:
            model = tiny(architecture, chat=True)
            prompt = cu.render_prompt(model, small_task)
            rows = [
                plain_logits(model.network, [*prompt.ids, *prompt.trie.prefix(node)])
                for node in range(prompt.trie.n_nodes)
            ]
            found[architecture] = prompt, torch.stack(rows)
        return found[architecture]

    return get


def assert_equal_to_plain(model, prompt, expected, batch_size, packed):
    seen, found = [], torch.full_like(expected, torch.nan)
    for nodes, logits in scoring.score(model, prompt, batch_size, packed=packed):
        assert len(nodes) <= batch_size or list(nodes) == [0]
        seen += nodes.tolist()
        found[nodes] = logits
    assert sorted(seen) == list(range(prompt.trie.n_nodes))
    assert seen[0] == 0
    error = (found - expected).abs().max()
    linear = model.network.config.model_type.startswith(("qwen3_5", "qwen3_next"))
    tolerance = LINEAR_ATTENTION_TOLERANCE if linear else TOLERANCE
    assert error <= tolerance * expected.std(1).mean(), f"logits differ by {error:.2e}"


@pytest.mark.parametrize("batch_size", BATCHES)
def test_scoring_is_a_forward_pass_per_prefix(tiny, reference, architecture, batch_size):
    model = tiny(architecture, chat=True)
    for packed in (False, None):
        assert_equal_to_plain(model, *reference(architecture), batch_size, packed)


def test_every_packable_type_is_proven_here_and_runs_packed(tiny, reference, monkeypatch):
    proven = set()
    for architecture in ("llama", "qwen2", "qwen3", "olmo3", "gemma3"):
        model = tiny(architecture, chat=True)
        proven.add(model.network.config.model_type)
        for batch_size in BATCHES:
            assert_equal_to_plain(model, *reference(architecture), batch_size, packed=True)
    assert proven == scoring.PACKABLE


def test_every_type_whose_cache_is_trusted_is_proven_above(tiny, architectures):
    types = {tiny(name, chat=True).network.config.model_type for name in architectures}
    assert types == scoring.PROVEN


def test_logits_of_different_prefixes_differ_far_more_than_the_tolerance(reference, architecture):
    _, logits = reference(architecture)
    scale = logits.std(1).mean()
    apart = (logits[:, None] - logits[None]).abs().amax(-1)
    apart.fill_diagonal_(torch.inf)
    assert apart.min() > 10 * LINEAR_ATTENTION_TOLERANCE * scale
    assert scale > 0.5


@pytest.mark.parametrize("architecture", ["gemma3", "olmo3", "qwen3-sliding", "gemma3-multimodal"])
def test_the_sliding_window_changes_the_logits(tiny, reference, architecture):
    model = tiny(architecture, chat=True)
    prompt, logits = reference(architecture)
    wide = AutoModelForCausalLM.from_pretrained(model.folder).eval()
    text = wide.config.get_text_config()
    for config in {id(c): c for c in (text, wide.config)}.values():
        config.sliding_window = 4096
    for module in wide.modules():
        if getattr(module, "sliding_window", None):
            module.sliding_window = 4096
    error = (plain_logits(wide, list(prompt.ids)) - logits[0]).abs().max()
    assert error > 1000 * TOLERANCE * logits.std(1).mean()


def test_a_trie_of_one_node_is_scored_once(tiny):
    model = tiny("llama", chat=True)
    prompt = cu.render_prompt(model, cu.Task("one", "Say x:", ["x"]), end="none")
    for packed in (True, False):
        batches = list(scoring.score(model, prompt, packed=packed))
        assert [nodes.tolist() for nodes, _ in batches] == [[0]]


# Architectures that no test proves for the panel: compared with a plain pass when first used.
_FEW = {
    **{"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "vocab_size": 300},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0},
    **{"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "bos_token_id": 1},
    **{"moe_intermediate_size": 32, "shared_expert_intermediate_size": 32, "eos_token_id": 2},
    "tie_word_embeddings": False,
}
_MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_chunk_size": 4}
_MAMBA |= {"mamba_n_groups": 1, "mamba_expand": 2}
_GATED = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "decoder_sparse_step": 1}
_GATED |= {"linear_key_head_dim": 8, "linear_value_head_dim": 8}
_LAST = {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_dt_rank": 4}


def alternating(kind):
    return {"layer_types": [kind, "full_attention"] * 2}


BY_CACHE = {
    "jamba": {**_LAST, "expert_layer_period": 2, "expert_layer_offset": 1},
    "bamba": {**_MAMBA, "attn_layer_indices": [1, 3]},
    "falcon_h1": {**_MAMBA, "mamba_d_ssm": 64},
    "granitemoehybrid": {**_MAMBA, "layer_types": ["mamba", "attention"] * 2},
    "qwen3_next": {**_GATED, **alternating("linear_attention")},
    "olmo_hybrid": {**_GATED, **alternating("linear_attention")},
    "lfm2": {**alternating("conv"), "conv_L_cache": 3},
    "mistral": {"sliding_window": 8},
    "gemma2": {"sliding_window": 8},
    "gpt2": {},
}
# Without a cache of keys, with one that is wrong, or with layers in the config that are not there.
BY_PLAIN_PASSES = {
    "mamba": {"state_size": 8, "time_step_rank": 4},
    "mamba2": {"state_size": 8, "num_heads": 4, "head_dim": 16, "n_groups": 1, "chunk_size": 4},
    "rwkv": {"attention_hidden_size": 32},
    "recurrent_gemma": {"attention_window_size": 8, "lru_width": 32},
    "zamba2": {
        **{"mamba_headdim": 16, "n_mamba_heads": 4, "mamba_ngroups": 1, "mamba_d_state": 8},
        **{"chunk_size": 4, "num_mem_blocks": 1, "hybrid_layer_ids": [1, 3], "adapter_rank": 4},
        "layers_block_type": ["mamba", "hybrid"] * 2,
    },
    "minimax": {**alternating("linear_attention"), "block_size": 4},
    "llama": {"sliding_window": 8},
}


def untested(name, options):
    """A tiny model without a folder, its prompt and the logits of a plain pass for every node."""
    config = type(AutoConfig.for_model(name))(**{**_FEW, **options})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(20)
        network = AutoModelForCausalLM.from_config(config).float().eval()
    generator = np.random.default_rng(20)
    for key, parameter in network.named_parameters():
        if parameter.ndim > 1 and "A_log" not in key:
            drawn = generator.normal(scale=0.3, size=parameter.shape).astype(np.float32)
            parameter.data = torch.from_numpy(drawn)
    answers = ((5, 6, 7, 8), (5, 6, 7, 9), (5, 8), (5,), (10, 11, 10, 11), tuple(range(20, 27)))
    trie = build_trie(Sequences(answers, tuple(range(len(answers))), (2,), len(answers)))
    prompt = SimpleNamespace(ids=tuple(range(40, 60)), trie=trie)
    rows = [plain_logits(network, [*prompt.ids, *trie.prefix(n)]) for n in range(trie.n_nodes)]
    return SimpleNamespace(network=network), prompt, torch.stack(rows)


@pytest.mark.parametrize("name", [*BY_CACHE, *BY_PLAIN_PASSES])
def test_other_architectures_give_what_plain_passes_give(name):
    by_cache = name in BY_CACHE
    model, prompt, expected = untested(name, (BY_CACHE if by_cache else BY_PLAIN_PASSES)[name])
    notes = nullcontext() if by_cache else pytest.warns(UserWarning, match="read from its start")
    with notes:
        assert_equal_to_plain(model, prompt, expected, 3, packed=None)
        tree = Continuations(model, prompt.ids, 3)
    assert_equal_to_plain(model, prompt, expected, 1000, packed=None)  # noted once
    found = [c.prefix_log_p for c in tree.complete([(5, 6, 7), (5, 8), (20,)], 2)]
    log_p = torch.log_softmax(expected.double(), dim=1)
    steps = prompt.trie.prefix(prompt.trie.n_nodes - 1)
    assert found[0][0] == pytest.approx(float(log_p[0, 5]), abs=1e-4)
    assert found[2][0] == pytest.approx(float(log_p[0, steps[0]]), abs=1e-4)


def test_a_longer_prompt_is_compared_anew():
    """A window that the first prompt did not fill."""
    model, prompt, expected = untested("llama", {"sliding_window": 24})
    Continuations(model, prompt.ids[:4])
    with pytest.warns(UserWarning, match="standard deviations"):
        assert_equal_to_plain(model, prompt, expected, 1000, packed=None)


def test_reduced_precision_runs_and_stays_near_float32(tiny_folder, tiny, small_task):
    half = cu.load_model(Path(tiny_folder("llama", chat=True)), dtype="bfloat16", device="cpu")
    full = cu.evaluate(tiny("llama", chat=True), small_task)
    table = cu.evaluate(half, small_task)
    assert abs(np.log(table.validity[0] / full.validity[0])) < 0.5
