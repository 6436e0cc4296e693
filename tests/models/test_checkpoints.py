"""The panel's table against the paper's list, against transformers, and against real files."""

import json
import shutil

import pytest
import torch

import calib_utils as cu
from calib_utils import paths
from calib_utils.book import commands, resources
from calib_utils.errors import HubUnreachableError, ModelFormatError, UnknownNameError
from calib_utils.models import registry
from calib_utils.models.loading import file_key
from calib_utils.models.registry import CORE, EMBEDDED
from calib_utils.models.weights import gguf_path

# Fig. 8, by name.
POST_TRAINED = (
    *("Qwen3-0.6B", "Qwen3-4B", "Qwen3-8B", "Qwen3.5-0.8B", "Qwen3.5-2B", "Qwen3.5-9B"),
    *("Qwen3.5-27B", "Qwen3.5-35B-A3B", "Qwen3.5-122B-A10B", "Llama-3.2-1B-Instruct"),
    *("Llama-3.1-8B-Instruct", "Meta-Llama-3.1-70B-Instruct", "Olmo-3-7B-Instruct"),
    "Olmo-3.1-32B-Instruct",
)
BASE = (
    *("Qwen3-0.6B-Base", "Qwen3-4B-Base", "Qwen3-8B-Base", "Qwen3.5-0.8B-Base"),
    *("Qwen3.5-2B-Base", "Qwen3.5-9B-Base", "Qwen3.5-35B-A3B-Base"),
)
ARCHITECTURES = json.loads(paths.package_data("panel", "architectures.json").read_text())


def test_the_panel_is_the_papers():
    found = [one for one in registry.checkpoints() if one.panel == "paper"]
    for stage, names in (("post-trained", POST_TRAINED), ("base", BASE)):
        assert tuple(one.name for one in found if one.stage == stage) == names
    assert len(found) == 21
    others = [one for one in registry.checkpoints() if one.panel != "paper"]
    assert {one.name for one in others} == set(EMBEDDED)


def test_every_base_checkpoint_is_in_one_pair():
    found = registry.pairs()
    assert sorted(base.name for base, _ in found) == sorted(BASE)
    for base, tuned in found:
        assert base.name == f"{tuned.name}-Base"
        assert (base.stage, tuned.stage) == ("base", "post-trained")
        assert (base.family, base.architecture) == (tuned.family, tuned.architecture)


def test_a_checkpoint_is_found_by_every_name_it_has():
    one = registry.find("Qwen3.5-9B")
    assert one.key == file_key(one.hub.replace("/", "--"))
    for name in (one.hub, one.key, f"{one.key}@{'0' * 40}"):
        assert registry.find(name) is one
    assert registry.find("") is registry.find("Qwen/Qwen3.5-9") is None


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_counts_are_those_of_the_architecture(name):
    """Built without memory by transformers, from the dimensions in the table."""
    from transformers import AutoConfig, AutoModelForCausalLM

    options = dict(ARCHITECTURES[name])
    model_type = options.pop("model_type")
    config = AutoConfig.for_model(model_type, **options)
    with torch.device("meta"):
        network = AutoModelForCausalLM.from_config(config)
    counts = {key: parameter.numel() for key, parameter in network.named_parameters()}
    total = sum(counts.values())
    experts = sum(n for key, n in counts.items() if ".experts." in key)
    share = options.get("num_experts_per_tok", 0) / options.get("num_experts", 1)
    used = [one for one in registry.checkpoints() if one.architecture == ARCHITECTURES[name]]
    assert used
    for one in used:
        assert one.parameters == total
        assert one.active == total - experts + experts * share
        size = resources.size_of_checkpoint(one)
        assert size.vocabulary == network.get_output_embeddings().weight.shape[0]


# Sizes of files


def test_the_size_of_a_folder_is_that_of_the_loaded_model(tiny, architecture):
    """Parameters as transformers loads them; the cache as it is after a forward pass."""
    model = tiny(architecture)
    size = resources.size_of(model.folder)
    network = model.network
    assert size.parameters == sum(p.numel() for p in network.parameters())
    text = network.config.get_text_config()
    assert size.vocabulary == text.vocab_size
    rows, tokens = 3, 5
    ids = torch.arange(tokens)[None].repeat(rows, 1)
    with torch.no_grad():
        cache = network(input_ids=ids, use_cache=True).past_key_values
    kept = states = 0
    for layer in cache.layers:
        for value in vars(layer).values():
            for tensor in value.values() if isinstance(value, dict) else [value]:
                if isinstance(tensor, torch.Tensor) and tensor.ndim > 2 and tensor.numel():
                    if getattr(layer, "keys", None) is not None and tensor.shape[-2] == tokens:
                        kept += tensor.numel()
                    else:
                        states += tensor.numel() * tensor.element_size()
    assert kept == rows * tokens * size.cache_values
    assert states == rows * size.state_bytes
    if "moe" in architecture:
        experts = sum(p.numel() for k, p in network.named_parameters() if ".experts." in k)
        assert size.active == size.parameters - experts // 2
    else:
        assert size.active == size.parameters


@pytest.mark.models
@pytest.mark.parametrize("name", CORE)
def test_the_embedded_files_have_the_sizes_of_the_table(name):
    stated = resources.size_of(name)
    spec = EMBEDDED[name]
    one = resources.size_of(cu.load_model(name).folder)
    for field in ("parameters", "active", "vocabulary", "cache_values", "model_type"):
        assert getattr(one, field) == getattr(stated, field), field
    with pytest.raises(ModelFormatError, match="not known before it is loaded"):
        resources.size_of(gguf_path(spec))


def test_a_hub_model_that_was_fetched_needs_no_hub(tiny_folder, hub):
    hub(tiny_folder("qwen3.5-moe-multimodal"), "owner/seeing")
    size = resources.size_of("owner/seeing")
    assert size == resources.ModelSize(
        **{**vars(resources.size_of(tiny_folder("qwen3.5-moe-multimodal"))), "name": "owner/seeing"}
        | {"source": size.source}
    )


def test_a_hub_model_outside_the_panel_needs_the_hub_once(hub):
    with pytest.raises(HubUnreachableError, match=r"owner/name could not be fetched"):
        resources.size_of("owner/name")


def spoil(folder, name, content):
    (folder / name).write_bytes(content)


@pytest.mark.parametrize(
    ("spoiled", "said"),
    [
        (lambda f: (f / "model.safetensors").unlink(), "no safetensors weights"),
        (lambda f: spoil(f, "model.safetensors", b"short"), "model.safetensors cannot be read"),
        (lambda f: spoil(f, "model.safetensors", b"\xff" * 64), "cannot be read"),
        (lambda f: spoil(f, "model.safetensors", b"\x02" + b"\0" * 7 + b"[]"), "cannot be read"),
        (lambda f: spoil(f, "config.json", b"{"), "not a model folder"),
        (lambda f: spoil(f, "config.json", b"[]"), "does not tell its size"),
        (lambda f: spoil(f, "config.json", b"{}"), "does not tell its size"),
        (lambda f: (f / "config.json").unlink(), "not a model folder"),
    ],
)
def test_a_folder_without_its_numbers_is_a_named_error(tiny_folder, tmp_path, spoiled, said):
    folder = shutil.copytree(tiny_folder(), tmp_path / "model")
    spoiled(folder)
    with pytest.raises(ModelFormatError, match=said):
        resources.size_of(folder)


def test_other_names_are_named_errors():
    with pytest.raises(UnknownNameError, match="Did you mean 'smollm2"):
        resources.size_of("smollm2-135m")


# What is measured


def test_coverage_counts_what_is_here_and_says_how_to_get_the_rest(tmp_path):
    table = commands.coverage().set_index("name")
    assert list(table.index[:21]) == [*POST_TRAINED, *BASE]
    for name in EMBEDDED:
        row = table.loc[name]
        stored = list((paths.default_results_dir() / name).glob("*/provenance.json"))
        pages = list((paths.book_dir() / "results" / name).glob("[0-9]*.ipynb"))
        assert (row.tables, row.pages, row.measured) == (len(stored), len(pages), True)
    folder = tmp_path / f"Qwen--Qwen3-4B@{'0' * 40}" / "rng-2"
    for where in (folder, tmp_path / "someone--model" / "rng-2"):
        where.mkdir(parents=True)
        (where / "provenance.json").touch()
    table = commands.coverage(tmp_path, tmp_path).set_index("name")
    assert list(table.index[table.measured]) == ["Qwen3-4B", "someone--model"]
    other = table.loc["someone--model"]
    assert other.panel == "other" and other.isna()["parameters"]
    assert table.loc["Qwen3-8B"].command == "make run MODEL=Qwen/Qwen3-8B"
    assert list(table.reset_index()[commands.COLUMNS].columns) == commands.COLUMNS
