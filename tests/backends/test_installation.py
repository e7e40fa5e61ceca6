"""What `python -m fused_optim` says of the extensions: built, left out, why, and what mends it."""

from __future__ import annotations

import importlib.metadata
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import fused_optim
from fused_optim.backends import installation

NOW = sys.implementation.cache_tag


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """What is said of both extensions, by the record, the files and the GPUs of a machine."""

    def of(
        cuda: dict[str, Any] | None = None,
        cpu: dict[str, Any] | None = None,
        *,
        here: tuple[str, ...] = (),
        gpus: tuple[str, ...] = (),
        python: str = NOW,
        record: str | None = None,
        checkout: bool = False,
    ) -> tuple[installation.Extension, installation.Extension]:
        package = tmp_path / "fused_optim"
        package.mkdir(exist_ok=True)
        if checkout:
            (tmp_path / "setup.py").write_text("")
        extensions = {k: v for k, v in (("CUDA", cuda), ("CPU", cpu)) if v is not None}
        text = record or json.dumps({"python": python, "extensions": extensions})
        if record != "":
            (package / "_build.json").write_text(text)
        monkeypatch.setattr(installation, "PACKAGE", package)
        monkeypatch.setattr(installation, "RECORD", package / "_build.json")
        monkeypatch.setattr(installation, "_gpus", lambda: gpus)
        found = {f"fused_optim.{name}": object() for name in here}
        monkeypatch.setattr(installation.importlib.util, "find_spec", found.get)
        both = installation.extensions()
        return both["cuda"], both["cpu"]

    return of


def missing(cause: str, reason: str = "because") -> dict[str, Any]:
    return {"built": False, "reason": reason, "cause": cause}


def test_what_was_built_and_for_which(says) -> None:
    cuda, cpu = says(
        {"built": True, "for": ["sm_90", "compute_75"], "unknown": []},
        {"built": True, "for": ["x86-64-v2", "x86-64-v3"]},
        here=("_C", "_cpu"),
    )
    assert cuda == installation.Extension(True, "built for sm_90, compute_75")
    assert cpu == installation.Extension(True, "built for x86-64-v2, x86-64-v3")


@pytest.mark.parametrize(
    ("cause", "gpus", "command"),
    [
        (
            "compiler",
            (),
            "pip install nvidia-cuda-nvcc nvidia-cuda-runtime nvidia-cuda-crt nvidia-cuda-cccl "
            "nvidia-nvvm && FUSED_OPTIM_CUDA=1 FUSED_OPTIM_CUDA_ARCHS='9.0' pip install ",
        ),
        ("gpu", (), "FUSED_OPTIM_CUDA_ARCHS='9.0' pip install "),
        ("gpu", ("8.0", "12.0"), "FUSED_OPTIM_CUDA_ARCHS='8.0;12.0' pip install "),
        ("architectures", (), "FUSED_OPTIM_CUDA_ARCHS=all pip install "),
        ("architectures", ("9.0",), "FUSED_OPTIM_CUDA_ARCHS='9.0' pip install "),
        ("compilation", (), "FUSED_OPTIM_CUDA=1 pip install -v "),
        ("unwanted", (), "FUSED_OPTIM_CUDA=1 pip install "),
        ("platform", (), None),
    ],
)
def test_why_there_are_no_cuda_kernels(says, cause: str, gpus: tuple, command: str | None) -> None:
    cuda, _ = says(missing(cause), gpus=gpus)
    assert (cuda.built, cuda.says) == (False, "not built: because")
    if command is None:
        assert cuda.remedy is None
    else:
        assert cuda.remedy == f"{command}--no-deps --no-cache-dir --force-reinstall ."


@pytest.mark.parametrize(
    ("cause", "command"),
    [
        ("compiler", "apt-get install -y g++ && FUSED_OPTIM_CPU=1 pip install "),
        ("compilation", "FUSED_OPTIM_CPU=1 pip install -v "),
        ("unwanted", "FUSED_OPTIM_CPU=1 pip install "),
        ("platform", None),
    ],
)
def test_why_there_are_no_cpu_kernels(says, cause: str, command: str | None) -> None:
    _, cpu = says(cpu=missing(cause))
    assert (cpu.built, cpu.says) == (False, "not built: because")
    assert (cpu.remedy or "None").startswith(str(command))


def test_a_checkout_is_installed_where_it_lies(says, tmp_path: Path) -> None:
    cuda, _ = says(missing("unwanted"), checkout=True)
    assert cuda.remedy == f"FUSED_OPTIM_CUDA=1 pip install --no-deps -e {tmp_path}"


def test_architectures_that_the_compiler_does_not_know(says) -> None:
    noted = {"built": True, "for": ["sm_90"], "unknown": ["130", "52"]}
    cuda, _ = says(noted, here=("_C",))
    assert cuda.built and "no such architecture: 130, 52" in cuda.says
    assert cuda.remedy.startswith("FUSED_OPTIM_CUDA_ARCHS=all pip install ")
    assert says(noted, here=("_C",), gpus=("9.0",))[0].remedy is None  # what is here is served


@pytest.mark.parametrize(
    ("codes", "gpu", "runs"),
    [
        (["sm_90"], "9.0", True),
        (["sm_80"], "8.6", True),
        (["sm_86"], "8.0", False),
        (["sm_90"], "10.0", False),
        (["sm_80", "compute_75"], "12.1", True),
        (["compute_90"], "8.0", False),
    ],
)
def test_a_gpu_for_which_nothing_was_built(says, codes: list, gpu: str, runs: bool) -> None:
    noted = {"built": True, "for": codes, "unknown": []}
    cuda, _ = says(noted, here=("_C",), gpus=(gpu,))
    assert (cuda.remedy is None) == runs
    assert (f"this machine's GPU is sm_{gpu.replace('.', '')}, for which" in cuda.says) != runs
    if not runs:
        assert cuda.remedy.startswith(f"FUSED_OPTIM_CUDA_ARCHS='{gpu}' pip install ")


def test_files_that_are_gone(says) -> None:
    built = {"built": True, "for": ["sm_90"]}
    cuda, cpu = says(built, built)
    for one in (cuda, cpu):
        assert one.says.endswith("its file is not here, somebody removed it") and not one.built
        assert one.remedy
    cuda, _ = says(built, python="cpython-27")
    assert f"for cpython-27, and its file is not here: this is {NOW}" in cuda.says


@pytest.mark.parametrize(
    ("record", "fault"),
    [
        ("", "nothing was installed from this folder"),
        ("{", "what the build wrote can't be read"),
        ("[]", "what the build wrote is no record of it"),
    ],
)
def test_no_record(says, record: str, fault: str) -> None:
    cuda, cpu = says(record=record, here=("_cpu",))
    assert f"not built; {fault}" in cuda.says and cuda.remedy
    assert cpu == installation.Extension(True, "built; for what is not recorded")


def test_a_build_that_was_cut_off(says) -> None:
    cuda, _ = says({"for": ["sm_90"]})
    assert "did not say how it ended" in cuda.says and cuda.remedy


def test_the_report_shows_what_mends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = {"cuda": installation.Extension(False, "not built: luck", "mend it")}
    monkeypatch.setattr(installation, "extensions", lambda: broken)
    monkeypatch.setattr(installation, "hidden", lambda: "a folder hides another")
    text = fused_optim.info()
    assert "\n  cuda  not built: luck\n        to mend it: mend it\n  a folder hides" in text


def test_a_folder_that_hides_what_is_installed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    other = tmp_path / "site" / "fused_optim"
    distribution = SimpleNamespace(locate_file=lambda name: tmp_path / "site" / name)
    monkeypatch.setattr(importlib.metadata, "distributions", lambda name: [distribution])
    assert installation.hidden() is None  # an editable installation has no such folder
    other.mkdir(parents=True)
    (other / "__init__.py").write_text("")
    assert f"hides what is installed in {other}: " in installation.hidden()
    monkeypatch.setattr(installation, "PACKAGE", other)
    assert installation.hidden() is None


def test_gpus_are_those_that_torch_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda i: ((9, 0), (8, 0), (9, 0))[i])
    assert installation._gpus.__wrapped__() == ("9.0", "8.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert installation._gpus.__wrapped__() == ()
