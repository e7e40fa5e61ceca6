"""Fused optimizers for large-model training in PyTorch.

`AdamW`, `Adafactor` and `AdamWeightDecay` have the semantics of the transformers library,
`fused_optim.torch_compat` has those of ``torch.optim``, and `Lion` is as its paper has it;
`fused_optim.schedules` holds the learning-rate schedules. ``python -m fused_optim`` says which
backend they will use, and why.
"""

import pathlib as _pathlib

from fused_optim import schedules, torch_compat
from fused_optim._version import __version__
from fused_optim.backends import diagnostics
from fused_optim.optimizers.adafactor import Adafactor
from fused_optim.optimizers.adamw import AdamW
from fused_optim.optimizers.float32_gradients import Float32Gradients
from fused_optim.optimizers.gradient_accumulator import GradientAccumulator
from fused_optim.optimizers.in_backward import step_in_backward
from fused_optim.optimizers.lion import Lion
from fused_optim.optimizers.param_groups import param_groups_weight_decay
from fused_optim.optimizers.tf_compat import AdamWeightDecay, create_optimizer
from fused_optim.schedules import *  # noqa: F403

_OPTIMIZERS = (
    AdamW,
    Adafactor,
    AdamWeightDecay,
    Lion,
    torch_compat.AdamW,
    torch_compat.Adam,
    torch_compat.Adafactor,
)


def info() -> str:
    """Return a report of versions, devices and the backend of each optimizer, for a bug report.

    Raises:
        ValueError: the environment variable ``FUSED_OPTIM_BACKEND`` names no backend.
    """
    return diagnostics.report(_OPTIMIZERS)


__all__ = [
    "Adafactor",
    "AdamW",
    "AdamWeightDecay",
    "Float32Gradients",
    "GradientAccumulator",
    "Lion",
    "__version__",
    "create_optimizer",
    "info",
    "param_groups_weight_decay",
    "schedules",
    "step_in_backward",
    "torch_compat",
    *schedules.__all__,
]

_ROOT = _pathlib.Path(__file__).resolve().parents[1]
if (_ROOT / "csrc" / "ops.h").is_file():
    # In a checkout the Triton kernels lie beside this folder, installed or not.
    __path__.append(str(_ROOT))  # noqa: F405
