"""transformers' Trainer with these optimizers, unmodified."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from optimizer_table import FIRST, ROWS, Row, assert_identical, row, snapshot
from regression import Regression, examples

from fused_optim import (
    Adafactor,
    AdafactorSchedule,
    AdamW,
    get_linear_schedule_with_warmup,
)

pytest.importorskip("accelerate")
transformers = pytest.importorskip("transformers")

# Its own warnings are no concern of these tests.
pytestmark = pytest.mark.filterwarnings("ignore")


def trainer(folder: Path, data: Any = None, arguments: dict[str, Any] | None = None, **kwargs: Any):
    settings = transformers.TrainingArguments(
        output_dir=str(folder),
        **{
            "max_steps": 6,
            "save_steps": 3,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-2,
            "weight_decay": 0.1,
            "warmup_steps": 2,
            "use_cpu": True,
            "report_to": [],
            "disable_tqdm": True,
            "logging_steps": 1,
            **(arguments or {}),
        },
    )
    return transformers.Trainer(args=settings, train_dataset=data or examples(), **kwargs)


def losses(trainer: Any) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def by_class(row: Row, folder: Path) -> Any:
    """`optimizer_cls_and_kwargs=`: the Trainer makes the groups, with its own weight decay."""
    kwargs = {k: v for k, v in row.kwargs.items() if k != "weight_decay"}
    model = Regression(torch.bfloat16)
    return trainer(folder, model=model, optimizer_cls_and_kwargs=(row.make, kwargs))


def by_instance(row: Row, folder: Path) -> Any:
    """`optimizers=`: an optimizer and a schedule of the user's own."""
    model = Regression(torch.bfloat16)
    return trainer(folder, model=model, optimizers=with_schedule(row, model))


def with_schedule(row: Row, model: torch.nn.Module) -> tuple[torch.optim.Optimizer, Any]:
    optimizer = row.build(model)
    if not row.own_schedule:
        return optimizer, get_linear_schedule_with_warmup(optimizer, 2, 6)
    if hasattr(optimizer, "effective_lr"):
        return optimizer, AdafactorSchedule(optimizer)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)


def assert_resumes(build: Callable[[Path], Any], folder: Path, steps: int = 6) -> tuple[Any, Any]:
    """Train, train again from the checkpoint in the middle, and compare the ends to the bit."""
    whole = build(folder / "whole")
    whole.train()
    assert len(losses(whole)) == steps
    resumed = build(folder / "resumed")
    resumed.train(resume_from_checkpoint=str(folder / "whole" / f"checkpoint-{steps // 2}"))
    assert resumed.state.global_step == steps
    inner = [t.optimizer.optimizer for t in (resumed, whole)]
    assert all(type(o).__module__.startswith("fused_optim") for o in inner)
    assert_identical(snapshot(inner[0]), snapshot(inner[1]))
    return whole, resumed


@pytest.mark.parametrize(
    "row,build",
    [
        pytest.param(
            row,
            build,
            id=f"{build.__name__}-{row.name}",
            marks=() if row.name in FIRST else pytest.mark.long,
        )
        for row in ROWS
        for build in (by_class, by_instance)
        if build is by_instance or not row.own_schedule  # the Trainer adds a schedule to a class
    ],
)
def test_the_trainer_trains_saves_and_resumes(row: Row, build: Callable, tmp_path: Path) -> None:
    whole, _ = assert_resumes(lambda folder: build(row, folder), tmp_path)
    assert losses(whole)[-1] < losses(whole)[0]


def test_the_trainer_makes_groups_that_decay_and_that_do_not(tmp_path: Path) -> None:
    made = by_class(row("AdamW"), tmp_path)
    made.create_optimizer()
    assert [group["weight_decay"] for group in made.optimizer.param_groups] == [0.1, 0.0]
    assert [len(group["params"]) for group in made.optimizer.param_groups] == [1, 3]


class Noted(Regression):
    """A model that notes its batches, whose order is the Trainer's."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[dict[str, torch.Tensor]] = []

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        self.batches.append({"x": x, "labels": labels})
        return super().forward(x, labels)


@pytest.mark.parametrize("clips", ["Trainer", "optimizer"])
def test_the_trainer_accumulates_and_clips(clips: str, tmp_path: Path) -> None:
    """As a loop by hand does, whether the Trainer clips or the optimizer."""
    own = {"lr": 1e-2, **({"max_grad_norm": 0.1} if clips == "optimizer" else {})}
    model = Noted()
    arguments = {
        "max_grad_norm": 0.0 if "max_grad_norm" in own else 0.1,
        "gradient_accumulation_steps": 2,
    }
    made = trainer(
        tmp_path,
        model=model,
        optimizer_cls_and_kwargs=(AdamW, own),
        arguments={**arguments, "save_strategy": "no", "lr_scheduler_type": "constant"},
    )
    made.train()
    assert len(model.batches) == 12

    plain_model = Regression()
    decays = made.get_decay_parameter_names(plain_model)
    named = dict(plain_model.named_parameters())
    plain = AdamW(
        [
            {"params": [p for n, p in named.items() if n in decays], "weight_decay": 0.1},
            {"params": [p for n, p in named.items() if n not in decays], "weight_decay": 0.0},
        ],
        **own,
    )
    for step in range(6):
        plain.zero_grad()
        for batch in model.batches[2 * step : 2 * step + 2]:
            (plain_model(**batch)["loss"] / 2).backward()
        if clips == "Trainer":
            norm = torch.nn.utils.clip_grad_norm_(plain_model.parameters(), 0.1)
            assert norm > 0.1
        plain.step()
        if clips == "optimizer":
            assert plain.grad_norm > 0.1
    inner = made.optimizer.optimizer
    assert_identical(snapshot(inner)[:2], snapshot(plain)[:2])


def tiny_t5() -> Any:
    torch.manual_seed(0)
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_heads": 2, "vocab_size": 40}
    return transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            **sizes, num_layers=1, dropout_rate=0.0, decoder_start_token_id=0, pad_token_id=0
        )
    )


def sentences() -> list[dict[str, torch.Tensor]]:
    tokens = torch.randint(1, 40, (16, 6), generator=torch.Generator().manual_seed(5))
    return [{"input_ids": line, "labels": line.flip(0)} for line in tokens]


def t5_recipe(folder: Path, module: Any, dtype: torch.dtype) -> Any:
    """The recipe of transformers' documentation: all that is relative, with a warmup."""
    model = tiny_t5().to(dtype)
    optimizer = module.Adafactor(
        model.parameters(), scale_parameter=True, relative_step=True, warmup_init=True, lr=None
    )
    schedule = module.AdafactorSchedule(optimizer)
    return trainer(folder, sentences(), model=model, optimizers=(optimizer, schedule))


class Ours:
    """What the recipe takes from transformers.optimization."""

    Adafactor, AdafactorSchedule = Adafactor, AdafactorSchedule


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_the_recipe_of_t5_resumes(dtype: torch.dtype, tmp_path: Path) -> None:
    whole, _ = assert_resumes(lambda folder: t5_recipe(folder, Ours, dtype), tmp_path)
    rates = [entry["learning_rate"] for entry in whole.state.log_history if "loss" in entry]
    assert all(0 < rate < 1e-2 for rate in rates[1:])


def test_the_recipe_of_t5_learns_as_transformers_does(tmp_path: Path) -> None:
    ours = t5_recipe(tmp_path / "ours", Ours, torch.float32)
    theirs = t5_recipe(tmp_path / "theirs", transformers.optimization, torch.float32)
    for one in (ours, theirs):
        one.train()
    assert losses(ours) == pytest.approx(losses(theirs), rel=1e-5)
    pairs = zip(ours.model.parameters(), theirs.model.parameters(), strict=True)
    for mine, other in pairs:
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["AdamW", "Adafactor"])
def test_adapters_of_peft_train_and_resume(name: str, tmp_path: Path) -> None:
    """LoRA: the optimizer is given all parameters, and changes the adapters alone.

    Adapters are float32, as peft makes them; 16-bit ones it replaces by float32 when it loads them.
    """
    peft = pytest.importorskip("peft")

    def build(folder: Path) -> Any:
        model = tiny_t5().to(torch.bfloat16)
        settings = peft.LoraConfig(r=2, lora_dropout=0.0, target_modules=["q", "v"])
        model = peft.get_peft_model(model, settings)
        optimizers = with_schedule(row(name), model)
        return trainer(folder, sentences(), model=model, optimizers=optimizers)

    before = {n: p.detach().clone() for n, p in build(tmp_path).model.named_parameters()}
    whole, _ = assert_resumes(build, tmp_path)
    saved = (tmp_path / "whole" / "checkpoint-3").iterdir()
    assert "adapter_model.safetensors" in {path.name for path in saved}
    moved = {n for n, p in whole.model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {n for n in before if "lora_" in n}
    trained = [p for p in whole.model.parameters() if p.requires_grad]
    assert whole.optimizer.optimizer.state.keys() == set(trained)
