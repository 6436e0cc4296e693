"""What an import does: `import calib_utils` loads nothing, no module fetches or leaves a file.

Each in a fresh interpreter with a home, a cache and a temporary folder of its own; an audit hook of
Python sees every name looked up, every connection and every file opened for writing.
"""

import os
import subprocess
import sys

import pytest

GUARD = """
import sys
from os.path import abspath

def guard(event, arguments):
    if event in ("socket.connect", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname"):
        raise AssertionError(f"import reached for the network: {event} {arguments}")
    if event == "open" and not isinstance(arguments[0], int):
        path, mode, flags = arguments
        writes = any(c in mode for c in "wax+") if mode else flags & 3
        if writes and path != "/dev/null" and not abspath(path).startswith(HOME):
            raise AssertionError(f"import writes {path}")

sys.addaudithook(guard)
"""
EVERY_MODULE = """
import importlib, pkgutil, calib_utils
for module in pkgutil.walk_packages(calib_utils.__path__, "calib_utils."):
    if not module.name.endswith(".__main__"):
        importlib.import_module(module.name)
assert {"torch", "matplotlib", "pandas"} <= set(sys.modules)
"""


def python(home, code):
    """Runs code behind the guard, with nothing told to stay offline."""
    unset = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "XDG_CACHE_HOME", "MPLCONFIGDIR", "HF_HOME")
    own = {name: str(home) for name in ("HOME", "TMPDIR", "CALIB_UTILS_CACHE")}
    environment = {k: v for k, v in os.environ.items() if k not in unset} | own
    environment |= {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    code = f"HOME = {str(home)!r}\n{GUARD}\n{code}"
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_importing_every_module_fetches_nothing_and_leaves_nothing(tmp_path):
    done = python(tmp_path, EVERY_MODULE)
    assert done.returncode == 0, done.stderr
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.parent.name for path in left} <= {"matplotlib"}, "its list of the system's fonts"


def test_importing_the_package_loads_the_standard_library_alone(tmp_path):
    done = python(
        tmp_path,
        "before = set(sys.modules)\n"
        "import calib_utils\n"
        "loaded = {name.split('.')[0] for name in set(sys.modules) - before}\n"
        "assert loaded - set(sys.stdlib_module_names) == {'calib_utils'}, loaded\n",
    )
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("import socket; socket.create_connection(('127.0.0.1', 9))", "reached for the network"),
        ("import socket; socket.getaddrinfo('localhost', 80)", "reached for the network"),
        ("open('/dev/../tmp/calib-utils-guard', 'w')", "import writes"),
        ("import os; os.open('/tmp/calib-utils-guard', os.O_WRONLY | os.O_CREAT)", "import writes"),
    ],
)
def test_the_guard_guards(tmp_path, code, told):
    done = python(tmp_path, code)
    assert done.returncode
    assert told in done.stderr
