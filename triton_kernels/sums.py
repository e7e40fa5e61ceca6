"""Long sums in a fixed order."""

import triton
import triton.language as tl


@triton.jit
def long_sum(ptr, count):
    """Return the sum of ``count`` consecutive float32 as one value; no serial chain exceeds 32."""
    lane = tl.arange(0, 1024)
    total = tl.zeros([1024], tl.float32)
    for outer in range(0, count, 32 * 1024):
        part = tl.zeros([1024], tl.float32)
        for inner in range(outer, tl.minimum(outer + 32 * 1024, count), 1024):
            part += tl.load(ptr + inner + lane, mask=inner + lane < count, other=0.0)
        total += part
    return tl.sum(total)
