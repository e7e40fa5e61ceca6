"""Making Triton's interpreter affordable, and as strict as a GPU.

It repeats for every call what a launch needs once, which `quicken` spares it; no result changes.
And it is kind to code that a GPU is not kind to: `harden`, and `accesses`, which tells where a
kernel read and wrote. What a version of Triton does not have is left as it is.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock


def quicken() -> None:
    """Spare the interpreter work that has no effect; calling this again does nothing."""
    from triton.runtime import interpreter

    if getattr(interpreter, "quickened", False):
        return
    interpreter.quickened = True
    _patch_once_per_launch(interpreter)
    _check_no_overflow(interpreter)
    _look_dtypes_up(interpreter)


def _patch_once_per_launch(interpreter: Any) -> None:
    """Replace the language's builtins at a launch, not at every call of a function within it."""
    language, core = interpreter.tl, interpreter.tl.core
    patch, launch = interpreter._patch_lang, interpreter.GridExecutor.__call__
    done: set[str] = set()  # the modules through which a function may reach the language

    @functools.cache
    def modules_of(function: Any) -> frozenset[str]:
        visible = {id(value) for value in function.__globals__.values()}
        return frozenset(m.__name__ for m in (language, core) if id(m) in visible)

    @functools.wraps(patch)
    def patch_once(function: Any) -> Any:
        if modules_of(function) <= done:
            return None
        done.update(modules_of(function))
        return patch(function)

    @functools.wraps(launch)
    def launch_anew(self: Any, *args: Any, **kwargs: Any) -> None:
        done.clear()
        launch(self, *args, **kwargs)

    interpreter._patch_lang = patch_once
    interpreter.GridExecutor.__call__ = launch_anew


def _check_no_overflow(interpreter: Any) -> None:
    """Compute no check of integer overflow, which is asserted in debug mode alone."""
    builder = interpreter.interpreter_builder
    if hasattr(builder.options, "sanitize_overflow"):
        builder.options = dataclasses.replace(builder.options, sanitize_overflow=False)


def _look_dtypes_up(interpreter: Any) -> None:
    """Remember the numpy dtype of each of Triton's instead of making a table for every look-up."""
    slow = interpreter._get_np_dtype
    known: dict[str, Any] = {}

    @functools.wraps(slow)
    def look_up(dtype: Any) -> Any:
        scalar = dtype.scalar
        if scalar.is_ptr():
            return slow(scalar)
        if scalar.name not in known:
            known[scalar.name] = slow(scalar)
        return known[scalar.name]

    interpreter._get_np_dtype = look_up


def harden() -> None:
    """Have masked lanes of a load hold NaN, or the largest integer, where the kernel gives nothing.

    A GPU leaves there what it likes, and the interpreter zeros, which hide that they are used. The
    largest 16-bit integer is a NaN of both 16-bit floats. Calling this again does nothing.
    """
    import numpy as np
    from triton.runtime import interpreter

    builder = interpreter.InterpreterBuilder
    lenient = builder.create_masked_load
    if getattr(lenient, "hardened", False):
        return

    @functools.wraps(lenient)
    def load(self: Any, ptrs: Any, mask: Any, other: Any, *more: Any) -> Any:
        if other is None:
            element = ptrs.get_element_ty()
            dtype = np.dtype(interpreter._get_np_dtype(element))
            worst = (
                np.nan if dtype.kind == "f" else np.iinfo(dtype).max if dtype.kind in "iu" else 0
            )
            lanes = np.full_like(ptrs.data, worst, dtype=dtype)
            other = interpreter.TensorHandle(lanes, element)
        return lenient(self, ptrs, mask, other, *more)

    load.hardened = True
    builder.create_masked_load = load


def _worst(dtype: Any) -> Any:
    """Return what of a numpy dtype no result survives."""
    import numpy as np

    if dtype.kind == "f":
        return np.nan
    return np.iinfo(dtype).max if dtype.kind in "iu" else True


@contextlib.contextmanager
def accesses() -> Iterator[list[tuple[Any, int]]]:
    """Yield a list that grows by (addresses, bytes at each) with every load and store."""
    import numpy as np
    from triton.runtime import interpreter

    real, seen = interpreter._interpreter, []

    def load(pointers: Any, mask: Any, other: Any, dtype: Any) -> Any:
        seen.append((pointers[mask], np.dtype(dtype).itemsize))
        return real.load(pointers, mask, other, dtype)

    def store(pointers: Any, value: Any, mask: Any) -> Any:
        seen.append((pointers[mask], value.dtype.itemsize))
        return real.store(pointers, value, mask)

    with mock.patch.object(interpreter, "_interpreter", SimpleNamespace(load=load, store=store)):
        yield seen
