"""Makes the checkout's bench/ importable without putting the checkout on sys.path."""

import importlib.util
import sys
from pathlib import Path

if "bench" not in sys.modules:
    init = Path(__file__).resolve().parents[1] / "bench" / "__init__.py"
    spec = importlib.util.spec_from_file_location("bench", init)
    sys.modules["bench"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["bench"])
