"""Making Triton's interpreter affordable: it repeats for every call what a launch needs once.

Nothing here changes a result. What a version of Triton does not have is left as it is.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any


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
