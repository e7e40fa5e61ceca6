"""Every setup that benchmarks name: it can be built and stepped, and is compared with its like."""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace

import bench_package  # noqa: F401
import pytest
import torch

pytest.importorskip("pandas")

from bench import agreement, memory, traffic
from bench.agreement import DisagreementError
from bench.goals import GOALS
from bench.pairs import PAIRS, Pair
from bench.results import KINDS
from bench.setups import OURS, PEERS, SETUPS, Setup
from bench.shapes import SHAPES, numel
from bench.subject import Subject

DEVICE = torch.device("cpu")
ALWAYS = (OURS, "torch", "transformers")
CASES = [(s.name, d) for s in SETUPS.values() for d in s.dtypes if s.source in ALWAYS]


def subject(name: str, dtype: str = "fp32", shapes: str = "smoke") -> Subject:
    if SETUPS[name].source == "transformers":
        pytest.importorskip("transformers")
    return Subject(SETUPS[name], shapes, dtype, DEVICE)


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_every_setup_can_be_stepped(name: str, dtype: str) -> None:
    found = subject(name, dtype)
    for _ in range(2):
        found.step()
    for index, param in enumerate(found.params):
        assert param.isfinite().all()
        moved = (param.detach() - found.initial(index)).abs().max()
        # Adafactor's small updates are lost where 16-bit parameters round to nearest.
        assert moved > 0 or dtype != "fp32" or "Adafactor" not in name
        assert param.grad.abs().min() > 0 or dtype == "fp16"
    assert found.state_bytes() > 0
    assert (found.backend in ("cpu", "eager")) == (SETUPS[name].source == OURS)


def test_subjects_of_one_list_start_alike() -> None:
    ours, baseline = subject("AdamW"), subject("torch AdamW fused")
    for p, q in zip(ours.params, baseline.params, strict=True):
        assert torch.equal(p, q) and torch.equal(p.grad, q.grad)
    assert not torch.equal(ours.params[1][:96], ours.params[0][0])


def test_clipped_setups_clip() -> None:
    clipped = subject("torch AdamW fused clipped")
    clipped.set_gradients(1e6)
    clipped.step()
    norm = torch.stack([p.grad.norm() for p in clipped.params]).norm()
    assert norm == pytest.approx(1.0, rel=1e-3)


def test_a_peer_that_is_absent_says_so() -> None:
    absent = [s for s in SETUPS.values() if importlib.util.find_spec(s.source) is None]
    assert absent, "apex and TransformerEngine need a GPU"
    with pytest.raises(ImportError, match=absent[0].source):
        absent[0].optimizer([torch.nn.Parameter(torch.ones(2))])


def test_every_source_is_known() -> None:
    assert {setup.source for setup in SETUPS.values()} == {OURS, "torch", *PEERS}


@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_pairs_are_of_known_setups_and_goals(pair: Pair) -> None:
    ours, baseline = SETUPS[pair.ours], SETUPS[pair.baseline]
    assert ours.source == OURS != baseline.source
    assert ours.op == baseline.op
    assert pair.kind in KINDS
    assert set(pair.dtypes) <= set(ours.dtypes) & set(baseline.dtypes)
    assert set(pair.targets) <= set(GOALS)
    for goal in map(GOALS.get, pair.targets):
        assert goal.unit == "x" and set(goal.shapes) <= set(SHAPES)


def test_the_first_goal_that_fits_holds() -> None:
    pair = next(p for p in PAIRS if (p.ours, p.dtypes) == ("torch_compat.AdamW", ("fp32",)))
    for device, shapes, goal in (
        ("cuda", "llama-8b-2l", "adamw large"),
        ("cuda", "tiny-1000", "adamw many small"),
        ("cuda", "t5-base", "adamw elsewhere"),
        ("cpu", "gpt2-30M", "cpu torch adamw"),
    ):
        assert pair.goal(device, shapes, "fp32") is GOALS[goal]
    assert pair.goal("cpu", "t5-base", "fp32") is None
    assert pair.goal("cpu", "gpt2-30M", "bf16") is None


def test_no_pair_is_made_twice() -> None:
    keys = [(p.ours, p.baseline, dtype) for p in PAIRS for dtype in p.dtypes]
    assert len(keys) == len(set(keys))


def of_kind(kind: str) -> list[object]:
    found = [
        (pair, dtype)
        for pair in PAIRS
        for dtype in pair.dtypes
        if pair.kind == kind and SETUPS[pair.baseline].source in ALWAYS
    ]
    return [pytest.param(*case, id=f"{case[0]}, {case[1]}") for case in found]


@pytest.mark.parametrize(("pair", "dtype"), of_kind("equal semantics"))
def test_pairs_of_equal_semantics_agree(pair: Pair, dtype: str) -> None:
    ours, baseline = subject(pair.ours, dtype), subject(pair.baseline, dtype)
    agreement.check(ours, baseline, str(pair))


@pytest.mark.parametrize(("pair", "dtype"), of_kind("equal bytes"))
def test_pairs_of_equal_bytes_keep_equal_bytes(monkeypatch, pair: Pair, dtype: str) -> None:
    monkeypatch.setitem(SHAPES, "square", [(512, 512)])
    ours, baseline = (subject(name, dtype, "square") for name in (pair.ours, pair.baseline))
    for each in (ours, baseline):
        each.step()
    own, theirs = (each.state_bytes() / each.parameters for each in (ours, baseline))
    assert own == pytest.approx(theirs, abs=0.1)


@pytest.mark.parametrize(
    "changes", [{"eps": 1e-4}, {"betas": (0.9, 0.99)}, {"lr": 1.01e-3}, {"weight_decay": 0.1}]
)
def test_other_semantics_disagree(changes: dict) -> None:
    changed = Setup("changed", "adamw", "torch", "torch.optim:AdamW", changes)
    other = Subject(changed, "smoke", "fp32", DEVICE)
    with pytest.raises(DisagreementError, match="^ours and theirs disagree: tensor 0 of shape"):
        agreement.check(subject("torch_compat.AdamW"), other, "ours and theirs")


@pytest.mark.parametrize("changes", [{"lr": 1.01e-3}, {"decay_rate": -0.7}, {"beta1": 0.1}])
def test_other_adafactors_disagree(changes: dict) -> None:
    options = {**SETUPS["Adafactor T5"].options, **changes}
    changed = Setup("changed", "adafactor", OURS, "fused_optim:Adafactor", options)
    other = Subject(changed, "smoke", "fp32", DEVICE)
    with pytest.raises(DisagreementError):
        agreement.check(subject("Adafactor T5"), other, "ours and theirs")


@pytest.mark.parametrize("changes", [{"betas": (0.8, 0.99)}, {"lr": 1.05e-4}])
def test_other_lions_disagree(changes: dict) -> None:
    options = {**SETUPS["for-loop Lion"].options, **changes}
    changed = Setup("changed", "lion", "torch", "bench.lion:ForLoopLion", options)
    other = Subject(changed, "smoke", "fp32", DEVICE)
    with pytest.raises(DisagreementError):
        agreement.check(subject("Lion"), other, "ours and theirs")


def test_one_pass_traffic_follows_from_the_state() -> None:
    for name, dtype, expected in (
        ("torch AdamW fused", "fp32", 28),
        ("torch AdamW fused", "bf16", 14),
        ("torch AdamW fused amsgrad", "fp32", 36),
    ):
        found = subject(name, dtype)
        found.step()
        assert traffic.traffic_bytes(found) == pytest.approx(expected, abs=0.05)
    assert traffic.traffic_bytes(subject("torch AdamW foreach")) is None


@pytest.mark.parametrize(
    ("name", "dtype", "expected", "launches"),
    [
        ("AdamW", "fp32", 28, 1),
        ("AdamW nearest", "bf16", 22, 1),
        ("AdamW", "bf16", 26, 1),
        ("AdamW split bf16-moments", "bf16", 18, 1),
        ("torch_compat.AdamW", "bf16", 14, 1),
        ("Adafactor T5 stochastic", "bf16", 10, 5),
        ("Adafactor stochastic", "bf16", 12, 5),
        ("Adafactor T5", "bf16", 14, 5),
        ("Adafactor", "bf16", 18, 5),  # reads parameter and remainder for the mean square
    ],
)
def test_counted_traffic_is_that_of_the_design(
    monkeypatch, name: str, dtype: str, expected: float, launches: int
) -> None:
    monkeypatch.setattr(Subject, "backend", "cuda")
    monkeypatch.setitem(SHAPES, "square", [(512, 512)])
    found = subject(name, dtype, "square")
    assert traffic.traffic_bytes(found) == pytest.approx(expected, abs=0.1)
    assert traffic.launches(found) <= launches


def test_traffic_of_every_own_setup_was_counted(monkeypatch) -> None:
    monkeypatch.setattr(Subject, "backend", "cuda")
    for name, dtype in CASES:
        if SETUPS[name].source == OURS:
            found = subject(name, dtype)
            assert 10 <= traffic.traffic_bytes(found) <= 40, name
            assert traffic.launches(found) in (1, 3, 5), name


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("cudaLaunchKernel", True),
        ("cudaLaunchKernelExC", True),
        ("cuLaunchKernelEx", True),
        ("cudaLaunchCooperativeKernel", True),
        ("cudaMemcpyAsync", False),
        ("aten::mul_", False),
    ],
)
def test_what_counts_as_a_launch(name: str, counts: bool) -> None:
    assert bool(traffic._LAUNCH.match(name)) is counts


@pytest.mark.parametrize(
    ("name", "tensors", "traced"),
    [("AdamW", 10_000, 1), ("torch AdamW for-loop", 1000, 1), ("torch AdamW for-loop", 3000, None)],
)
def test_long_loops_of_peers_are_not_traced(monkeypatch, name, tensors, traced) -> None:
    monkeypatch.setattr(traffic, "_traced_launches", lambda found: 1)
    found = SimpleNamespace(setup=SETUPS[name], device=torch.device("cuda"), tensors=tensors)
    assert traffic.launches(found) == traced


def test_eager_traffic_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSED_OPTIM_BACKEND", "eager")
    assert traffic.traffic_bytes(subject("Adafactor")) is None
    assert traffic.launches(subject("Adafactor")) is None


def test_a_cpu_moves_the_same_bytes_and_launches_nothing() -> None:
    found = subject("AdamW")
    known = found.backend == "cpu"  # where it was built
    assert traffic.traffic_bytes(found) == (28 if known else None)
    assert traffic.launches(found) is None


def test_transient_memory_is_the_temporaries_of_a_step() -> None:
    fused, foreach = (
        memory.measure(subject(name, shapes="smoke"), "smoke")
        for name in ("torch AdamW fused", "torch AdamW foreach")
    )
    assert fused.state_bytes_per_parameter == pytest.approx(8, abs=0.01)
    assert fused.bytes_per_parameter == pytest.approx(12, abs=0.01)
    params = 4 * numel(SHAPES["smoke"])
    assert fused.transient_bytes < 1000
    assert params <= foreach.transient_bytes < 2 * params
