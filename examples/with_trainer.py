"""Train with transformers' Trainer: bf16 weights that learn, in 12, 8 or 6 bytes per parameter.

python examples/with_trainer.py
"""

from __future__ import annotations

import tempfile

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

import fused_optim

STEPS = 60


def main() -> None:
    """Train a tiny GPT-2 to count."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=64, n_positions=16, n_embd=32, n_layer=2, n_head=2)
    # Load the weights in bf16. TrainingArguments(bf16=True) would be autocast over float32 weights.
    model = GPT2LMHeadModel(config).to(torch.bfloat16)
    rows = [{"input_ids": (torch.arange(16) + start) % 64} for start in range(64)]
    dataset = [{**row, "labels": row["input_ids"]} for row in rows]

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=STEPS,
            per_device_train_batch_size=16,
            weight_decay=0.1,  # the Trainer makes the groups, one of them without decay
            lr_scheduler_type="cosine",
            warmup_steps=STEPS // 10,
            max_grad_norm=0.0,  # the optimizer clips, within its step
            logging_steps=20,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
        )
        options = {"lr": 1e-2, "max_grad_norm": 1.0}
        trainer = Trainer(
            model,
            arguments,
            train_dataset=dataset,
            optimizer_cls_and_kwargs=(fused_optim.AdamW, options),
        )
        trainer.train()
    for entry in trainer.state.log_history:
        if "loss" in entry:
            print(f"step {entry['step']}: loss {float(entry['loss']):.3f}")


if __name__ == "__main__":
    main()
