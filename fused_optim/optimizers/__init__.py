"""The optimizers: hyperparameters, their checks, and the formulas of a step's scalars."""
