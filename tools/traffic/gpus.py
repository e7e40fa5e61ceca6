"""The GPUs that times are predicted for, and what is assumed of them. We measured none of it.

Data sheets: NVIDIA A100 80GB SXM (2,039 GB/s, 108 SMs, 40 MB), H100 SXM (3,350 GB/s, 132, 50 MB),
H200 SXM (4,800 GB/s, 132; its L2 is taken to be H100's), HGX B200 (8,000 GB/s, 148 SMs; 126 MB).
"""

from dataclasses import dataclass, replace
from typing import Any

SEEN_COPIES = {"H100 SXM": 3000.0, "H200": 4300.0}
"""GB/s of device-to-device copies, read plus written, as told of such machines: an input."""

COPY_SHARE = 0.9
"""Of the data sheet's bandwidth that a copy reaches, where none was seen: 3,000 of 3,350 and 4,300
of 4,800 are both 0.90."""

L2_SHARE = 0.8
"""Of L2 that a pass finds again in the next. An assumption: the rest goes to what else is live, to
replacement that is not LRU, and to lines kept in both partitions."""

LAUNCH_US = 4.0  # Microseconds that a launch adds to a step: start, fill and drain. An assumption

BLOCKS_PER_SM = 2  # Blocks of Adafactor's tile kernels that an SM holds: they are compiled for two


@dataclass(frozen=True)
class Gpu:
    """A device as the model sees it; a copy's GB/s are read plus written."""

    name: str
    datasheet_gb_per_s: float
    copy_gb_per_s: float
    copy_source: str
    processors: int
    l2_bytes: int

    @property
    def grid(self) -> tuple[int, float]:
        """Blocks that run at once, and the bytes of L2 that passes find again."""
        return self.processors * BLOCKS_PER_SM, self.l2_bytes * L2_SHARE


def _gpu(name: str, gb_per_s: float, processors: int, l2_mb: int) -> Gpu:
    if name in SEEN_COPIES:
        copy, source = SEEN_COPIES[name], "copy bandwidth seen on such a machine"
    else:
        copy, source = COPY_SHARE * gb_per_s, f"{COPY_SHARE} of the data sheet, assumed"
    return Gpu(name, gb_per_s, copy, source, processors, l2_mb << 20)


GPUS = {
    gpu.name: gpu
    for gpu in (
        _gpu("A100 80GB", 2039.0, 108, 40),
        _gpu("H100 SXM", 3350.0, 132, 50),
        _gpu("H200", 4800.0, 132, 50),
        _gpu("B200", 8000.0, 148, 126),
    )
}


def measured(machine: dict[str, Any], copy: dict[str, Any] | None) -> Gpu | None:
    """Return the GPU of a result file, its own figures in place of the table's; None if unknown."""
    name = str(machine.get("gpu") or "")
    gpu = next((gpu for key, gpu in GPUS.items() if key.split()[0] in name), None)
    if gpu is None:
        return None
    if copy:
        source = "copy bandwidth of the result file"
        gpu = replace(gpu, copy_gb_per_s=copy["gb_per_s"], copy_source=source)
    processors, l2_bytes = machine.get("multiprocessors"), machine.get("l2_bytes")
    return replace(gpu, processors=processors or gpu.processors, l2_bytes=l2_bytes or gpu.l2_bytes)
