// Sums over the threads of a block, in an order that depends on counts alone: see chains.cuh.
#pragma once

#include "common/chains.cuh"

namespace fused_optim {

// The sum over groups of `lanes` neighbouring lanes (a power of two), in every lane.
FUSED_DEVICE float LaneSum(float x, int lanes) {
  for (int mask = lanes / 2; mask > 0; mask /= 2) x = x + ShuffleXor(x, mask);
  return x;
}

// The sum over all threads of the block, in every thread. All of them must call it.
FUSED_DEVICE float BlockSum(float x) {
  __shared__ float warps[kWarps];
  x = LaneSum(x, kLanes);
  if (ThreadIndex() % kLanes == 0) warps[ThreadIndex() / kLanes] = x;
  Barrier();
  float sums[kWarps];
#pragma unroll
  for (int i = 0; i < kWarps; ++i) sums[i] = warps[i];
  Barrier();
  return TreeSum(sums);
}

// This thread's part of the sum of values[0 .. count).
FUSED_DEVICE float StridedSum(const float* values, int64_t count) {
  ChainSum sum;
  for (int64_t i = ThreadIndex(); i < count; i += kThreads) sum.Add(LoadFresh(values + i));
  return sum.Total();
}

}  // namespace fused_optim
