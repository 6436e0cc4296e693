"""One command for the paper's checkpoints: what is run, in which order, past a failure, again."""

import re
import shutil

import pytest
import torch
from papermill.exceptions import PapermillExecutionError

import calib_utils as cu
from calib_utils.__main__ import main
from calib_utils.book import notebooks
from calib_utils.errors import DeviceError
from calib_utils.models.registry import checkpoints

PAPER = [one for one in checkpoints() if one.panel == "paper"]
EVALUATE = """\
import calib_utils as cu

chosen = cu.load_model(model, dtype=dtype, device=device)
cu.evaluate(chosen, "rng-1", rules=["none"], end="line", results_dir=results_dir or "rows")"""
# By what a config of the registry says, the tiny model of the same kind.
KINDS = {
    "qwen3": "qwen3",
    "qwen3_5": "qwen3.5-multimodal",
    "qwen3_5_text": "qwen3.5-multimodal",
    "qwen3_5_moe": "qwen3.5-moe-multimodal",
    "qwen3_5_moe_text": "qwen3.5-moe-multimodal",
    "llama": "llama",
    "olmo3": "olmo3",
}


def kind_of(one):
    return KINDS[one.architecture["model_type"]]


@pytest.fixture
def project(small_project, as_project, tmp_path, own_cache):
    """A project of two small notebooks, for this process and for the kernels it starts."""
    notebooks = {"00_one": [EVALUATE], "01_two": [EVALUATE]}
    return as_project(small_project(tmp_path / "project", notebooks))


@pytest.fixture
def models_dir(tiny_folder, tmp_path):
    """Puts tiny models in the place of checkpoints: `models_dir(hub id, ...)` -> the folder."""

    def put(*checkpoints, flat=False):
        for one in checkpoints:
            name = one.key if flat else one.hub
            source = tiny_folder(kind_of(one), chat=one.stage == "post-trained")
            shutil.copytree(source, tmp_path / "models" / name)
        return tmp_path / "models"

    return put


def named(name):
    (one,) = (one for one in PAPER if one.name == name)
    return one


def told(capsys):
    """The table at the end: hub id -> (outcome, why), in its order."""
    head, *rows = re.search(r"(?ms)^model +GB .*", capsys.readouterr().out)[0].splitlines()
    outcome, why = head.index("outcome"), head.index("why")
    return {row.split()[0]: (row[outcome:why].strip(), row[why:].strip()) for row in rows}


def test_the_plan_is_all_of_the_paper_by_size_with_what_cannot_be_run(models_dir, project, capsys):
    small, large = named("Qwen3-0.6B"), named("Llama-3.1-8B-Instruct")
    folder = models_dir(small, large)
    command = ["panel", "--models-dir", str(folder), "--device", "cpu", "--dry-run"]
    assert main([*command, "--memory-gb", "20"]) == 0
    table = told(capsys)
    assert set(table) == {one.hub for one in PAPER}
    sizes = [next(o.parameters for o in PAPER if o.hub == hub) for hub in table]
    assert sizes[0] == min(sizes) and sizes[-1] == max(sizes)
    assert table[small.hub] == ("to do", "2 of 2 pages")
    assert table["Qwen/Qwen3-0.6B-Base"] == ("skipped", f"not in {folder}")
    outcome, why = table[large.hub]
    assert outcome == "skipped" and "there are 20 GB" in why
    assert main([*command, "--memory-gb", "20", "--dtype", "bfloat16"]) == 0
    assert told(capsys)[large.hub][0] == "to do"
    assert not [*(project / "book").rglob("*.ipynb")]
    for wrong in (
        *("--memory-gb=0", "--models-dir=nowhere", "--dtype=int4"),
        *("--notebook=02_three", "--parameter=quikc=True"),
    ):
        assert main(["panel", "--dry-run", "--device", "cpu", wrong]) == 2


@pytest.mark.notebooks
def test_a_broken_checkpoint_stops_no_other_and_a_second_run_finds_the_rest(
    project, models_dir, tiny_folder, cached, capsys
):
    first, broken, last = map(named, ("Qwen3-0.6B", "Llama-3.2-1B-Instruct", "Qwen3.5-0.8B"))
    folder = models_dir(first)
    models_dir(broken, flat=True)
    config = folder / broken.key / "config.json"
    whole = config.read_text()
    config.write_text("{")
    cached(folder, tiny_folder(kind_of(last), chat=True), last.hub)
    command = ["panel", "--models-dir", str(folder), "--device", "cpu"]
    assert main(command) == 1
    table = told(capsys)
    tried = [hub for hub, (outcome, _) in table.items() if outcome != "skipped"]
    assert tried == [first.hub, broken.hub, last.hub]
    assert table[first.hub] == table[last.hub] == ("done", "2 of 2 pages")
    outcome, why = table[broken.hub]
    assert outcome == "failed" and "ModelFormatError" in why and "fetch the model again" in why
    # Pages and rows are placed as those of the hub's model.
    assert (project / "book" / "results" / last.key / "01_two.ipynb").is_file()
    assert (project / "rows" / first.key / "rng-1@end=line").is_dir()
    config.write_text(whole)
    (project / "book" / "results" / last.key / "01_two.ipynb").unlink()
    assert main(command) == 0
    table = told(capsys)
    assert table[first.hub] == ("current", "2 of 2 pages")
    assert table[broken.hub] == ("done", "2 of 2 pages")
    assert table[last.hub] == ("done", "1 of 2 pages")


def test_a_page_that_fails_is_named_though_the_one_from_before_stands(
    project, models_dir, monkeypatch, capsys
):
    """And each page is asked once why it would be executed."""
    one, asked, why_stale = named("Qwen3-0.6B"), [], notebooks.why_stale

    def execute_file(source, target, parameters):
        shutil.copy(source, target)
        return []

    def why(name, *given):
        asked.append(name)
        return why_stale(name, *given)

    def fail(*_):
        raise PapermillExecutionError(1, 1, "1 / 0", "ZeroDivisionError", "no", [])

    monkeypatch.setattr(notebooks, "execute_file", execute_file)
    monkeypatch.setattr(notebooks, "why_stale", why)
    command = ["panel", "--models-dir", str(models_dir(one)), "--device", "cpu"]
    assert main(command) == 0
    assert told(capsys)[one.hub] == ("done", "2 of 2 pages") and asked == ["00_one", "01_two"]
    assert main(command) == 0 and told(capsys)[one.hub] == ("current", "2 of 2 pages")
    monkeypatch.setattr(notebooks, "run", fail)
    assert main([*command, "--force"]) == 1
    assert told(capsys)[one.hub] == ("failed", "00_one, 01_two")


@pytest.mark.full
@pytest.mark.notebooks
def test_all_of_the_paper_in_the_layout_of_the_hub(project, models_dir, capsys):
    folder = models_dir(*PAPER)
    command = ["panel", "--models-dir", str(folder), "--device", "cpu", "--memory-gb", "1000"]
    assert main([*command, "--notebook", "00_one"]) == 0
    assert set(told(capsys).values()) == {("done", "1 of 1 pages")}


def test_a_device_that_stands_for_several_is_a_device_map(tiny_folder):
    plain, spread = (
        cu.load_model(tiny_folder(), device=device) for device in ("cpu", "sequential")
    )
    assert spread.device_map == "sequential" and plain.device_map is None
    if not torch.cuda.is_available():
        assert spread.device == "cpu"
        ids = torch.tensor([[1, 2, 3]])
        assert torch.equal(plain.network(ids).logits, spread.network(ids).logits)
    with pytest.raises(DeviceError, match="give one of them"):
        cu.load_model(tiny_folder(), device="sequential", device_map="auto")
