"""Lion as people write it in PyTorch, one operator after another for each tensor: a baseline."""

import torch


class ForLoopLion(torch.optim.Optimizer):
    """The update of Lion's paper (algorithm 2), in the parameter's dtype."""

    def __init__(self, params, lr=1e-4, betas=(0.9, 0.99), weight_decay=0.0) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                momentum = self.state[p].setdefault("exp_avg", torch.zeros_like(p))
                direction = momentum.mul(beta1).add_(p.grad, alpha=1 - beta1).sign_()
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.sub_(direction, alpha=group["lr"])
                momentum.mul_(beta2).add_(p.grad, alpha=1 - beta2)
