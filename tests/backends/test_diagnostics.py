"""`python -m fused_optim`, and what the environment variable FUSED_OPTIM_BACKEND may name."""

import json
import runpy
import sys

import pytest
import torch

import fused_optim
from fused_optim import torch_compat
from fused_optim.backends import diagnostics, dispatch

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
UNKNOWN = "FUSED_OPTIM_BACKEND='bogus' is unknown; use 'auto' or one of cuda, triton, cpu, eager"


@pytest.fixture
def name_backend(monkeypatch):
    """Sets the environment variable, which is unset before."""
    monkeypatch.delenv(dispatch.ENVIRONMENT_VARIABLE, raising=False)
    return lambda name: monkeypatch.setenv(dispatch.ENVIRONMENT_VARIABLE, name)


@pytest.fixture
def command(monkeypatch, capsys, name_backend):
    """Runs `python -m fused_optim` in this process: the exit status, its output and its errors."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["-", *arguments])
        status = 0
        try:
            runpy.run_module("fused_optim", run_name="__main__", alter_sys=True)
        except SystemExit as end:
            status = end.code
        return status, *capsys.readouterr()

    return run


def param(dtype=torch.float32):
    p = torch.nn.Parameter(torch.ones(3, dtype=dtype))
    p.grad = torch.ones_like(p)
    return p


def test_the_command_prints_the_report(command):
    status, out, errors = command()
    assert (status, out, errors) == (0, fused_optim.info() + "\n", "")
    headings = [line.split(",")[0] for line in out.splitlines() if line and line[0] != " "]
    assert [line for line in headings if line != "environment"] == [
        *("versions", "devices", "what was built"),
        *("backend of each optimizer", "why not a faster one"),
    ]


def test_the_report_as_json_is_all_of_it(command, name_backend):
    name_backend("eager")
    status, out, errors = command("--json")
    assert (status, errors) == (0, "")
    found = json.loads(out)
    assert found["environment"]["FUSED_OPTIM_BACKEND"] == "eager"
    assert found["backends"]["cpu"]["torch_compat.AdamW"] == "eager"
    assert found["extensions"].keys() == {"cuda", "cpu"}
    assert found["why_not"].keys() == {"cuda", "triton", "cpu"}
    text = fused_optim.info()
    told = [*found["versions"].values(), *found["devices"].values(), *found["why_not"].values()]
    told += [extension["says"] for extension in found["extensions"].values()]
    assert [one for one in (*told, found["folder"]) if one not in text] == []


def test_the_command_explains_itself(command):
    status, out, errors = command("--help")
    assert (status, errors) == (0, "")
    assert out.startswith("usage: python -m fused_optim [-h] [--version] [--json]\n")
    assert "which backend each optimizer will use" in " ".join(out.split())
    assert command("--version") == (0, f"fused_optim {fused_optim.__version__}\n", "")


@pytest.mark.parametrize("argument", ["--bogus", "AdamW"])
def test_the_command_refuses_other_arguments(command, argument):
    status, out, errors = command(argument)
    assert (status, out) == (2, "")
    assert f"python -m fused_optim: error: unrecognized arguments: {argument}" in errors


def test_the_command_refuses_an_unknown_backend(command, name_backend):
    name_backend("bogus")
    status, out, errors = command()
    assert (status, out) == (2, "")
    assert errors.endswith(f"python -m fused_optim: error: {UNKNOWN}\n")


def test_the_report_says_which_backend_can_not_be_had(monkeypatch, name_backend):
    """The report is what one asks for then, so it must not fail for that reason itself."""
    monkeypatch.setattr(dispatch, "why_not", lambda *_: "no luck")
    monkeypatch.setattr(diagnostics, "_device_types", lambda: ["cuda", "cpu"])
    name_backend("triton")
    report = fused_optim.info()
    reason = "FUSED_OPTIM_BACKEND='triton' can't run adamw_ here: no luck. "
    assert f"AdamW                   none: {reason}Use FUSED_OPTIM_BACKEND='auto'" in report
    assert "AdamW                   eager\n" in report  # on the CPU


@pytest.mark.parametrize(
    "construct",
    [
        lambda: fused_optim.AdamW([param()]),
        lambda: fused_optim.Adafactor([param(torch.bfloat16)]),
        lambda: torch_compat.AdamW([param(torch.float64)]),
    ],
    ids=["AdamW", "Adafactor", "torch_compat.AdamW"],
)
def test_an_optimizer_refuses_an_unknown_backend(construct, name_backend):
    name_backend("bogus")
    with pytest.raises(ValueError) as error:
        construct()
    assert str(error.value) == UNKNOWN


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_step_refuses_an_unknown_backend_and_changes_nothing(dtype, name_backend):
    p = param(dtype)
    optimizer = fused_optim.AdamW([p])
    name_backend("bogus")
    with pytest.raises(ValueError) as error:
        optimizer.step()
    assert str(error.value) == UNKNOWN
    assert p.tolist() == [1.0, 1.0, 1.0] and not optimizer.state[p]


@pytest.mark.parametrize("name", ["cuda", "triton", "cpu", "eager", "auto", ""])
def test_cpu_tensors_run_whichever_backend_is_named(name, name_backend):
    name_backend(name)
    p = param()
    optimizer = fused_optim.AdamW([p])
    optimizer.step()
    assert p[0] < 1.0
    built = dispatch.why_not("cpu", "adamw_") is None and name != "eager"
    assert dispatch.choose("auto", "adamw_", CPU) == ("cpu" if built else "eager")


def test_the_variable_stands_for_auto_alone(name_backend, monkeypatch):
    monkeypatch.setattr(dispatch, "why_not", lambda *_: None)
    name_backend("triton")
    assert dispatch.choose("auto", "adamw_", CUDA) == "triton"
    assert dispatch.choose("cuda", "adamw_", CUDA) == "cuda"
    name_backend("bogus")
    assert dispatch.choose("cuda", "adamw_", CUDA) == "cuda"
    for no_name in ("auto", ""):
        name_backend(no_name)
        assert dispatch.choose("auto", "adamw_", CUDA) == "cuda"


def test_the_variable_names_kernels_that_may_take_cpu_tensors(name_backend, monkeypatch):
    monkeypatch.setenv(dispatch.TEST_VARIABLE, "triton,cuda")
    assert dispatch.choose("auto", "adamw_", CPU) == "triton"
    for name in ("cuda", "triton", "eager"):
        name_backend(name)
        assert dispatch.choose("auto", "adamw_", CPU) == name


def test_a_backend_that_can_not_be_had_is_blamed_on_what_names_it(name_backend, monkeypatch):
    monkeypatch.setattr(dispatch, "why_not", lambda *_: "no luck")
    name_backend("cuda")
    remedies = {"auto": "FUSED_OPTIM_BACKEND='cuda'.*Use FUSED_OPTIM_BACKEND='auto' for"}
    remedies["triton"] = "^backend='triton' can't run adamw_ here: no luck. Use backend='auto' for"
    for requested, remedy in remedies.items():
        with pytest.raises(RuntimeError, match=remedy):
            dispatch.choose(requested, "adamw_", CUDA)
