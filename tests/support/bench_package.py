"""Makes the checkout's bench/ and tools/ importable without putting the checkout on sys.path."""

import importlib.util
import sys
from pathlib import Path

for name in ("bench", "tools"):
    if name not in sys.modules:
        init = Path(__file__).resolve().parents[2] / name / "__init__.py"
        spec = importlib.util.spec_from_file_location(name, init)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
