"""Which weights a number is of: everything in a model's folder that shapes it, and nothing else."""

import errno
import json
import os
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import calib_utils as cu
from calib_utils import files, paths
from calib_utils.book import check, notebooks, resources
from calib_utils.errors import HashMismatchError, ModelFormatError
from calib_utils.results import storage


@pytest.fixture
def folder(tiny_folder, tmp_path):
    return shutil.copytree(tiny_folder("llama", chat=True), tmp_path / "mine")


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def replace_at_equal_size_and_time(path, content=None):
    was, content = path.stat(), content or path.read_bytes()[:-1] + b"\x01"
    path.write_bytes(content)
    os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (was.st_size, was.st_mtime_ns)


@pytest.mark.parametrize(
    "change",
    [
        lambda f: edit(f / "tokenizer_config.json", add_bos_token=True),
        lambda f: (f / "chat_template.jinja").write_text("{{ messages[0]['content'] }}"),
        lambda f: edit(f / "generation_config.json", eos_token_id=7),
        lambda f: (f / "added_tokens.json").write_text('{"<x>": 300}'),
        lambda f: edit(f / "config.json", rms_norm_eps=0.5),
        lambda f: replace_at_equal_size_and_time(f / "model.safetensors"),
    ],
)
def test_what_shapes_a_number_is_part_of_the_identity(folder, change):
    before = cu.load_model(folder).weights_sha256
    (folder / "README.md").write_text("for people alone")
    assert cu.load_model(folder).weights_sha256 == before
    change(folder)
    after = cu.load_model(folder).weights_sha256
    assert after != before
    assert notebooks.identity(str(folder)).weights_sha256 == after


def sharded(folder, shard):
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    (folder / shard).parent.mkdir(exist_ok=True)
    save_file(tensors, folder / shard, {"format": "pt"})
    index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, shard)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_shards_are_those_of_the_index_and_lie_in_the_folder(folder):
    sharded(folder, "parts/one.safetensors")
    model = cu.load_model(folder, device="cpu")
    assert model.network is not None
    replace_at_equal_size_and_time(folder / "parts" / "one.safetensors")
    assert cu.load_model(folder).weights_sha256 != model.weights_sha256
    (folder / "parts" / "one.safetensors").unlink()
    with pytest.raises(ModelFormatError, match=r"one\.safetensors"):
        cu.load_model(folder)


@pytest.mark.parametrize("name", ["../other.safetensors", "/other.safetensors"])
def test_an_index_that_leads_out_of_the_folder_is_refused(folder, name):
    shutil.copy(folder / "model.safetensors", folder.parent / "other.safetensors")
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"model.norm.weight": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelFormatError, match="outside of it"):
        cu.load_model(folder)
    (folder / "model.safetensors.index.json").unlink()
    edit(folder / "config.json", transformers_weights=name)
    with pytest.raises(ModelFormatError, match="outside of it"):
        cu.load_model(folder)


def test_an_adapter_is_refused_whether_peft_is_there_or_not(folder):
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelFormatError, match=r"adapter.*merge_and_unload"):
        cu.load_model(folder)


def test_tensors_that_the_config_leaves_out_are_refused_by_name(folder):
    edit(folder / "config.json", num_hidden_layers=1)
    with pytest.raises(ModelFormatError, match=r"leaves out \(model\.layers\.1\."):
        _ = cu.load_model(folder, device="cpu").network


def test_constants_of_older_versions_are_no_weights(folder):
    tensors = load_file(folder / "model.safetensors")
    names = ("model.layers.0.self_attn.rotary_emb.inv_freq", "model.h.0.attn.causal_mask")
    old = {name: np.ones(4, np.float32) for name in names}
    save_file({**tensors, **old}, folder / "model.safetensors", {"format": "pt"})
    assert cu.load_model(folder, device="cpu").network is not None


def test_a_folder_that_changes_before_its_weights_are_read_is_refused(folder):
    model = cu.load_model(folder, device="cpu")
    replace_at_equal_size_and_time(folder / "model.safetensors")
    with pytest.raises(HashMismatchError, match="load the model again"):
        _ = model.network


def test_a_model_is_hashed_once(folder, tiny_gguf, tmp_path, own_cache, monkeypatch):
    gguf = shutil.copy(tiny_gguf, tmp_path / "model.gguf")
    for path in (*folder.iterdir(), gguf):  # a change within the clock's tick would go unseen
        while files.time.time_ns() - path.stat().st_ctime_ns <= files._TICK_NS:
            files.time.sleep(0.01)
    first = [cu.load_model(path).weights_sha256 for path in (folder, gguf)]
    hashed, real = [], files.sha256_of_file
    monkeypatch.setattr(files, "sha256_of_file", lambda path: hashed.append(path) or real(path))
    assert [cu.load_model(path).weights_sha256 for path in (folder, gguf)] == first
    assert {folder, gguf}.isdisjoint({path.parent for path in hashed} | {*hashed})
    replace_at_equal_size_and_time(gguf)
    assert cu.load_model(folder).weights_sha256 == first[0]
    assert cu.load_model(gguf).weights_sha256 != first[1]


def test_what_lies_beside_a_gguf_file_is_no_part_of_it(tiny_gguf, tmp_path, own_cache):
    gguf = shutil.copy(tiny_gguf, tmp_path / "model.gguf")
    for name in ("generation_config.json", "tokenizer_config.json", "adapter_config.json"):
        (tmp_path / name).write_text('{"eos_token_id": 7, "chat_template": "x"}')
    model = cu.load_model(gguf, device="cpu")
    assert model.tokenizer.chat_template is None and model.network is not None
    assert '"eos_token_id": 7' not in (model.folder / "generation_config.json").read_text()
    replace_at_equal_size_and_time(model.folder / "model.safetensors")
    assert (cu.load_model(gguf).folder / "complete.json").exists()
    assert not (model.folder / "model.safetensors").read_bytes().endswith(b"\x01")


def test_no_row_or_record_holds_the_path_of_a_local_model(folder, small_task, tmp_path):
    results = tmp_path / "results"
    model = cu.load_model(folder, device="cpu")
    table = cu.evaluate(model, "rng-1", results_dir=results)
    assert (model.name, model.key, set(table.model)) == ("mine", "mine", {"mine"})
    stored = storage.folder_of(results, model.key, "rng-1")
    for path in stored.iterdir():
        assert str(tmp_path).encode() not in path.read_bytes()
    (one,) = check.recompute_some(check.check(stored), 1)
    assert one.verdict == "ok"  # found again where it lies


@pytest.mark.parametrize("odd", ["model.safetensors", "config.json", "generation_config.json"])
def test_what_has_no_end_is_refused(folder, odd):
    (folder / odd).unlink()
    if odd == "config.json":
        (folder / odd).symlink_to("/dev/zero")
    else:
        os.mkfifo(folder / odd)
    for use in (cu.load_model, resources.size_of):
        if odd != "generation_config.json" or use is cu.load_model:
            with pytest.raises(ModelFormatError):
                use(folder)


@pytest.mark.parametrize("name", ["x" * 5000, "a/" + "b" * 300, "/dev/zero", "~nobody/x"])
def test_names_that_can_be_no_model(name):
    for use in (cu.load_model, resources.size_of):
        with pytest.raises(cu.CalibUtilsError, match="unknown model"):
            use(name)


@pytest.mark.parametrize("revision", ["no such", "..", "a" * 300])
@pytest.mark.parametrize("name", ["smollm2-135m-instruct", "owner/name"])
def test_a_revision_that_can_be_none_is_refused_everywhere(name, revision):
    for use in (lambda *a: cu.load_model(a[0], revision=a[1]), resources.size_of):
        with pytest.raises(cu.CalibUtilsError, match="unknown"):
            use(name, revision)
    with pytest.raises(cu.CalibUtilsError, match="unknown"):
        notebooks.identity(name, revision)


def test_the_cache_may_lie_at_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CALIB_UTILS_CACHE", "~/x")
    assert paths.cache_dir() == tmp_path / "x"


def test_rows_are_added_by_copy_where_a_rename_is_refused(tiny, tmp_path, monkeypatch):
    """As on an overlay file system, which renames no folder of a lower layer."""
    model, real = tiny("llama", chat=True), os.replace
    cu.evaluate(model, "rng-1", results_dir=tmp_path)

    def refused(source, target):
        if os.path.isdir(source) and ".draft" not in str(source):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        real(source, target)

    monkeypatch.setattr(os, "replace", refused)
    cu.evaluate(model, "rng-1", ["top_k=3"], results_dir=tmp_path)
    stored = storage.folder_of(tmp_path, model.key, "rng-1")
    assert set(storage.read(stored).settings.rule) == {"none", "top_k"}
    assert [path.name for path in stored.parent.iterdir()] in (
        [".lock", "rng-1"],
        ["rng-1", ".lock"],
    )
