"""A pytest plugin for nbval: its kernels are started as `runner` starts those of papermill."""

import tempfile
from contextlib import ExitStack

import nbval.kernel

from calib_utils.runner import kernel_channels

_folders = ExitStack()
_Manager = nbval.kernel.KernelManager  # an error here where nbval no longer starts kernels by it


def _manager(**arguments):
    folder = _folders.enter_context(tempfile.TemporaryDirectory())
    return _Manager(**kernel_channels(folder), **arguments)


nbval.kernel.KernelManager = _manager


def pytest_unconfigure():
    _folders.close()
