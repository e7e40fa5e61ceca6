"""Loading a state that another precision mode saved: the float32 value survives where it can."""

import numpy as np
import pytest
import torch
from optimizer_table import (
    MODES,
    assert_identical,
    parameters,
    params_of,
    row,
    snapshot,
    through_disk,
    train,
)
from oracle_rounding import kahan_decode, master_decode, split_decode
from tolerances import as_float64, ulp

EXTRA = {"master": "master", "split": "remainder", "kahan": "compensation"}
ROWS = pytest.mark.parametrize("name", ["AdamW", "Adafactor", "torch-AdamW"])


def pairs():
    return [
        pytest.param(dtype, old, new, id=f"{str(dtype)[6:]}-{old}-{new}")
        for dtype in (torch.bfloat16, torch.float16)
        for old in MODES[dtype]
        for new in MODES[dtype]
        if old != new
    ]


def trained(name, dtype, mode, steps=4):
    optimizer = row(name).build(parameters(dtype), low_precision=mode)
    train(optimizer, range(1, steps + 1))
    return optimizer


def loaded_in(optimizer, mode):
    """A new optimizer in another mode with the same weights and this optimizer's saved state."""
    params = [torch.nn.Parameter(p.detach().clone()) for p in params_of(optimizer)]
    new = type(optimizer)(params, low_precision=mode)
    new.load_state_dict(through_disk(optimizer.state_dict()))
    return new


def numpy_bits(tensor):
    if tensor.dtype is torch.float32:
        return tensor.detach().numpy()
    bits = tensor.detach().view(torch.int16).numpy()
    return bits if tensor.dtype is torch.int16 else bits.view(np.uint16)


def value_of(p, state):
    """The float32 values a parameter stands for, by the oracle's decoders."""
    bits, dtype = numpy_bits(p), str(p.dtype).removeprefix("torch.")
    if "remainder" in state:
        return split_decode(bits, numpy_bits(state["remainder"]))
    if "compensation" in state:
        return kahan_decode(bits, numpy_bits(state["compensation"]), dtype)
    if "master" in state:
        return master_decode(bits, numpy_bits(state["master"]), dtype)
    return p.detach().float().numpy()


@ROWS
@pytest.mark.parametrize("dtype,old,new", pairs())
def test_the_new_mode_takes_over_the_old_ones_value(name, dtype, old, new):
    before = trained(name, dtype, old)
    after = loaded_in(before, new)
    values = [value_of(p, before.state[p]) for p in params_of(before)]
    kept = [p.detach().clone() for p in params_of(after)]
    after.init_state()
    assert_identical([p.detach() for p in params_of(after)], kept)
    for p, value in zip(params_of(after), values, strict=True):
        state = after.state[p]
        assert EXTRA.keys() & {new} == {m for m, key in EXTRA.items() if key in state}
        if new not in EXTRA:
            continue
        found = as_float64(value_of(p, state))
        if old not in EXTRA:
            assert np.array_equal(found, as_float64(p))
            continue
        shown = as_float64(p)
        # A value half-way between two parameters may belong to the other one in the new mode.
        tie = np.abs(as_float64(value) - shown) >= 0.5 * ulp(shown, p.dtype)
        kept_bits = 2.0**-8 if dtype is torch.bfloat16 else 2.0**-11
        bound = kept_bits * np.abs(as_float64(value) - shown) if new == "kahan" else 0.0
        if new == "kahan" and dtype is torch.float16:
            bound = bound + 2.0**-25  # half of float16's least subnormal
        assert (tie | (np.abs(found - as_float64(value)) <= bound)).all()
        assert tie.mean() < 0.1


@ROWS
@pytest.mark.parametrize("old,new", [("split", "master"), ("master", "split")])
def test_split_and_master_are_one_and_the_same_run(name, old, new):
    whole = trained(name, torch.bfloat16, old)
    changed = loaded_in(whole, new)
    train(whole, [5, 6, 7])
    train(changed, [5, 6, 7])
    assert_identical(snapshot(changed)[0], snapshot(whole)[0])
    for p, q in zip(params_of(changed), params_of(whole), strict=True):
        values = value_of(p, changed.state[p]), value_of(q, whole.state[q])
        assert np.array_equal(*values)


@ROWS
def test_what_a_mode_gains_shows_only_later(name):
    """Steps too small for bfloat16 go on adding up across the change of mode."""
    options = {"lr": 1e-4} if "Adafactor" not in name else {"lr": 1e-4, "relative_step": False}
    start = torch.full((64,), 1.0, dtype=torch.bfloat16)

    def build(mode):
        make = row(name).make
        return make([torch.nn.Parameter(start.clone())], low_precision=mode, **options)

    def step(optimizer, count):
        for p in params_of(optimizer):
            p.grad = torch.full_like(p, -1.0)
        for _ in range(count):
            optimizer.step()

    split, nearest = build("split"), build("nearest")
    for optimizer in (split, nearest):
        step(optimizer, 30)
        assert torch.equal(params_of(optimizer)[0], start)
    master, still = loaded_in(split, "master"), loaded_in(split, "nearest")
    for optimizer in (master, still):
        for group in optimizer.param_groups:
            group["lr"] = 1e-4
        step(optimizer, 15)
    assert (params_of(master)[0] > start).all()
    assert torch.equal(params_of(still)[0], start)


@ROWS
@pytest.mark.parametrize(
    "dtype,mode", [(d, m) for d, ms in MODES.items() if d.itemsize == 2 for m in ms]
)
def test_a_float32_checkpoint_loads_into_every_mode(name, dtype, mode):
    full = trained(name, torch.float32, "auto")
    params = [torch.nn.Parameter(p.detach().to(dtype)) for p in params_of(full)]
    low = type(full)(params, low_precision=mode, state_dtype=torch.float32)
    low.load_state_dict(through_disk(full.state_dict()))
    shown = [p.detach().clone() for p in params]
    low.init_state()
    assert_identical([p.detach() for p in params], shown)
    for p, q in zip(params, params_of(full), strict=True):
        state = dict(low.state[p])
        assert np.array_equal(value_of(p, state), p.detach().float().numpy())
        extra = state.pop(EXTRA.get(mode), None)
        assert (extra is None) == (mode not in EXTRA)
        assert_identical(state, dict(full.state[q]))
    train(low, [5])


@ROWS
@pytest.mark.parametrize("mode", MODES[torch.bfloat16])
def test_a_16_bit_checkpoint_loads_into_float32(name, mode):
    low = trained(name, torch.bfloat16, mode)
    params = [torch.nn.Parameter(p.detach().float()) for p in params_of(low)]
    full = type(low)(params)
    full.load_state_dict(through_disk(low.state_dict()))
    train(full, [5])
    for p, q in zip(params, params_of(low), strict=True):
        assert full.state[p]["step"] == 5
        assert full.state[p].keys() == low.state[q].keys() - set(EXTRA.values())
        tensors = [t for t in full.state[p].values() if isinstance(t, torch.Tensor)]
        assert {t.dtype for t in tensors} == {torch.float32}
