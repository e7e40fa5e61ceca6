"""The registry of ops, and what C++ and Triton know of its tables."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path

import bench_package  # noqa: F401
import pytest
import torch

from fused_optim import ops, precision
from fused_optim.backends.interface import Bucket, BucketKey
from fused_optim.plan import records
from tools import tables_header

CSRC = Path(__file__).resolve().parents[2] / "csrc"


def test_the_header_is_what_the_registry_says() -> None:
    """Spaces apart, which clang-format moves."""
    pytest.importorskip("jinja2")
    assert tables_header.HEADER.read_text().split() == tables_header.text().split()


def test_tags_and_flags() -> None:
    pytest.importorskip("jinja2")
    tags = {f"k{str(d).split('.')[1].title()}": tag for d, tag in precision.DTYPE_TAGS.items()}
    tags["kBFloat16"], tags["kEightBit"] = tags.pop("kBfloat16"), tags.pop("kUint8")
    members = ", ".join(
        f"{name} = {tag}" for name, tag in sorted(tags.items(), key=lambda item: item[1])
    )
    assert f"enum DtypeTag : int64_t {{ {members} }};" in tables_header.text()
    flags = "kScaleParameter = 1, kHoldIfZero = 2, kClipIgnoresNan = 4"
    assert f"enum AdafactorRowFlags : uint32_t {{ {flags} }};" in tables_header.text()


def test_every_kernel_file_is_registered() -> None:
    files = {str(path.relative_to(CSRC).with_suffix("")) for path in CSRC.rglob("*.cu")}
    assert files == set(ops.KERNELS)
    assert len(set(ops.KERNELS)) == len(ops.KERNELS)


@pytest.mark.parametrize(
    "module", ["fused_optim.backends.eager", "fused_optim.triton_kernels", "cuda"]
)
def test_backends_have_the_registered_ops(module: str) -> None:
    if module == "cuda":
        host_module = pytest.importorskip("host_module")
        found = host_module.backend()
    else:
        if "triton" in module:
            pytest.importorskip("triton")
        found = importlib.import_module(module)
    wanted = set(ops.OPS)
    if module != "fused_optim.backends.eager":
        wanted -= {
            op for family in ops.FAMILIES.values() if not family.kernels for op in family.ops
        }
    beside = {"needs", "keeps_sums", "shard_sums", "shard_update_sum", "eight_bit_updates"}
    assert set(found.__all__) - beside == wanted
    for op in wanted:
        assert callable(getattr(found, op))


@pytest.mark.parametrize("family", ops.FAMILIES.values(), ids=lambda family: family.name)
def test_rows(family: ops.Family) -> None:
    fields = [field.name for field in dataclasses.fields(family.row)]
    assert len(fields) <= ops.ROW_SIZE and fields[0] == "grad_mul"
    assert "clip_value" not in fields[2:]
    if family.elementwise:  # the shared kernels read both by their places
        assert fields[1] == "clip_value" and "step" in fields
    assert {field.type for field in dataclasses.fields(family.row)} <= {"float", "int"}
    assert len(records.pack_rows([family.row()])) == 4 * ops.ROW_SIZE
    assert family.ops == tuple(op for op in ops.OPS if op in family.ops)


@dataclasses.dataclass
class Unknown:
    grad_mul: float = 1.0


def test_unknown_updates_are_key_errors() -> None:
    """Packed as something else they would be read as something else."""
    with pytest.raises(KeyError, match="Unknown"):
        records.pack_rows([Unknown()])
    bucket = Bucket(BucketKey("unknown", torch.device("cpu"), torch.float32, "none", False, False))
    with pytest.raises(KeyError, match="unknown"):
        records.pack(bucket)


@pytest.mark.parametrize("name", [f.name for f in ops.FAMILIES.values() if f.kernels])
def test_triton_finds_fields_where_they_are_packed(name: str) -> None:
    pytest.importorskip("triton")
    places = {"adafactor": "adafactor_blocks"}
    module = importlib.import_module(f"fused_optim.triton_kernels.{places.get(name, name)}")
    called = {"flags": "row_flags"}
    for index, field in enumerate(dataclasses.fields(ops.FAMILIES[name].row)):
        assert getattr(module, called.get(field.name, field.name).upper()).value == index
    storage = importlib.import_module("fused_optim.triton_kernels.storage")
    for index, field in enumerate(ops.RECORD_FIELDS):
        assert getattr(storage, field.upper()).value == index
