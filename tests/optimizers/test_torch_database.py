"""What importing torch's test utilities changes for the tests of a whole process is undone."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch_database import database


def test_it_knows_the_optimizers_that_are_replaced_here():
    names = {info.optim_cls.__name__ for info in database().optim_db}
    assert {"Adam", "AdamW", "Adafactor"} <= names


def test_importing_it_leaves_flags_that_can_be_set():
    database()
    assert find_spec("expecttest") or "expecttest" not in sys.modules
    torch.backends.cudnn.deterministic = torch.backends.cudnn.deterministic


def test_importing_it_leaves_hypothesis_its_profile():
    hypothesis = pytest.importorskip("hypothesis")
    database()
    profile = "ci" if os.environ.get("CI") else "local"
    assert hypothesis.settings.get_current_profile_name() == profile


@pytest.mark.long
def test_importing_it_leaves_the_environment():
    script = "import os, torch, torch_database; before = set(os.environ); torch_database.database()"
    path = os.pathsep.join(
        [str(Path(__file__).parents[1] / "support"), os.environ.get("PYTHONPATH", "")]
    )
    here = {**os.environ, "PYTHONPATH": path}
    here.pop("TORCHINDUCTOR_CACHE_DIR", None)
    script += "; assert set(os.environ) == before, set(os.environ) - before"
    subprocess.run([sys.executable, "-c", script], env=here, check=True)
