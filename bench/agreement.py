"""Whether two optimizers that are said to do the same do the same, before either is timed."""

from __future__ import annotations

from bench.subject import Subject

_TOLERANCES = {"fp32": 1e-4, "fp16": 0.05, "bf16": 0.05}
"""Norm of the difference, as a share of the way that parameters went. 16-bit parameters move a few
units in the last place, each of which may be rounded otherwise."""

# Gradients of several sizes and signs: a first step alone hardly depends on betas.
_GRADIENT_SCALES = (1.0, -0.5, 4.0)


class DisagreementError(AssertionError):
    """Two optimizers of a pair of equal semantics gave different parameters."""


def check(ours: Subject, baseline: Subject, pair: str) -> None:
    """Step both over the same gradients and compare their parameters.

    Raises:
        DisagreementError: they differ by more than rounding; the message names pair and tensor.
    """
    for scale in _GRADIENT_SCALES:
        for subject in (ours, baseline):
            subject.set_gradients(scale)
            subject.step()
    for subject in (ours, baseline):
        subject.set_gradients()
    tolerance = _TOLERANCES[ours.dtype]
    for index, (p, q) in enumerate(zip(ours.params, baseline.params, strict=True)):
        start = ours.initial(index).float()
        way = (q.detach().float() - start).norm().item()
        error = (p.detach().float() - q.detach().float()).norm().item()
        if not (0 < way and error <= tolerance * way):
            raise DisagreementError(
                f"{pair} disagree: tensor {index} of shape {tuple(p.shape)} went {way:.3g} and "
                f"differs by {error:.3g} after {len(_GRADIENT_SCALES)} steps, and {tolerance:g} "
                "of the way is allowed; a ratio of different updates would mean nothing"
            )
