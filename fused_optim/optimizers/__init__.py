"""What users construct: hyperparameters, their checks, and the formulas of a step's scalars."""
