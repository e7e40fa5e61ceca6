"""accelerate and transformers' Trainer with these optimizers, unmodified."""

import pytest
import torch
from optimizer_table import (
    FIRST,
    ROWS,
    assert_identical,
    every_optimizer,
    every_optimizer_slowly,
    row,
    snapshot,
)

from fused_optim import AdafactorSchedule, get_linear_schedule_with_warmup

# Their own warnings are no concern of these tests.
pytestmark = pytest.mark.filterwarnings("ignore")


class Regression(torch.nn.Module):
    """A model with the interface that the Trainer wants."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        torch.manual_seed(3)
        self.inner = torch.nn.Linear(4, 3)
        self.norm = torch.nn.LayerNorm(3)
        self.to(dtype)

    def forward(self, x, labels=None):
        out = self.norm(self.inner(x.to(self.norm.weight.dtype))).float()
        return {"loss": (out - labels).square().mean(), "logits": out}


def examples(count=16):
    torch.manual_seed(4)
    return [{"x": torch.randn(4), "labels": torch.randn(3)} for _ in range(count)]


def loader():
    return torch.utils.data.DataLoader(examples(), batch_size=4)


@pytest.fixture
def accelerator():
    accelerate = pytest.importorskip("accelerate")
    yield accelerate.Accelerator(cpu=True)
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerate.state.GradientState._reset_state()


@every_optimizer_slowly
def test_accelerate_trains_saves_and_resumes(row, accelerator, tmp_path):
    def prepared():
        model = Regression(torch.bfloat16)
        return accelerator.prepare(model, row.build(model), loader())

    def epoch(model, optimizer, batches, backward):
        for batch in batches:
            optimizer.zero_grad()
            backward(model(**batch)["loss"])
            optimizer.step()

    plain_model = Regression(torch.bfloat16)
    plain = row.build(plain_model)
    model, optimizer, batches = prepared()
    assert optimizer.optimizer is not plain and type(optimizer.optimizer) is type(plain)
    epoch(model, optimizer, batches, accelerator.backward)
    epoch(plain_model, plain, loader(), torch.Tensor.backward)
    assert_identical(snapshot(optimizer.optimizer), snapshot(plain))
    accelerator.save_state(str(tmp_path))
    epoch(model, optimizer, batches, accelerator.backward)
    expected = snapshot(optimizer.optimizer)

    accelerator.free_memory()
    model, optimizer, batches = prepared()
    accelerator.load_state(str(tmp_path))
    assert_identical(snapshot(optimizer.optimizer), snapshot(plain))
    epoch(model, optimizer, batches, accelerator.backward)
    assert_identical(snapshot(optimizer.optimizer), expected)


@every_optimizer
def test_accelerate_sees_skipped_steps(row, accelerator):
    """torch's fused AdamW reports False here, and the scheduler then runs ahead."""
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    model = Regression()
    inner = row.build(model)
    model, optimizer = accelerator.prepare(model, inner)
    skipped = []
    for scale in (1.0, float("inf"), 1.0):
        before = snapshot(inner)
        optimizer.zero_grad()
        batch = examples()[0]
        accelerator.backward(model(**batch)["loss"] * scale)
        optimizer.step()
        skipped.append(accelerator.optimizer_step_was_skipped)
        if skipped[-1]:
            assert_identical(snapshot(inner), before)
    assert skipped == [False, True, False]
    assert inner.state[next(iter(model.parameters()))]["step"] == 2


def trainer(folder, **kwargs):
    pytest.importorskip("accelerate")
    transformers = pytest.importorskip("transformers")
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=6,
        save_steps=3,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        weight_decay=0.1,
        warmup_steps=2,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        logging_steps=1,
    )
    return transformers.Trainer(args=arguments, train_dataset=examples(), **kwargs)


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def by_class(row, folder):
    """`optimizer_cls_and_kwargs=`: the Trainer makes the groups, with its own weight decay."""
    kwargs = {k: v for k, v in row.kwargs.items() if k != "weight_decay"}
    model = Regression(torch.bfloat16)
    return trainer(folder, model=model, optimizer_cls_and_kwargs=(row.make, kwargs))


def by_instance(row, folder):
    """`optimizers=`: an optimizer and a schedule of the user's own."""
    model = Regression(torch.bfloat16)
    optimizer = row.build(model)
    if not row.own_schedule:
        schedule = get_linear_schedule_with_warmup(optimizer, 2, 6)
    elif hasattr(optimizer, "effective_lr"):
        schedule = AdafactorSchedule(optimizer)
    else:
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    return trainer(folder, model=model, optimizers=(optimizer, schedule))


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
def test_the_trainer_trains_saves_and_resumes(row, build, tmp_path):
    whole = build(row, tmp_path / "whole")
    whole.train()
    assert len(losses(whole)) == 6
    assert losses(whole)[-1] < losses(whole)[0]
    resumed = build(row, tmp_path / "resumed")
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert resumed.state.global_step == 6
    inner = [t.optimizer.optimizer for t in (resumed, whole)]
    assert all(type(o).__module__.startswith("fused_optim") for o in inner)
    assert_identical(snapshot(inner[0]), snapshot(inner[1]))


def test_the_trainer_makes_groups_that_decay_and_that_do_not(tmp_path):
    made = by_class(row("AdamW"), tmp_path)
    made.create_optimizer()
    assert [group["weight_decay"] for group in made.optimizer.param_groups] == [0.1, 0.0]
    assert [len(group["params"]) for group in made.optimizer.param_groups] == [1, 3]
