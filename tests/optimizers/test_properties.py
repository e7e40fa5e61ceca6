"""Any list of tensors trains as its tensors do alone, and a step needs next to no memory."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from cases import (
    DTYPE_MODES,
    ONE_OF_EACH,
    STATE_DTYPES,
    Case,
    TensorCase,
    device_of,
    each_backend,
    each_backend_slowly,
    interpreted,
)
from parity import Bench
from stored import bits
from tolerances import as_float64, assert_same_bits, assert_within, dtype_name, ulp
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fused_optim.backends.eager import torch_fused

hypothesis = pytest.importorskip("hypothesis")
st = hypothesis.strategies
each_case = pytest.mark.parametrize("case", ONE_OF_EACH, ids=str)
SAME_BACKEND = [hypothesis.HealthCheck.function_scoped_fixture]  # for every example

# --- lists of tensors -----------------------------------------------------------------------------


def _channels_last(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


def _unaligned(x: torch.Tensor) -> torch.Tensor:
    return torch.cat([x.new_zeros(1), x.reshape(-1)])[1:].view(x.shape)


def _with_gaps(x: torch.Tensor) -> torch.Tensor:
    return torch.stack([x, x.new_zeros(x.shape)], dim=-1)[..., 0]


def _reversed(x: torch.Tensor) -> torch.Tensor:
    order = tuple(reversed(range(x.dim())))
    return x.permute(order).contiguous().permute(order)


def _row_of_a_matrix(x: torch.Tensor) -> torch.Tensor:
    return torch.stack([x.new_zeros(x.shape), x])[1]


def _expanded(x: torch.Tensor) -> torch.Tensor:
    return x[:1].expand(x.shape) if x.dim() else x


LAYOUTS: list[Callable[[torch.Tensor], torch.Tensor]] = [
    torch.Tensor.contiguous,
    _channels_last,
    _unaligned,
    _with_gaps,
    _reversed,
    _row_of_a_matrix,
]

tensors = st.builds(
    lambda shape, dtype_mode, grad_dtype, state_dtype: TensorCase(
        tuple(shape), *dtype_mode, grad_dtype, state_dtype
    ),
    st.lists(st.sampled_from([0, 1, 2, 3, 5, 8, 17]), max_size=5).filter(
        lambda shape: np.prod(shape) < 5000
    ),
    st.sampled_from(DTYPE_MODES),
    st.sampled_from([None, torch.float32, torch.bfloat16]),
    st.sampled_from(STATE_DTYPES),
)
placed = st.lists(
    st.tuples(tensors, st.sampled_from(LAYOUTS), st.sampled_from([*LAYOUTS, _expanded])),
    min_size=1,
    max_size=8,
)


def lay_out(p: torch.nn.Parameter, layout: Callable[[torch.Tensor], torch.Tensor]) -> None:
    p.data = layout(p.detach())


@each_backend_slowly
@each_case
@hypothesis.settings(max_examples=25, suppress_health_check=SAME_BACKEND)
@hypothesis.given(placed)
def test_a_list_trains_as_its_tensors_alone(case: Case, backend: str, placed: list[Any]) -> None:
    cases = [tensor for tensor, _, _ in placed]
    together, alone = Bench(case, cases, backend), Bench(case, cases, backend)
    for bench in (together, alone):
        bench.optimizer.state.clear()
    for p, (_, layout, _) in zip(together.params, placed, strict=True):
        lay_out(p, layout)
    for bench in (together, alone):
        bench.optimizer.init_state()
        bench.randomise_params(-1, 0)
    start = [as_float64(p).copy() for p in alone.params]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_fused, "available", lambda: False)  # it takes contiguous tensors only
        for _ in range(2):
            step(together, alone, [layout for _, _, layout in placed])
    for p, q, first, tensor in zip(together.params, alone.params, start, cases, strict=True):
        if case.elementwise:
            assert (bits(p) == bits(q)).all(), tensor
            for key, value in alone.optimizer.state[q].items():
                assert_same_bits(together.optimizer.state[p][key], value, f"{tensor} {key}")
        else:  # sums may run in another order
            bound = ulp(q, dtype_name(tensor.dtype)) + 1e-5 * np.abs(as_float64(q) - first)
            assert_within(p, q, bound, str(tensor))


def step(together: Bench, alone: Bench, layouts: list[Any]) -> None:
    """Step one optimizer on all gradients, laid out, the other on one of them at a time."""
    for bench in (together, alone):
        bench.set_gradients(-1, 0)
    grads = []
    for p, q, layout in zip(together.params, alone.params, layouts, strict=True):
        name = "grad" if p.main_grad is None else "main_grad"
        setattr(p, name, layout(getattr(p, name)))
        grads.append((q, name, getattr(p, name).contiguous()))
        q.grad = q.main_grad = None
    together.optimizer.step()
    for q, name, grad in grads:
        setattr(q, name, grad)
        alone.optimizer.step()
        setattr(q, name, None)


# --- memory ---------------------------------------------------------------------------------------


class PeakMemory(TorchDispatchMode):
    """Counts the bytes of tensors that come and go while it is on.

    Attributes:
        peak: most bytes at a time, those of the tensors that it was given aside.
    """

    def __init__(self, known: list[torch.Tensor]) -> None:
        super().__init__()
        self.peak = self._bytes = 0
        self._users = {t.untyped_storage().data_ptr(): -1 for t in known}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._add(leaf)
        return result

    def _add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        address, size = storage.data_ptr(), storage.nbytes()
        users = self._users.get(address, 0)
        if users < 0 or size == 0:
            return
        if users == 0:
            self._bytes += size
            self.peak = max(self.peak, self._bytes)
        self._users[address] = users + 1
        weakref.finalize(tensor, self._remove, address, size)

    def _remove(self, address: int, size: int) -> None:
        self._users[address] -= 1
        if self._users[address] == 0:
            self._bytes -= size


def test_the_memory_counter_counts() -> None:
    x = torch.zeros(1000)
    with PeakMemory([x]) as memory:
        y = x.view(10, 100).add_(1)
        assert memory.peak == 0
        y = (y + 1).t()
        assert memory.peak == 4000
        del y
        z = (x + 1).double()
        assert memory.peak == 12000
        z += 1
    assert memory.peak == 12000


LARGE: dict[str, Callable[[], torch.Tensor]] = {
    "vector": lambda: torch.ones(4_400_000),
    "matrix": lambda: torch.ones(2200, 2000),
    "transposed": lambda: torch.ones(2000, 2200).t(),
    "convolution": lambda: torch.ones(500, 978, 3, 3),
}
ADAMW, ADAFACTOR = (next(c for c in ONE_OF_EACH if c.family == f) for f in ("adamw", "adafactor"))
# Adafactor keeps a sum for each row and column of each kernel: two thirds of a convolution's size.
UPDATES = [(c, name) for c in (ADAMW, ADAFACTOR) for name in LARGE]
UPDATES.remove((ADAFACTOR, "convolution"))
# Three moments of 16 bits, with random bits for each and for the parameter, are the most.
UPDATES.append((next(c for c in ONE_OF_EACH if c.options.get("amsgrad")), "vector"))


@each_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("case", "large"), UPDATES, ids=str)
def test_a_step_needs_little_memory(
    case: Case, dtype: torch.dtype, large: str, backend: str
) -> None:
    """Below 16 MiB for a parameter that takes 17 million bytes in float32."""
    if interpreted(backend):
        pytest.skip("would take an hour in Triton's interpreter")
    p = torch.nn.Parameter(LARGE[large]().to(device_of(backend), dtype))
    optimizer = case.make([p], backend)
    optimizer.init_state()
    p.grad = torch.ones_like(p)
    known = [p, p.grad, *(t for t in optimizer.state[p].values() if isinstance(t, torch.Tensor))]
    with PeakMemory(known) as memory:
        optimizer.step()
    assert memory.peak < 16 << 20
