"""torch's private database of the optimizers that it tests: their inputs, errors and schedulers."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import types
import unittest
import warnings
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec

import pytest
import torch

_USED = (
    "optim_db",
    "OptimizerErrorEnum",
    "get_error_inputs_for_all_optims",
    "_get_optim_inputs_including_global_cliquey_kwargs",
)


@cache
def database() -> types.ModuleType:
    """Return torch's private module of optimizers under test, or skip the test that wants it."""
    try:
        with _process_as_it_was(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = importlib.import_module("torch.testing._internal.common_optimizers")
    except ImportError as error:
        pytest.skip(f"this torch lacks the database of its optimizer tests: {error}")
    missing = [name for name in _USED if not hasattr(module, name)]
    if missing:
        pytest.skip(f"the database of this torch's optimizer tests has no {', '.join(missing)}")
    return module


@contextlib.contextmanager
def _process_as_it_was() -> Iterator[None]:
    """Undo what importing torch's test utilities changes for the tests of this whole process.

    They want a package for its TestCase, which a stand-in replaces; they load a hypothesis profile
    of their own, let nobody set a backend's flags any more, and name a cache in the environment.
    """
    profile = None
    if find_spec("hypothesis"):
        from hypothesis import settings

        profile = settings.get_current_profile_name()
    variables, stand_in = set(os.environ), types.ModuleType("expecttest")
    stand_in.TestCase = unittest.TestCase
    # Not attributes of torch.backends, which stands in front of the module that has them.
    backends, flag = torch.backends.flags_frozen.__globals__, "__allow_nonbracketed_mutation_flag"
    settable = backends.get(flag)
    wanted = not find_spec("expecttest")
    if wanted:
        sys.modules["expecttest"] = stand_in
    try:
        yield
    finally:
        if wanted:
            del sys.modules["expecttest"]
        if profile is not None:
            settings.load_profile(profile)
        if settable is not None:
            backends[flag] = settable
        for name in set(os.environ) - variables:
            del os.environ[name]
