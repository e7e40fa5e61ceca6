"""Builds the package for gpu-check: ``python -m tools.gpu_check.build FOLDER FILE [ARCHITECTURE]``.

With an architecture the CUDA extension is required. Where it does not compile, the package is
built without it after all, so that the stages after this one can test what is left.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bench import ROOT


def build(site: Path, architecture: str | None) -> dict[str, Any]:
    shutil.rmtree(site, ignore_errors=True)
    from_scratch = architecture is not None and not list((ROOT / "build/cuda").glob("*/*.o"))
    request = {"FUSED_OPTIM_CUDA": "1" if architecture else "0"}
    if architecture:
        request["FUSED_OPTIM_CUDA_ARCHS"] = architecture
        usual = Path("/usr/local/cuda")  # which users rarely have on PATH
        if not shutil.which("nvcc") and (usual / "bin" / "nvcc").exists():
            request["CUDA_HOME"] = os.environ.get("CUDA_HOME", str(usual))
    begin = time.monotonic()
    done = _setup(site, request)
    seconds = time.monotonic() - begin
    if done != 0 and architecture:
        print("the CUDA extension does not build; building without it", flush=True)
        _setup(site, {"FUSED_OPTIM_CUDA": "0"})
    extensions = sorted((site / "fused_optim").glob("_C*.so"))
    return {
        "seconds": round(seconds, 1),
        "from_scratch": from_scratch,
        "built": done == 0,
        "architecture": architecture,
        "extension_bytes": extensions[0].stat().st_size if extensions else None,
    }


def _setup(site: Path, request: dict[str, str]) -> int:
    # Temporary files beside the result: several builds may run in one checkout.
    folders = ["--build-base", str(site.parent / "setup"), "--build-lib", str(site)]
    command = [sys.executable, "setup.py", "-q", "build", *folders]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **request}).returncode


def main(arguments: list[str]) -> int:
    built = build(Path(arguments[0]), arguments[2] if arguments[2:] else None)
    Path(arguments[1]).write_text(json.dumps(built))
    print(built)
    return int(not built["built"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
