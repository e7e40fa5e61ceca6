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

}  // namespace fused_optim
