"""Lightning with these optimizers, unmodified."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from optimizer_table import Row, assert_identical, row, snapshot
from regression import Regression, loader

lightning = pytest.importorskip("pytorch_lightning")
from pytorch_lightning.plugins.precision import MixedPrecision  # noqa: E402

# Warnings of Lightning itself are no concern of these tests.
pytestmark = pytest.mark.filterwarnings("ignore")

NORM = 0.1


class Module(lightning.LightningModule):
    def __init__(self, row: Row, **options: Any) -> None:
        super().__init__()
        self.model = Regression()
        self.row, self.options = row, options

    def training_step(self, batch: dict[str, torch.Tensor], number: int) -> torch.Tensor:
        return self.model(**batch)["loss"]

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = self.row.build(self.model, **self.options)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        return {"optimizer": optimizer, "lr_scheduler": schedule}


def fit(module: Module, folder: Path, epochs: int, path: Path | None = None, **options: Any) -> Any:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        devices=1,
        accumulate_grad_batches=2,
        enable_checkpointing=False,
        default_root_dir=folder,
        **quiet,
        **options,
    )
    trainer.fit(module, loader(), ckpt_path=path)
    return trainer


def by_hand(row: Row, dtype: torch.dtype, scaler: torch.amp.GradScaler, **options: Any) -> Any:
    """Two epochs of the same loop without Lightning; return the optimizer."""
    model = Regression()
    optimizer = row.build(model, **options)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    for _ in range(2):
        for number, batch in enumerate(loader()):
            with torch.autocast("cpu", dtype):
                loss = model(**batch)["loss"] / 2
            scaler.scale(loss).backward()
            if number % 2:
                if not options:
                    scaler.unscale_(optimizer)
                    assert torch.nn.utils.clip_grad_norm_(model.parameters(), NORM) > NORM
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
        schedule.step()
    return optimizer


ROWS = pytest.mark.parametrize("name", ["AdamW", "Adafactor-lr", "torch-AdamW"])


@ROWS
def test_bf16_mixed_accumulates_clips_and_resumes(name: str, tmp_path: Path) -> None:
    options = {"precision": "bf16-mixed", "gradient_clip_val": NORM}
    half = fit(Module(row(name)), tmp_path, 2, **options)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    expected = by_hand(row(name), torch.bfloat16, scaler)
    assert_identical(snapshot(half.optimizers[0])[:2], snapshot(expected)[:2])
    half.save_checkpoint(tmp_path / "half.ckpt")
    resumed = fit(Module(row(name)), tmp_path, 4, tmp_path / "half.ckpt", **options)
    whole = fit(Module(row(name)), tmp_path, 4, **options)
    assert_identical(snapshot(resumed.optimizers[0]), snapshot(whole.optimizers[0]))
    assert whole.global_step == 8


@ROWS
def test_16_mixed_unscales_and_clips_within_the_step(name: str, tmp_path: Path) -> None:
    """Lightning needs a precision plugin with a scaler for CPUs there."""
    module = Module(row(name), max_grad_norm=NORM)
    plugin = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=8.0))
    trainer = fit(module, tmp_path, 2, plugins=[plugin])
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    expected = by_hand(row(name), torch.float16, scaler, max_grad_norm=NORM)
    assert_identical(snapshot(trainer.optimizers[0])[:2], snapshot(expected)[:2])
    assert expected.grad_norm > NORM
