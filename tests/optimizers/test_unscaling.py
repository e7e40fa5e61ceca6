"""What a gradient scaler hands to the step: a factor to divide out, and a reason to skip it."""

from __future__ import annotations

import copy

import pytest
import torch
from cases import DTYPE_MODES, ONE_OF_EACH, Case, TensorCase, device_of, each_backend, in_turns
from parity import Bench, assert_same_benches, step_both
from stored import bits
from tolerances import assert_same_bits

FLOAT64 = [TensorCase(s, torch.float64) for s in ((3, 4), (7,), (0,))]
SIXTEEN_BIT = [TensorCase(s, d, m) for d, m in DTYPE_MODES if m != "none" for s in ((3, 2), (7,))]
each_case = pytest.mark.parametrize("case", ONE_OF_EACH, ids=str)


@each_backend
@pytest.mark.parametrize("limit", [None, 0.5])
@each_case
def test_grad_scale_is_divided_out(case: Case, limit: float | None, backend: str) -> None:
    """By a power of two, as scalers use: then no bit changes."""
    tensors = in_turns(SIXTEEN_BIT, backend, ONE_OF_EACH.index(case), of=7)
    scaled = Bench(case, tensors, backend, max_grad_norm=limit)
    plain = Bench(case, tensors, backend, max_grad_norm=limit)

    def scale() -> None:
        for p in scaled.params:
            p.grad.mul_(64.0)
        scaled.optimizer.grad_scale = torch.tensor(64.0, device=device_of(backend))
        scaled.optimizer.found_inf = torch.tensor(0.0, device=device_of(backend))

    step_both(scaled, plain, before_step=scale)
    assert_same_benches(scaled, plain)


@each_backend
@pytest.mark.parametrize("limit", [None, 0.5])
@each_case
def test_found_inf_leaves_everything_as_it_was(
    case: Case, limit: float | None, backend: str
) -> None:
    tensors = in_turns(SIXTEEN_BIT, backend, ONE_OF_EACH.index(case), of=7)
    tensors = [*tensors, *FLOAT64, TensorCase((3, 2), torch.float32)]
    bench = Bench(case, tensors, backend, max_grad_norm=limit)
    bench.randomise(3)
    params = [p.detach().clone() for p in bench.params]
    states = [copy.deepcopy(bench.optimizer.state[p]) for p in bench.params]
    bench.set_gradients(-1, 0)
    bench.optimizer.found_inf = torch.tensor(1.0, device=device_of(backend))
    assert bench.optimizer.step(lambda: 1.25) == 1.25
    for i, p in enumerate(bench.params):
        assert (bits(p) == bits(params[i])).all()
        for key, value in bench.optimizer.state[p].items():
            assert_same_bits(value, states[i][key], key)
    bench.optimizer.found_inf = torch.tensor(0.0, device=device_of(backend))
    bench.optimizer.step()
    assert all(bench.optimizer.state[p]["step"] == 3 for p in bench.params)
