"""Whether two optimizers that are said to do the same do the same, before either is timed."""

import math

from bench.subject import Subject

# Norm of the difference of parameters, as a share of the way that they went. The Adafactors of
# torch and transformers divide by a root mean square from a float32 norm, which torch sums on a CPU
# with an error of 4e-4 for 1e7 elements and of 3e-3 for 4e7. Lion's sign of a sum that cancels
# hangs on its rounding. 16-bit parameters move a few units, each of which may be rounded otherwise.
_TOLERANCES = {"adamw": 1e-4, "lion": 1e-2, "adafactor": 5e-3}
_16_BIT_TOLERANCE = 0.05

# Of gradients that differ in more than these: else decay rates change the length of updates alone,
# and clipping undoes that.
_GRADIENT_SCALES = (1.0, -0.5, 4.0)
_CHUNK = 2**22  # elements that are compared at once, in float64


class DisagreementError(AssertionError):
    """Two optimizers of a pair of equal semantics gave different parameters."""


def check(ours: Subject, baseline: Subject, pair: str) -> None:
    """Step both over the same gradients and raise where their parameters differ by too much."""
    for draw, scale in enumerate(_GRADIENT_SCALES):
        for subject in (ours, baseline):
            subject.set_gradients(scale, draw)
            subject.step()
    for subject in (ours, baseline):
        subject.set_gradients()
    tolerance = _TOLERANCES[ours.setup.op] if ours.dtype == "fp32" else _16_BIT_TOLERANCE
    for index in range(ours.tensors):
        way, error = _compare(ours, baseline, index)
        if not (0 < way and error <= tolerance * way):
            raise DisagreementError(
                f"{pair} disagree: tensor {index} of shape {tuple(ours.shapes[index])} went "
                f"{way:.3g} in {len(_GRADIENT_SCALES)} steps and differs by {error:.3g}, and "
                f"{tolerance * way:.3g} is allowed; a ratio of different updates means nothing"
            )


def _compare(ours: Subject, baseline: Subject, index: int) -> tuple[float, float]:
    """Return how far the baseline's tensor went, and how far ours is from there."""
    tensors = (ours.initial(index), ours.params[index], baseline.params[index])
    way = error = 0.0
    for chunks in zip(*(t.detach().flatten().split(_CHUNK) for t in tensors), strict=True):
        start, p, q = (chunk.double() for chunk in chunks)
        way += (q - start).square().sum().item()
        error += (p - q).square().sum().item()
    return math.sqrt(way), math.sqrt(error)
