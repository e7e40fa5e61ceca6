// Sums over the threads of a block, in an order that depends on counts alone: see chains.cuh.
#pragma once

#include "common/chains.cuh"

namespace fused_optim {

// The sum over groups of `lanes` neighbouring lanes (a power of two), in every lane.
FUSED_DEVICE float LaneSum(float x, int lanes) {
#pragma unroll
  for (int mask = kLanes / 2; mask > 0; mask /= 2) {
    if (mask < lanes) x = x + ShuffleXor(x, mask);
  }
  return x;
}

// The sums over all lanes of x, in the first half of the lanes, and of y, in the second. Terms are
// added as LaneSum adds them, but by the lanes of one half at a time: in 5 shuffles instead of 10.
FUSED_DEVICE float LaneSums(float x, float y) {
  constexpr int kHalf = kLanes / 2;
  const bool second = (ThreadIndex() & kHalf) != 0;
  float sum = (second ? y : x) + ShuffleXor(second ? x : y, kHalf);
#pragma unroll
  for (int mask = kHalf / 2; mask > 0; mask /= 2) sum = sum + ShuffleXor(sum, mask);
  return sum;
}

// The largest word of the warp's lanes, in every lane. Every lane must call it.
FUSED_DEVICE uint32_t WarpMax(uint32_t word) {
#pragma unroll
  for (int mask = kLanes / 2; mask > 0; mask /= 2) {
    const uint32_t other = FloatBits(ShuffleXor(BitsFloat(word), mask));
    word = other > word ? other : word;
  }
  return word;
}

// The sum over all threads of the block, in every thread. All of them must call it.
FUSED_DEVICE float BlockSum(float x) {
  __shared__ float warps[kWarps];
  x = LaneSum(x, kLanes);
  if ((ThreadIndex() & (kLanes - 1)) == 0) warps[ThreadIndex() >> kLaneBits] = x;
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
