"""``torch.optim``'s optimizers by their names; `fused_optim.optimizers.torch_compat` has them."""

from fused_optim.optimizers.torch_compat import Adafactor, Adam, AdamW

__all__ = ["Adafactor", "Adam", "AdamW"]
