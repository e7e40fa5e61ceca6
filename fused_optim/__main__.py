"""``python -m fused_optim``: what this installation will run, and why nothing faster."""

from fused_optim.diagnostics import info

if __name__ == "__main__":
    print(info())
