"""The explorer's data is the step itself, fresh or kept: tokens, counts, partition function."""

import json
import math
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

import calib_utils as cu
from calib_utils import paths
from calib_utils.book import check
from calib_utils.figures import explorer
from calib_utils.figures import style as style_module
from calib_utils.models import scoring
from calib_utils.models.registry import CORE, EMBEDDED
from calib_utils.results import conventions
from calib_utils.studies import oracle_cutoffs, reporting

TEMPERATURES = np.geomspace(explorer.MIN_TEMPERATURE, 5, 40)
N_VOCAB = 262_144
STORE = paths.default_results_dir()
SMALL = "smollm2-135m-instruct"
REAL = STORE / SMALL / explorer.STEPS_FOLDER / "us-states.json"


@pytest.fixture(scope="module")
def direct(tiny, small_task):
    """(StepData, gaps [vocab] by rank, N of the valid ones by rank) from a plain forward pass."""

    def get(prefix, chat=True):
        model = tiny("llama", chat=chat)
        prompt = cu.render_prompt(model, small_task)
        ids = model.tokenizer(prompt.text + prompt.lead * bool(prefix) + prefix).input_ids
        with torch.no_grad():
            logits = model.network(torch.tensor([ids])).logits[0, -1].double().numpy()
        order = np.lexsort((np.arange(len(logits)), -logits))
        gaps = logits.max() - logits[order]
        count = {}
        for tokens in prompt.sequences.symbols:
            if tokens[: len(ids) - len(prompt.ids)] == tuple(ids[len(prompt.ids) :]):
                after = [*tokens, *prompt.end_ids][len(ids) - len(prompt.ids)]
                count[after] = count.get(after, 0) + 1
        answers = {int(np.flatnonzero(order == v)[0]): n for v, n in count.items()}
        return explorer.step_data(model, small_task, prefix), gaps, answers

    return get


@pytest.mark.parametrize("chat", [True, False], ids=["chat", "base"])
@pytest.mark.parametrize("prefix", ["", "1,", "ab"])
def test_the_data_is_the_step_itself(direct, prefix, chat):
    step, gaps, answers = direct(prefix, chat)
    assert step.n_vocab == len(gaps) and step.n_listed == explorer.N_TOP
    assert {t.rank: t.n_answers for t in step.tokens if t.n_answers} == answers
    ranks = [t.rank for t in step.tokens]
    assert ranks == sorted({*range(explorer.N_TOP), *answers})
    np.testing.assert_allclose([t.gap for t in step.tokens], gaps[ranks], atol=2e-5)
    # Counts are exact where a bin starts, so are ranks.
    starts = explorer.N_TOP + np.cumsum([0, *(part.count for part in step.tail)])
    assert starts[-1] == len(gaps)
    firsts = [part.first for part in step.tail]
    np.testing.assert_allclose(firsts, gaps[starts[:-1]], atol=2e-5)
    assert set(answers) - set(range(explorer.N_TOP)) <= set(starts)
    for temperature in TEMPERATURES:
        exact = np.exp(-gaps / temperature)
        # Two float32 passes, divided by a temperature of 0.1, differ as much as the bins may.
        assert math.exp(step.log_partition(temperature)) == pytest.approx(exact.sum(), rel=2e-4)
        valid = exact[list(answers)].sum() / exact.sum()
        assert step.validity(temperature) == pytest.approx(valid, rel=1e-3)


def test_only_the_path_to_the_prefix_is_forwarded(tiny, small_task, monkeypatch):
    seen, score = [], scoring.score

    def watched(*args):
        for nodes, logits in score(*args):
            seen.extend(nodes.tolist())
            yield nodes, logits

    monkeypatch.setattr(scoring, "score", watched)
    model = tiny("llama", chat=True)
    explorer.step_data(model, small_task)
    assert seen == [0]
    explorer.step_data(model, small_task, "1,")
    assert len(seen) <= 1 + 3


@pytest.mark.parametrize("shape", ["uniform", "normal", "worst", "tied", "infinite"])
def test_bins_keep_the_partition_function_on_any_logits(shape):
    """Also where all the mass is in the tail, and where every bin is as spread as it can be."""
    draw = np.random.default_rng(0)
    gaps = {
        "uniform": lambda: draw.uniform(0, 40, N_VOCAB),
        "normal": lambda: draw.normal(15, 3, N_VOCAB).clip(0),
        # Half of the tokens at either end of a bin, at the temperature that weighs them most.
        "worst": lambda: np.repeat([1.2476, 1.2499], N_VOCAB // 2),
        "tied": lambda: np.round(draw.uniform(0, 5, N_VOCAB), 1),
        "infinite": lambda: np.append(draw.uniform(0, 9, N_VOCAB), [1e5] * 50),
    }[shape]()
    gaps = np.sort(gaps)
    bins = explorer.tail_bins(gaps, np.array([7, 1000]), len(gaps))
    starts = np.cumsum([0, *(part.count for part in bins)])
    assert {7, 1000} <= set(starts) and starts[-1] == len(gaps)
    assert len(bins) < 3000
    counts, means = np.array([(part.count, part.mean) for part in bins]).T
    for temperature in TEMPERATURES:
        exact = 1 + np.exp(-gaps / temperature).sum()
        found = 1 + counts @ np.exp(-means / temperature)
        assert found == pytest.approx(exact, rel=explorer.MAX_ERROR)


@pytest.mark.parametrize("prefix", ["7;", "1,2,9", "abx", " 1,"])
def test_a_bad_prefix_names_itself_and_the_remedy(tiny, small_task, prefix):
    with pytest.raises(cu.CalibUtilsError, match=re.escape(repr(prefix))) as caught:
        explorer.step_data(tiny("llama", chat=True), small_task, prefix)
    assert "take ''" in str(caught.value) and "'small'" in str(caught.value)


def test_logits_that_are_not_numbers_are_named(fresh_tiny, small_task):
    model = fresh_tiny("llama", chat=True)
    with torch.no_grad():
        model.network.get_output_embeddings().weight.fill_(torch.nan)
    with pytest.raises(cu.CalibUtilsError, match="NaN"):
        explorer.step_data(model, small_task)


def test_any_text_survives_the_page(tiny, small_task):
    step = explorer.step_data(tiny("llama", chat=True), small_task)
    nasty = '</script><!--<script> & " \\ \u2028 \U0001f600'
    tokens = (step.tokens[0]._replace(text=nasty), *step.tokens[1:])
    step = replace(step, tokens=tokens, prompt=nasty, prefix='"><b>')
    page = explorer.explorer(step, "<weights> & more").data
    assert page.count("</script") == page.count("<script") == 1
    assert "<b>" not in page and "&lt;weights&gt;" in page
    data = json.loads(re.search(r"<script[^>]*>(.*?)</script>", page, re.DOTALL)[1])
    assert data["tokens"][0][0] == data["prompt"] == nasty
    assert explorer.StepData.from_json(data) == step
    assert " id=" not in page  # two copies on one page


def test_white_space_and_controls_are_visible(tiny, small_task, monkeypatch):
    monkeypatch.setattr(explorer, "N_TOP", 10**6)  # every token by name
    step = explorer.step_data(tiny("llama", chat=True), small_task)
    texts = {token.text for token in step.tokens}
    assert {"␣", "␣a", "⏎", "⇥", "\\x07", "a", "<|end|>"} <= texts
    assert len(step.tokens) == step.n_vocab and not step.tail
    assert all(text.isprintable() and text for text in texts)


def test_the_page_has_the_figures_colours():
    style = (paths.book_dir() / "assets" / "explorer.css").read_text(encoding="utf-8")
    assert f"--cu-valid: {style_module.BLUE};" in style
    assert f"--cu-invalid: {style_module.VERMILION};" in style


@pytest.fixture(scope="module")
def kept(tiny, tmp_path_factory):
    """(a tiny model, its steps, the results folder)."""
    model, root = tiny("llama", chat=True), tmp_path_factory.mktemp("kept")
    return model, explorer.keep(model, ["rng-2", "rng-4"], "eos", root), root


def test_what_is_kept_is_the_step_itself(kept):
    model, steps, root = kept
    assert list(steps) == ["rng-2"]  # rng-4 is not a task whose steps are kept
    assert [step.prefix for step in steps["rng-2"]] == ["", "4,"]
    for step in steps["rng-2"]:
        assert step == explorer.step_data(model, "rng-2", step.prefix)
    read, record = explorer.read(explorer.path_of(root, model.key, "rng-2"))
    assert read == steps["rng-2"]
    assert record["weights_sha256"] == model.weights_sha256
    assert (record["task"], record["end"]) == ("rng-2", "eos")
    assert record["convention"] == conventions.CURRENT["steps"]


def test_the_space_before_a_base_models_answer_is_a_step_of_its_own(tiny):
    """A tokenizer that writes it as a token leaves nothing to choose at the root."""
    steps = explorer.steps_along(tiny("llama", chat=False), "rng-2", "4,7", end="line")
    assert [step.prefix for step in steps] == ["␣", "4,"]
    assert all(sum(token.n_answers for token in step.tokens) > 1 for step in steps)


def test_only_steps_that_leave_a_choice_count_and_not_more_than_asked(tiny, small_task):
    model = tiny("llama", chat=True)
    steps = explorer.steps_along(model, small_task, "1,2,3")
    assert [step.prefix for step in steps] == ["", "1,", "1,2,"]
    for step in steps:
        assert sum(token.n_answers > 0 for token in step.tokens) > 1
        assert sum(token.n_answers for token in step.tokens) > 1
        assert step == explorer.step_data(model, small_task, step.prefix)
    assert explorer.steps_along(model, small_task, "1,2,3", most=1) == steps[:1]
    with pytest.raises(cu.CalibUtilsError, match="'2,2' is no answer of task 'small'"):
        explorer.steps_along(model, small_task, "2,2")


def moved(root, target, by):
    """A copy of kept steps in which every gap but the first is `by` nats larger."""
    shutil.copytree(root, target)
    (path,) = target.rglob("rng-2.json")
    content = json.loads(path.read_text(encoding="utf-8"))
    for step in content["steps"]:
        step["tokens"] = [[a, rank, gap + by * (rank > 0), n] for a, rank, gap, n in step["tokens"]]
        step["tail"] = [[count, first + by, mean + by] for count, first, mean in step["tail"]]
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_rounding_leaves_a_file_alone_and_other_numbers_do_not(kept, tmp_path):
    model, steps, root = kept
    near, other = moved(root, tmp_path / "near", 1e-4), moved(root, tmp_path / "far", 0.1)
    before = near.read_bytes()
    explorer.keep(model, ["rng-2"], "eos", tmp_path / "near")
    assert near.read_bytes() == before
    explorer.keep(model, ["rng-2"], "eos", tmp_path / "far")
    assert explorer.read(other)[0] == steps["rng-2"]
    assert [path.name for path in other.parent.iterdir()] == ["rng-2.json"]  # no draft stays


@pytest.mark.parametrize(("end", "what"), [("line", "end"), ("eos", "weights_sha256")])
def test_steps_of_another_question_or_model_are_not_replaced(kept, tiny, tmp_path, end, what):
    model, _, root = kept
    shutil.copytree(root, tmp_path / "rows")
    if what == "weights_sha256":
        model = replace(model, weights_sha256="0" * 64)
    with pytest.raises(cu.CalibUtilsError, match=f"differs in {what}.*delete it"):
        explorer.keep(model, ["rng-2"], end, tmp_path / "rows")


def test_a_place_that_cannot_be_written_is_named(kept, tmp_path):
    model = kept[0]
    (tmp_path / model.key).write_text("a file where the folder should be")
    with pytest.raises(cu.CalibUtilsError, match="choose a writable results_dir"):
        explorer.keep(model, ["rng-2"], "eos", tmp_path)


def broken(content, how):
    step = content["steps"][0]
    if how == "no record":
        del content["record"]
    elif how == "no steps":
        content["steps"] = []
    elif how == "a list":
        return []
    elif how == "a token twice":
        step["tokens"][3][1] = 2
    elif how == "a bin lost":
        step["tail"].pop()
    elif how == "gaps that fall":
        step["tokens"][5][2] = 0.0
    elif how == "another task":
        content["record"]["task"] = step["task"] = "rng-2"
    elif how == "a field too many":
        step["more"] = 1
    elif how == "text for a gap":
        step["tokens"][5][2] = "0.5"
    elif how == "hash lost":
        del content["record"]["weights_sha256"]
    return content


@pytest.mark.parametrize(
    "how",
    [
        *("cut off", "no record", "no steps", "a list", "a token twice", "a bin lost"),
        *("gaps that fall", "another task", "a field too many", "text for a gap", "hash lost"),
    ],
)
def test_a_broken_file_names_itself_and_the_remedy(tmp_path, how):
    text = REAL.read_text(encoding="utf-8")
    path = tmp_path / REAL.name
    explorer.read(shutil.copy(REAL, path))
    changed = json.dumps(broken(json.loads(text), how))
    path.write_text(text[:-100] if how == "cut off" else changed, encoding="utf-8")
    with pytest.raises(
        cu.CalibUtilsError, match=r"us-states\.json holds no .*run 03_oracle_cutoffs"
    ):
        explorer.read(path)


def test_steps_are_looked_at_by_check(tmp_path):
    folder = tmp_path / SMALL / explorer.STEPS_FOLDER
    shutil.copytree(REAL.parent, folder)
    (found,) = check.check(tmp_path)
    assert (found.kind, found.verdict) == ("steps", "ok")

    def findings():
        (found,) = check.check(tmp_path)
        return " ".join(fault.what for fault in found.faults)

    (folder / "notes.txt").write_text("mine")
    assert findings() == "notes.txt is not a file of steps: delete it"
    (folder / "notes.txt").unlink()
    path = folder / "rng-3.json"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace('"convention": 1', '"convention": 0'), encoding="utf-8")
    assert "of convention 0 of steps" in findings() and "run 03_oracle_cutoffs again" in findings()
    path.write_text(text.replace(EMBEDDED[SMALL].sha256, "1" * 64), encoding="utf-8")
    assert "the weights are not those of" in findings()
    path.write_text(text[:-9], encoding="utf-8")
    assert "rng-3.json holds no steps" in findings()
    path.rename(folder / "rng-4.json")
    assert "rng-4.json" in findings()


@pytest.mark.parametrize("key", CORE)
def test_every_model_of_the_book_has_the_steps_of_its_tasks(key):
    for task, answer in explorer.ANSWERS.items():
        steps, record = explorer.read(explorer.path_of(STORE, key, task))
        assert record["weights_sha256"] == EMBEDDED[key].sha256
        assert len(steps) in (2, 3) and answer in cu.get_task(task).answers
        assert all(answer.startswith(step.prefix.removeprefix("␣")) for step in steps)


@pytest.mark.models
def test_the_committed_steps_are_what_the_weights_give(tmp_path):
    model = cu.load_model(SMALL)
    steps = explorer.keep(model, oracle_cutoffs.TASKS, reporting.end_policy(model, ""), tmp_path)
    for task, own in steps.items():
        stored, _ = explorer.read(explorer.path_of(STORE, SMALL, task))
        assert len(stored) == len(own) and all(map(explorer.alike, stored, own))
