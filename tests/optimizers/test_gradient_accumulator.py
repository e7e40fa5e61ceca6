"""GradientAccumulator: sums, the pattern of None that the first call fixes, errors, reset."""

import pytest
import torch
from tolerances import assert_same_bits

from fused_optim import AdamW, GradientAccumulator


def ones(*shape, dtype=torch.float32):
    return torch.ones(shape, dtype=dtype)


def test_sums_as_the_tensorflow_class_does():
    accumulator = GradientAccumulator()
    for values in ([1.0, 2.0], [-2.0, 1.0], [-1.0, 2.0]):
        accumulator([torch.tensor(values)])
    assert accumulator.step == 3
    assert [g.tolist() for g in accumulator.gradients] == [[-2.0, 5.0]]
    accumulator.reset()
    assert accumulator.step == 0
    assert [g.tolist() for g in accumulator.gradients] == [[0.0, 0.0]]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "expanded"])
def test_any_dtype_and_strides(dtype, layout):
    base = torch.arange(12.0).view(3, 4).to(dtype)
    grads = {"contiguous": base, "transposed": base.t(), "expanded": base[:1].expand(5, 4)}
    grad = grads[layout]
    accumulator = GradientAccumulator()
    for _ in range(3):
        accumulator([grad])
    (total,) = accumulator.gradients
    assert total.dtype is dtype
    assert_same_bits(total, grad.double() * 3)
    assert_same_bits(base, torch.arange(12.0).view(3, 4))


def test_the_first_call_fixes_which_gradients_there_are():
    accumulator = GradientAccumulator()
    accumulator([None, ones(2), None, ones(3)])
    accumulator([ones(2), None, None, ones(3)])  # dropped, skipped, none, added
    accumulator([None, ones(2), ones(9), None])
    assert accumulator.step == 3
    first, second, third, fourth = accumulator.gradients
    assert first is None and third is None
    assert second.tolist() == [2.0, 2.0]
    assert fourth.tolist() == [2.0, 2.0, 2.0]
    accumulator.reset()
    assert [g is None for g in accumulator.gradients] == [True, False, True, False]


def test_reset_keeps_the_buffers_and_their_pattern():
    accumulator = GradientAccumulator()
    accumulator.reset()  # before the first call: nothing to do
    assert accumulator.step == 0
    accumulator([ones(2), None])
    buffer = accumulator.gradients[0]
    accumulator.reset()
    accumulator([ones(2), ones(2)])
    assert accumulator.gradients[0] is buffer
    assert accumulator.gradients[1] is None
    assert buffer.tolist() == [1.0, 1.0]
    with pytest.raises(ValueError, match="Expected 2 gradients, but got 1"):
        accumulator([ones(2)])


def test_inputs_are_copied_and_graphs_are_not_kept():
    accumulator = GradientAccumulator()
    grad = ones(2).requires_grad_() * 2.0
    accumulator([grad])
    with torch.no_grad():
        grad.zero_()
    assert accumulator.gradients[0].tolist() == [2.0, 2.0]
    assert not accumulator.gradients[0].requires_grad
    accumulator.gradients.clear()  # a list of its own
    assert len(accumulator.gradients) == 1


def test_takes_any_iterable_and_an_empty_one():
    accumulator = GradientAccumulator()
    accumulator([])
    assert accumulator.step == 1
    with pytest.raises(ValueError, match="should be called first to initialize the gradients"):
        _ = accumulator.gradients
    accumulator(g for g in (ones(2), None))
    assert accumulator.step == 2
    assert accumulator.gradients[0].tolist() == [1.0, 1.0]


def test_nothing_to_read_before_the_first_call():
    accumulator = GradientAccumulator()
    assert accumulator.step == 0
    with pytest.raises(ValueError, match="should be called first to initialize the gradients"):
        _ = accumulator.gradients


BAD_CALLS = {
    "too few": ([ones(2)], r"Expected 2 gradients, but got 1"),
    "too many": ([ones(2), ones(3), ones(4)], r"Expected 2 gradients, but got 3"),
    "shape": ([ones(2), ones(4)], r"gradient 1 is torch.float32 of shape \(4,\).*of shape \(3,\)"),
    "broadcast": ([ones(1), ones(3)], r"gradient 0 is .* of shape \(1,\)"),
    "dtype": (
        [ones(2), ones(3, dtype=torch.float64)],
        r"gradient 1 is torch.float64.*torch.float32",
    ),
    "sparse": ([ones(2), ones(3).to_sparse()], r"gradient 1 has layout torch.sparse_coo"),
    "integer": ([ones(2), ones(3, dtype=torch.int64)], r"gradient 1 is torch.int64, not a float"),
    "complex": ([ones(2), ones(3, dtype=torch.complex64)], r"gradient 1 is torch.complex64, not"),
    "device": ([ones(2), ones(3).to("meta")], r"gradient 1 is .* on meta"),
}


@pytest.mark.parametrize("grads,message", BAD_CALLS.values(), ids=list(BAD_CALLS))
def test_a_bad_call_is_refused_and_adds_nothing(grads, message):
    accumulator = GradientAccumulator()
    accumulator([ones(2), ones(3)])
    with pytest.raises(ValueError, match=message):
        accumulator(grads)
    assert accumulator.step == 1
    assert [g.tolist() for g in accumulator.gradients] == [[1.0] * 2, [1.0] * 3]
    accumulator([ones(2), ones(3)])
    assert [g.tolist() for g in accumulator.gradients] == [[2.0] * 2, [2.0] * 3]


NO_LISTS = {
    "tensor": (ones(2, 3), "gradients is of type Tensor; pass a list"),
    "parameter": (torch.nn.Parameter(ones(2)), "gradients is of type Parameter; pass a list"),
    "dict": ({"weight": ones(2)}, "gradients is of type dict; pass a list"),
    "set": ({ones(2)}, "gradients is of type set; pass a list"),
    "string": ("weight", "gradients is of type str; pass a list"),
    "none": (None, "gradients is None; pass a list"),
    "number": (1.0, "gradients is of type float; pass a list"),
    "numbers": ([ones(2), 1.0], "gradient 1 is of type float, not a gradient"),
    "pairs": ([("weight", ones(2))], "gradient 0 is of type tuple, not a gradient"),
    "arrays": ([ones(2).numpy()], "gradient 0 is of type ndarray, not a gradient"),
    "parameters": (
        torch.nn.Linear(2, 2).parameters(),
        "gradient 0 is of type Parameter, not a gradient",
    ),
}


@pytest.mark.parametrize("grads,message", NO_LISTS.values(), ids=list(NO_LISTS))
def test_what_is_no_list_of_tensors_is_refused(grads, message):
    accumulator = GradientAccumulator()
    with pytest.raises(TypeError, match=f"{message}.*: \\[p.grad for p in parameters\\]"):
        accumulator(grads)
    assert accumulator.step == 0
    accumulator([ones(4)])  # as new
    assert accumulator.gradients[0].tolist() == [1.0] * 4


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64, "float32"])
def test_sums_are_kept_in_floats(dtype):
    with pytest.raises(ValueError, match=f"Invalid dtype: {dtype!r} - should be torch.float32"):
        GradientAccumulator(dtype)


@pytest.mark.parametrize("name", ["sparse", "integer", "complex"])
def test_a_bad_first_call_leaves_the_accumulator_as_new(name):
    accumulator = GradientAccumulator()
    with pytest.raises(ValueError, match=BAD_CALLS[name][1]):
        accumulator(BAD_CALLS[name][0])
    assert accumulator.step == 0
    accumulator([ones(4)])
    assert accumulator.gradients[0].tolist() == [1.0] * 4


def test_float32_buffers_keep_what_bfloat16_loses():
    """256 micro-batches, all but the first below half an ulp of the sum."""
    grads = [torch.full((5,), value).bfloat16() for value in [256.0] + [0.9] * 255]
    exact = torch.stack(grads).double().sum(0)
    kept, lost = GradientAccumulator(torch.float32), GradientAccumulator()
    for grad in grads:
        kept([grad])
        lost([grad])
    assert kept.gradients[0].dtype is torch.float32
    assert lost.gradients[0].dtype is torch.bfloat16
    assert_same_bits(kept.gradients[0], exact)
    assert lost.gradients[0].tolist() == [256.0] * 5


def test_a_given_dtype_takes_gradients_of_any_float():
    accumulator = GradientAccumulator(torch.float32)
    for dtype in (torch.bfloat16, torch.float32, torch.float64, torch.float16):
        accumulator([ones(2, dtype=dtype)])
    assert accumulator.gradients[0].tolist() == [4.0, 4.0]
    assert accumulator.gradients[0].dtype is torch.float32


def test_an_optimizer_takes_the_sums_as_main_grad():
    """No cast back to bfloat16: two micro-batches train as their float32 sum does."""
    small = [torch.full((3,), 1.0), torch.full((3,), 2.0**-9)]
    params = [torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16)) for _ in range(2)]
    accumulator = GradientAccumulator(torch.float32)
    for grad in small:
        accumulator([grad.bfloat16()])
    params[0].main_grad = accumulator.gradients[0]
    params[1].main_grad = small[0] + small[1]
    optimizers = [AdamW([p], eps=1.0) for p in params]
    for optimizer in optimizers:
        optimizer.step()
    first, second = (o.state[p] for o, p in zip(optimizers, params, strict=True))
    assert torch.equal(first["exp_avg"], second["exp_avg"])
    assert first["exp_avg"][0] != torch.tensor(1.0).mul(0.1)
