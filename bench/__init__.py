"""Benchmarks of fused_optim against torch.optim and the peers. Run from a checkout."""
