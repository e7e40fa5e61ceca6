"""PTX, as compilers make it of the kernels, for tests that need no GPU."""
