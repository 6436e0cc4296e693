"""The flow in one direction, small modules, no hidden weight behind `import calib_utils`."""

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import calib_utils as cu

PACKAGE = Path(cu.__file__).parent
# A module may import only from those before it.
ORDER = (
    "errors",
    "paths",
    "files",
    "conventions",
    "recorded",
    "registry",
    "checkpoints",
    "tasks",
    "tries",
    "vocabulary",
    "prompts",
    "conversion",
    "weights",
    "sizes",
    "openset",
    "models",
    "starts",
    "scoring",
    "generation",
    "sweeps",
    "completions",
    "nodes",
    "ranking",
    "rules",
    "samplers",
    "processors",
    "parsing",
    "steps",
    "laws",
    "ranked",
    "metrics",
    "bootstrap",
    "pr_baselines",
    "pr_curves",
    "pr_depths",
    "split",
    "adaptive",
    "theory",
    "geometric",
    "conformance",
    "breakpoints",
    "piecewise",
    "curve_selection",
    "measure",
    "provenance",
    *("endpoint", "served"),
    "openended",
    "reference",
    "schema",
    "results",
    "kept_logits",
    "coverage",
    "store",
    "evaluation",
    *("explorer", "kept_steps"),
    "budgets",
    "embedders",
    "text_diversity",
    "table1",
    "table1_plan",
    "structure",
    "errata",
    "errata_theory",
    "errata_readings",
    "examples",
    "sampling",
    *("labels", "rubric", "chat", "judges"),
    *("gazetteer", "language", "agreement", "labelled"),
    *("verdicts", "sandbox_worker", "sandbox", "problems", "drawing", "programs"),
    *("program_measures", "repeats"),
    "controlled",
    *("open_plans", "order_study", "judge_study", "table1_texts", "table1_study"),
    "order_findings",
    *("beyond", "beyond_tables", "beyond_claims"),
    *("framework_study", "framework"),
    "logit_shape",
    "operating",
    "controls",
    "cutoffs",
    "sensitivity",
    "figures",
    "pr_figures",
    "beyond_figures",
    "controls_figures",
    "shape_figures",
    *("panel", "panel_findings", "panel_figures", "explorer_page"),
    "reporting",
    "origin",
    "theory_figures",
    "reproduce",
    "checks",
    "freshness",
    "runner",
    "forecast",
    *("page_figures", "book_pages", "book", "book_pdf"),
    "runs",
    "panel_commands",
    "__init__",
    "__main__",
)
TORCH = {
    *(
        "models",
        "conversion",
        "scoring",
        "ranking",
        "samplers",
        "processors",
    ),
    *("measure", "sampling"),
    *("reference", "starts", "generation", "embedders", "chat", "drawing", "table1_texts"),
}
# What a number passes through before it is a number of this code: inputs, identity, messages.
MAX_LINES = 300


def modules():
    return {path.stem: path for path in sorted(PACKAGE.glob("*.py"))}


def imports(name):
    """Names of the modules of any package that `name` imports, at any depth of its code."""
    for node in ast.walk(ast.parse(modules()[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative import"
            if node.module == "calib_utils":
                yield from (f"calib_utils.{alias.name}" for alias in node.names)
            else:
                yield node.module


def own_imports(name):
    own = {i.split(".")[1] for i in imports(name) if i.startswith("calib_utils.")}
    return own & set(modules())


def reachable(name):
    found = own_imports(name)
    return found.union(*map(reachable, found))


def test_every_module_has_its_place_in_the_order():
    assert set(modules()) <= set(ORDER), "add the new module to ORDER"
    assert len(set(ORDER)) == len(ORDER)


@pytest.mark.parametrize("name", modules())
def test_imports_point_one_way(name):
    later = own_imports(name) - set(ORDER[: ORDER.index(name)])
    assert not later, f"{name} imports {sorted(later)}, which come later in the flow"


@pytest.mark.parametrize("name", modules())
def test_modules_are_short_and_say_what_they_know(name):
    source = modules()[name].read_text(encoding="utf-8")
    assert len(source.splitlines()) < MAX_LINES
    assert ast.get_docstring(ast.parse(source))


def test_only_the_model_side_imports_torch():
    def heavy(name):
        return {"torch", "transformers"} & {i.split(".")[0] for i in imports(name)}

    assert {name for name in modules() if heavy(name)} <= TORCH


def test_only_the_weights_and_the_endpoint_talk_to_the_network():
    network = {"urllib", "http", "socket", "requests", "huggingface_hub", "openai"}
    found = {n for n in modules() if network & {i.split(".")[0] for i in imports(n)}}
    assert found == {"weights", "endpoint"}


def test_only_paths_reads_the_projects_environment_variables():
    for name, path in modules().items():
        if name != "paths":
            assert 'CALIB_UTILS_CACHE")' not in path.read_text(encoding="utf-8")


def test_nothing_is_unpickled_or_run_from_a_download():
    for name, path in modules().items():
        source = path.read_text(encoding="utf-8")
        assert "trust_remote_code=True" not in source, name
        assert 'trust_remote_code": True' not in source, name
        assert not {"pickle", "dill", "joblib"} & set(imports(name)), name
        assert "torch.load" not in source, name


@pytest.mark.parametrize("heavy", ["torch", "transformers", "numpy", "pandas", "matplotlib"])
def test_importing_the_package_is_light(heavy):
    code = f"import sys, calib_utils; sys.exit({heavy!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("name", cu.__all__)
def test_public_names_resolve_and_are_documented(name):
    found = getattr(cu, name)
    assert found.__doc__
    assert found.__module__.startswith("calib_utils.")
    assert name in dir(cu)


def test_the_public_names_of_the_readme_exist():
    wanted = {"load_model", "get_task", "Task", "NoCutoff", "TopK", "TopP", "MinP", "OracleSize"}
    assert wanted | {"evaluate", "CalibUtilsError"} <= set(cu.__all__)


def test_a_name_that_does_not_exist_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = cu.nothing


@pytest.mark.parametrize("name", [name for name in ORDER if not name.startswith("__")])
def test_public_functions_and_classes_have_docstrings(name):
    if name not in modules():
        return
    module = import_module(f"calib_utils.{name}")
    for attribute, found in vars(module).items():
        own = getattr(found, "__module__", None) == module.__name__
        if own and callable(found) and not attribute.startswith("_"):
            assert found.__doc__, f"{name}.{attribute}"
