"""What the linter of import contracts (`lint-imports`) does not see: weight, secrets, names."""

import ast
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

import calib_utils as cu

PACKAGE = Path(cu.__file__).parent
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if "data" not in path.relative_to(PACKAGE).parts
}
ROOMS = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))


@cache
def imports(name):
    """What a module imports, at any depth of its code: pairs of module and name."""
    found = []
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative import"
            found += [(node.module, alias.name) for alias in node.names]
    return found


def room_of(name):
    return name.split(".")[0] if "." in name else ""


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_says_what_it_knows_and_what_it_does_not(room):
    said = ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text("utf-8")))
    assert "Knows" in said


@pytest.mark.parametrize("name", MODULES)
def test_rooms_do_not_reach_into_each_others_private_names(name):
    """An import, or an attribute of an imported module of another room, that begins with `_`."""
    aliases = {}
    for module, attribute in imports(name):
        if not module.startswith("calib_utils") or not attribute:
            continue
        inside = f"{module}.{attribute}".removeprefix("calib_utils.")
        if inside in MODULES:
            aliases[attribute] = inside
        elif attribute.startswith("_"):
            source = module.removeprefix("calib_utils.")
            assert room_of(source) == room_of(name), f"{name}: {attribute} of {source}"
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            source = aliases.get(node.value.id)
            if source and node.attr.startswith("_") and not node.attr.startswith("__"):
                assert room_of(source) == room_of(name), f"{name}: {node.attr} of {source}"


@pytest.mark.parametrize("name", [n for n in MODULES if n.split(".")[0] in ("core", "figures")])
def test_core_and_figures_load_no_transformers(name):
    assert not [m for m, _ in imports(name) if m.split(".")[0] == "transformers"] or name in {
        "core.processors",
        "core.prompts",
    }


def test_only_weights_and_servers_talk_to_the_network():
    network = {"urllib", "http", "socket", "requests", "huggingface_hub", "openai", "httpx"}
    found = {n for n in MODULES if network & {m.split(".")[0] for m, _ in imports(n)}}
    assert found <= {"models.weights", "models.endpoint"}, found


@pytest.mark.parametrize("name", MODULES)
def test_nothing_is_unpickled_or_run_from_a_download(name):
    source = MODULES[name].read_text(encoding="utf-8")
    assert "trust_remote_code=True" not in source
    assert 'trust_remote_code": True' not in source
    if name != "figures.__init__":  # pickles what it has just made, to copy it
        assert not {"pickle", "dill", "joblib"} & {m for m, _ in imports(name)}
    assert "torch.load" not in source


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


@pytest.mark.parametrize("name", [n for n in MODULES if not n.split(".")[-1].startswith("_")])
def test_public_functions_and_classes_have_docstrings(name):
    module = import_module(f"calib_utils.{name}")
    for attribute, found in vars(module).items():
        own = getattr(found, "__module__", None) == module.__name__
        if own and callable(found) and not attribute.startswith("_"):
            assert found.__doc__, f"{name}.{attribute}"
