"""Which optimizers are compared with which, and what ratio each comparison must reach."""

from dataclasses import dataclass

from bench.goals import GOALS, Goal


@dataclass(frozen=True)
class Pair:
    """This package's setup beside another's; equal semantics must agree before they are timed."""

    ours: str
    baseline: str
    kind: str  # of bench.results.KINDS
    dtypes: tuple[str, ...] = ("fp32",)
    targets: tuple[str, ...] = ()  # names of goals, of which the first that fits a case holds

    def goal(self, device: str, shapes: str, dtype: str) -> Goal | None:
        for goal in map(GOALS.__getitem__, self.targets):
            if device == goal.device and shapes in goal.shapes and dtype in goal.dtypes:
                return goal
        return None

    def __str__(self) -> str:
        return f"{self.ours} vs {self.baseline}"


_ADAMW = ("adamw large", "adamw many small", "adamw elsewhere", "cpu torch adamw")
_ADAFACTOR = ("adafactor large", "adafactor small", "cpu adafactor")
_ADAFACTOR_T5 = (*_ADAFACTOR, "cpu adafactor small")
_TORCH_ADAFACTOR = ("torch adafactor large", "torch adafactor small")
_FOREACH = ("cpu adamw",)

_DEFAULT, _BYTES, _SEMANTICS = "default", "equal bytes", "equal semantics"
_BF16 = ("bf16",)
_BOTH = ("fp32", "bf16")
_REMAINDERS = "TransformerEngine FusedAdam remainders"

PAIRS: tuple[Pair, ...] = (
    # The same update.
    Pair("torch_compat.AdamW", "torch AdamW fused", _SEMANTICS, targets=_ADAMW),
    Pair("torch_compat.AdamW nearest", "torch AdamW fused", _SEMANTICS, _BF16, _ADAMW),
    Pair("torch_compat.AdamW", "torch AdamW foreach", _SEMANTICS),
    Pair("torch_compat.AdamW", "torch AdamW for-loop", _SEMANTICS),
    Pair("torch_compat.AdamW amsgrad", "torch AdamW fused amsgrad", _SEMANTICS),
    Pair("torch_compat.AdamW clipped", "torch AdamW fused clipped", _SEMANTICS),
    Pair("torch_compat.Adam", "torch Adam fused", _SEMANTICS),
    Pair("Lion", "for-loop Lion", _SEMANTICS),
    Pair("Adafactor", "transformers Adafactor", _SEMANTICS, targets=_ADAFACTOR),
    Pair("Adafactor T5", "transformers Adafactor T5", _SEMANTICS, targets=_ADAFACTOR_T5),
    Pair("Adafactor T5 nearest", "transformers Adafactor T5", _SEMANTICS, _BF16, _ADAFACTOR),
    Pair("Adafactor beta1", "transformers Adafactor beta1", _SEMANTICS),
    Pair("Adafactor clipped", "transformers Adafactor clipped", _SEMANTICS),
    Pair("torch_compat.Adafactor", "torch Adafactor", _SEMANTICS, targets=_TORCH_ADAFACTOR),
    Pair("torch_compat.Adafactor", "torch Adafactor foreach", _SEMANTICS),
    # As many bytes of parameter and state, but these round so that small updates are kept.
    Pair("torch_compat.AdamW", "torch AdamW fused", _BYTES, _BF16, _ADAMW),
    Pair("Adafactor T5 stochastic", "transformers Adafactor T5", _BYTES, _BF16, _ADAFACTOR),
    Pair("Adafactor stochastic", "transformers Adafactor", _BYTES, _BF16, _ADAFACTOR),
    Pair("torch_compat.Adafactor", "torch Adafactor", _BYTES, _BF16, _TORCH_ADAFACTOR),
    Pair("AdamW", "bitsandbytes AdamW", _BYTES),
    Pair("AdamW kahan bf16-moments", "optimi AdamW", _BYTES, _BF16),
    Pair("AdamW stochastic bf16-moments", "torchao AdamW stochastic", _BYTES, _BF16),
    Pair("AdamW nearest", "bitsandbytes AdamW", _BYTES, _BF16),
    Pair("AdamW nearest", "apex FusedAdam", _BYTES, _BF16),
    Pair("AdamW", _REMAINDERS, _BYTES, _BF16),
    Pair("AdamW split bf16-moments", f"{_REMAINDERS} bf16-moments", _BYTES, _BF16),
    Pair("AdamW master", "TransformerEngine FusedAdam master", _BYTES, _BF16),
    # As they come.
    Pair("AdamW", "torch AdamW foreach", _DEFAULT, _BOTH, _FOREACH),
    Pair("AdamW", "torch AdamW fused", _DEFAULT, _BOTH),
    Pair("torch_compat.AdamW", "torch AdamW foreach", _DEFAULT, _BF16),
    Pair("AdamW clipped", "torch AdamW foreach clipped", _DEFAULT, _BOTH),
    Pair("AdamWeightDecay", "torch AdamW fused", _DEFAULT),
    Pair("Lion", "bitsandbytes Lion", _BYTES),
    Pair("Lion", "for-loop Lion", _DEFAULT, _BF16),
    Pair("Adafactor", "transformers Adafactor", _DEFAULT, _BF16),
    Pair("Adafactor T5", "transformers Adafactor T5", _DEFAULT, _BF16),
    Pair("AdamW", "optimi AdamW", _DEFAULT, _BOTH),
    Pair("AdamW", "torchao AdamW8bit", _DEFAULT, _BOTH),
    Pair("AdamW", "torchao AdamWFp8", _DEFAULT, _BOTH),
    Pair("AdamW", "bitsandbytes AdamW8bit", _DEFAULT, _BOTH),
    Pair("AdamW", "FlashAdamW", _DEFAULT, _BOTH),
    Pair("AdamW", "apex FusedAdam", _DEFAULT, _BOTH),
    Pair("AdamW", "TransformerEngine FusedAdam", _DEFAULT, _BOTH),
)
"""Every comparison that is made."""
