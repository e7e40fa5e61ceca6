"""The hints of the public API: complete, and true of a program that `make lint` checks."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import typed_user

import fused_optim
from fused_optim import torch_compat


def functions() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Yield the public functions, and the public classes' constructors and public methods."""
    for module in (fused_optim, torch_compat):
        for name in module.__all__:
            found = getattr(module, name)
            if inspect.isclass(found):
                for method, function in inspect.getmembers(found, inspect.isfunction):
                    own = function.__module__.startswith("fused_optim")
                    if own and (method == "__init__" or not method.startswith("_")):
                        yield f"{module.__name__}.{name}.{method}", function
            elif inspect.isfunction(found):
                yield f"{module.__name__}.{name}", found


PUBLIC = dict(functions())


@pytest.mark.parametrize("name", PUBLIC)
def test_every_argument_and_result_has_a_hint(name: str) -> None:
    signature = inspect.signature(PUBLIC[name])
    bare = [p.name for p in signature.parameters.values() if p.annotation is p.empty]
    assert bare in ([], ["self"])
    assert signature.return_annotation is not signature.empty


def test_the_program_that_is_checked_runs(capsys: pytest.CaptureFixture[str]) -> None:
    typed_user.main()
    assert capsys.readouterr().out.strip().startswith(fused_optim.__version__)
