"""What installing built here, what it left out, why, and the command that mends it.

pip hides what a build prints, so ``setup.py`` writes it into a file beside the modules.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import torch

PACKAGE = Path(__file__).resolve().parents[1]
RECORD = PACKAGE / "_build.json"

EXTENSIONS = {"cuda": ("CUDA", "fused_optim._C"), "cpu": ("CPU", "fused_optim._cpu")}
"""By a compiled backend: what ``setup.py`` calls its extension, and the module that it is."""

_NVCC = (
    "pip install nvidia-cuda-nvcc nvidia-cuda-runtime nvidia-cuda-crt nvidia-cuda-cccl "
    "nvidia-nvvm && "
)
_OTHER_ARCHITECTURES = "FUSED_OPTIM_CUDA_ARCHS=all "


@dataclasses.dataclass(frozen=True, slots=True)
class Extension:
    """What became of one extension.

    Attributes:
        built: whether it is here.
        says: for what it was built, or why it is not here.
        remedy: the command that would build it, or build it for this machine; None without need.
    """

    built: bool
    says: str
    remedy: str | None = None


def extensions() -> dict[str, Extension]:
    """Return what became of the extension of each compiled backend."""
    record, fault = _record()
    found = {}
    for backend, (what, module) in EXTENSIONS.items():
        noted = record.get("extensions", {}).get(what)
        if importlib.util.find_spec(module) is not None:
            found[backend] = _built(backend, noted if noted and noted.get("built") else None)
        elif fault is not None:
            found[backend] = Extension(False, f"not built; {fault}", _install())
        else:
            found[backend] = _missing(what, noted or {}, record.get("python"))
    return found


def hidden() -> str | None:
    """Return what to do where a folder hides another installation of this package, else None.

    Python puts the folder that a program is started from, or lies in, before what is installed.
    """
    for distribution in importlib.metadata.distributions(name="fused_optim"):
        other = Path(str(distribution.locate_file("fused_optim"))).resolve()
        if other != PACKAGE and (other / "__init__.py").is_file():
            return (
                f"{PACKAGE} was imported, and hides what is installed in {other}: Python puts the "
                "folder of a script, or the one it was started in, first. Start it in another "
                f"folder, or install the folder itself: pip install --no-deps -e {PACKAGE.parent}"
            )
    return None


def _record() -> tuple[dict[str, Any], str | None]:
    """Return what the build wrote, and why there is nothing if that is so."""
    try:
        found = json.loads(RECORD.read_text())
    except FileNotFoundError:
        return {}, "nothing was installed from this folder, so no build has said why"
    except (OSError, ValueError) as error:
        return {}, f"what the build wrote can't be read ({error})"
    if not isinstance(found, dict) or not isinstance(found.get("extensions"), dict):
        return {}, "what the build wrote is no record of it"
    return found, None


def _built(backend: str, noted: dict[str, Any] | None) -> Extension:
    """Return what is said of an extension that is here."""
    if noted is None:
        says = "built; for what is not recorded"
    else:
        says = f"built for {', '.join(noted.get('for', ()))}"
    unknown = noted.get("unknown") if noted else None
    if unknown:
        says += f"; left out, as the compiler knows no such architecture: {', '.join(unknown)}"
    gpus = _gpus() if backend == "cuda" else ()
    if backend != "cuda" or not (unknown or gpus):
        return Extension(True, says)
    unmet = [gpu for gpu in gpus if noted and not _runs(gpu, noted.get("for", ()))]
    if unmet:
        says += f"; this machine's GPU is sm_{unmet[0].replace('.', '')}, for which it was not"
        return Extension(True, says, _install(f"FUSED_OPTIM_CUDA_ARCHS='{';'.join(gpus)}' "))
    return Extension(True, says, _install(_OTHER_ARCHITECTURES) if unknown and not gpus else None)


def _missing(what: str, noted: dict[str, Any], python: str | None) -> Extension:
    """Return what is said of an extension that is not here, though the build left a record."""
    if noted.get("built"):
        now = sys.implementation.cache_tag
        says = f"it was built, for {python}, and its file is not here"
        says += f": this is {now}" if python != now else ", somebody removed it"
        return Extension(False, says, _install())
    reason = noted.get("reason", "the build began and did not say how it ended")
    return Extension(False, f"not built: {reason}", _remedy(what, noted.get("cause")))


def _remedy(what: str, cause: str | None) -> str | None:
    """Return the command for a cause that ``setup.py`` has noted."""
    insist = f"FUSED_OPTIM_{what}=1 "
    architectures = f"FUSED_OPTIM_CUDA_ARCHS='{';'.join(_gpus()) or '9.0'}' "
    if cause == "platform":
        return None
    if cause == "compiler":
        before = _NVCC if what == "CUDA" else "apt-get install -y g++ && "
        return before + _install(insist + (architectures if what == "CUDA" else ""))
    if cause == "gpu":
        return _install(architectures)
    if cause == "architectures":
        return _install(architectures if _gpus() else _OTHER_ARCHITECTURES)
    if cause == "compilation":
        return _install(insist, "-v ")  # which shows what the compiler said
    return _install(insist)


def _install(before: str = "", options: str = "") -> str:
    """Return the command that installs this package anew, from its checkout if that is here."""
    root = PACKAGE.parent
    if (root / "setup.py").is_file():
        return f"{before}pip install {options}--no-deps -e {root}"
    return f"{before}pip install {options}--no-deps --no-cache-dir --force-reinstall ."


@functools.cache
def _gpus() -> tuple[str, ...]:
    """Return the compute capabilities of the NVIDIA GPUs that torch sees, as "9.0"."""
    if torch.version.cuda is None or not torch.cuda.is_available():
        return ()
    found = (torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count()))
    return tuple(dict.fromkeys(f"{major}.{minor}" for major, minor in found))


def _runs(gpu: str, codes: list[str]) -> bool:
    """Return whether kernels of some codes run on a GPU: ``sm_90``, or the PTX ``compute_75``."""
    major, minor = map(int, gpu.split("."))
    for code in codes:
        kind, _, number = code.partition("_")
        version = int(number[:-1]), int(number[-1])
        if version <= (major, minor) and (kind == "compute" or version[0] == major):
            return True
    return False
