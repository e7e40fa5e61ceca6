"""Running a real optimizer and the oracle of its case side by side, from the same stored state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from cases import Case, TensorCase, device_of
from stored import bits, decoded, encode_, sample, set_gradient
from tolerances import (
    assert_same_bits,
    assert_statistic_close,
    assert_step_close,
    assert_trajectory_close,
    assert_within,
    dtype_name,
    ulp,
)

from fused_optim import torch_compat

MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
STATISTICS = ("exp_avg_sq_row", "exp_avg_sq_col", "row_var", "col_var", "variance", "RMS")

CHAIN = 1.5
"""Four ulps are 4 to 8 times 2^-24 of a value. The roundings of a sum of squares, or of a square
after an L2 term, come to 6 at worst; four ulps at 1.5 times the value are never less than that."""


class Bench:
    """A list of tensors under one optimizer, with its state created.

    Attributes:
        case: what the optimizer is.
        tensors: what its parameters are.
        params: the parameters, in the same order. Those of equal options share a group.
        optimizer: the optimizer.
        rng: where random values come from.
        slack: by which the sizes are multiplied that statistics and Adafactor's updates are judged
            at: more than 1 where so many elements are tried that one meets the worst of all
            roundings. Of 1e8 updates some miss the bound by a tenth, eager's as well as kernels'.
    """

    def __init__(
        self,
        case: Case,
        tensors: Sequence[TensorCase],
        backend: str = "eager",
        *,
        seed: int = 0,
        **options: Any,
    ) -> None:
        self.case, self.tensors = case, list(tensors)
        self.slack = 1.0
        self.rng = np.random.default_rng(seed)
        self.params = [
            torch.nn.Parameter(torch.zeros(t.shape, dtype=t.dtype, device=device_of(backend)))
            for t in self.tensors
        ]
        groups: dict[str, dict[str, Any]] = {}
        for tensor, param in zip(self.tensors, self.params, strict=True):
            group = {"params": [], **tensor.group_options}
            groups.setdefault(str(tensor.group_options), group)["params"].append(param)
        self.optimizer = case.make(list(groups.values()), backend, **options)
        self.optimizer.init_state()

    def randomise(self, t: int) -> None:
        """Fill parameters and state with random values, as if stored by step ``t - 1``."""
        self.randomise_params()
        for p in self.params:
            state = self.optimizer.state[p]
            state["step"] = t - 1
            for key in (*MOMENTS, *STATISTICS):
                if key in state:
                    values = sample(self.rng, tuple(state[key].shape), -5, 1)
                    values = values if key == "exp_avg" else values**2
                    state[key].copy_(torch.from_numpy(np.array(values)))
        for group in self.optimizer.param_groups:
            if "iterations" in group:
                group["iterations"] = t - 1

    def randomise_params(self, low: float = -4, high: float = 1) -> None:
        """Fill parameters, their extra state included, with random values."""
        for tensor, p in zip(self.tensors, self.params, strict=True):
            value = sample(self.rng, tensor.shape, low, high)
            encode_(p, self.optimizer.state[p], value, tensor.mode)

    def value(self, index: int) -> np.ndarray:
        """Return the value that a parameter stands for, in float64."""
        param = self.params[index]
        return decoded(param, self.optimizer.state[param], self.tensors[index].mode)

    def snapshots(self) -> list[tuple[np.ndarray, dict[str, np.ndarray]]]:
        """Return what a step starts from, for every parameter."""
        return [self.snapshot(i) for i in range(len(self.params))]

    def snapshot(self, index: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return a parameter's value and its moments and statistics, in float64."""
        state = self.optimizer.state[self.params[index]]
        tensors = {key: state[key] for key in (*MOMENTS, *STATISTICS) if key in state}
        copies = {key: t.cpu().double().numpy().copy() for key, t in tensors.items()}
        return self.value(index), copies

    def set_gradients(self, low: float = -5, high: float = 1) -> list[np.ndarray]:
        """Give every parameter a random gradient; return what the update sees, in float64."""
        return [
            set_gradient(p, sample(self.rng, t.shape, low, high), t.grad_dtype or t.dtype)
            for t, p in zip(self.tensors, self.params, strict=True)
        ]

    def step_and_check(self, t: int, grads: Sequence[np.ndarray]) -> None:
        """Run step ``t`` and hold every parameter and state tensor to the oracle's.

        Args:
            t: the step count after this step.
            grads: what the oracle takes for gradients.
        """
        before = self.snapshots()
        self.optimizer.step()
        self.check(t, before, grads)

    def check(self, t: int, before: Sequence[Any], grads: Sequence[np.ndarray]) -> None:
        """Hold everything to the oracle's step ``t`` from ``before`` on, a list of snapshots."""
        for i, g in enumerate(grads):
            try:
                self._check(i, t, *before[i], g)
            except AssertionError as error:
                raise AssertionError(f"{self.tensors[i]}, step {t}: {error}") from None

    def _check(
        self, index: int, t: int, p: np.ndarray, state: dict[str, np.ndarray], g: np.ndarray
    ) -> None:
        tensor, param = self.tensors[index], self.params[index]
        assert self.optimizer.state[param]["step"] == t
        if p.size == 0:
            for key, value in self.snapshot(index)[1].items():
                assert_within(value, state[key], 0.0, f"{key} of an empty parameter")
            return
        details: dict[str, np.ndarray] = {}
        p64, state64 = self.case.step(p, g, state, t, tensor.dtype, details=details)
        update = details["update"] * (self.slack if self.case.family == "adafactor" else 1.0)
        if self.case.decays:  # the product with the decay factor may be a binade above the result
            update = update + np.abs(p) / 8
        self._check_param(index, p64, update)
        for key, expected in state64.items():
            self._check_state(index, key, expected, details.get(key))

    def _check_param(self, index: int, p64: np.ndarray, update: np.ndarray) -> None:
        tensor, param, kept = self.tensors[index], self.params[index], self.value(index)
        shown, decays = p64, self.case.decays
        if tensor.dtype is torch.float16:  # overflow stays visible
            shown = np.where(np.abs(p64) < 65520, p64, np.copysign(np.inf, p64))
        assert_step_close(param, shown, update, tensor.dtype, decays=decays)
        if tensor.mode in ("split", "master"):
            assert_step_close(kept, p64, update, "float32", decays=decays)
        elif tensor.mode == "kahan":
            # The compensation is at most half an ulp, and has as many bits as the parameter.
            name = dtype_name(tensor.dtype)
            lost = ulp(shown, name) * 2.0**-8 + ulp(0.0, name)
            bound = lost + 3 * ulp(p64, "float32") + 2.0**-21 * np.abs(update)
            assert_within(kept, shown, bound, "value with compensation")

    def _check_state(
        self, index: int, key: str, expected: np.ndarray, size: np.ndarray | None
    ) -> None:
        if key == "RMS" and not self.optimizer.param_groups[0]["scale_parameter"]:
            return
        actual = self.optimizer.state[self.params[index]][key]
        if key == "exp_avg" and self.case.family == "adafactor":  # an average of updates
            assert_step_close(actual, expected, size, actual.dtype)
            return
        size = np.abs(expected) if size is None else size
        if key == "RMS":  # squares below 1e-38 are lost
            size = np.maximum(size, 1e-19)
        if self.case.family == "adafactor" or self.case.optimizer is torch_compat.Adam:
            size = CHAIN * size
        size = self.slack * size
        assert_statistic_close(actual, expected, actual.dtype, size)

    def run_trajectory(self, steps: int, signal: Callable[[int], float] = lambda t: 1.0) -> None:
        """Run ``steps`` steps on noisy gradients and hold the parameters to the oracle's.

        Args:
            steps: how many.
            signal: factor of the gradients at each step.
        """
        self.randomise_params(-1, 0)
        start = [self.value(i) for i in range(len(self.params))]
        exact: list[tuple[np.ndarray, Any]] = [(p, {}) for p in start]
        waves = [self.rng.normal(size=t.shape) for t in self.tensors]
        for t in range(1, steps + 1):
            for i, (tensor, param) in enumerate(zip(self.tensors, self.params, strict=True)):
                noisy = signal(t) * (waves[i] + self.rng.normal(size=tensor.shape))
                g = set_gradient(param, noisy, tensor.grad_dtype or tensor.dtype)
                exact[i] = self.case.step(exact[i][0], g, exact[i][1], t, tensor.dtype)
            self.optimizer.step()
        for i, tensor in enumerate(self.tensors):
            assert_trajectory_close(
                self.params[i],
                exact[i][0],
                start[i],
                tensor.dtype,
                tensor.mode,
                steps=steps,
                bf16_moments=tensor.state_dtype is not torch.float32,
            )


def step_both(first: Bench, second: Bench, before_step: Callable[[], None] | None = None) -> None:
    """Run three steps of two benches on equal random parameters and gradients."""
    for bench in (first, second):
        bench.randomise_params(-1, 0)
    for _ in range(3):
        for bench in (first, second):
            bench.set_gradients(-1, 0)
        if before_step is not None:
            before_step()
        for bench in (first, second):
            bench.optimizer.step()


def assert_same_benches(first: Bench, second: Bench) -> None:
    for i, tensor in enumerate(first.tensors):
        p, q = first.params[i], second.params[i]
        assert (bits(p) == bits(q)).all(), tensor
        assert_same_bits(first.value(i), second.value(i), str(tensor))
        for key, value in second.optimizer.state[q].items():
            assert_same_bits(first.optimizer.state[p][key], value, key)
