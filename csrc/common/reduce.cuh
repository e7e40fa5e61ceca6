// Sums in an order that depends on counts alone. No serial chain is longer than 32 terms: a float32
// sum of 4,096 squares in a row is 56 ulp off.
#pragma once

#include "common/device.cuh"

namespace fused_optim {

constexpr int kChain = 32;

// Adds terms in chains of chains.
class ChainSum {
 public:
  FUSED_DEVICE void Add(float x) {
    level0_ += x;
    if (++count_ % kChain != 0) return;
    level1_ += level0_;
    level0_ = 0.0f;
    if (count_ % (kChain * kChain) != 0) return;
    level2_ += level1_;
    level1_ = 0.0f;
  }
  FUSED_DEVICE float Total() const { return level2_ + (level1_ + level0_); }

 private:
  float level0_ = 0.0f;
  float level1_ = 0.0f;
  float level2_ = 0.0f;
  int count_ = 0;
};

// The sum of N registers, pairwise. N is a power of two.
template <int N>
FUSED_DEVICE float TreeSum(const float (&x)[N]) {
  float sums[N];
#pragma unroll
  for (int i = 0; i < N; ++i) sums[i] = x[i];
#pragma unroll
  for (int width = N / 2; width > 0; width /= 2) {
#pragma unroll
    for (int i = 0; i < width; ++i) sums[i] = sums[i] + sums[i + width];
  }
  return sums[0];
}

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
