// Sums of segments and of columns, in an order that depends on counts alone: chains are 32 wide on
// every instruction set.
#pragma once

#include "common/chains.cuh"
#include "cpu/tiling.h"

namespace fused_optim {

constexpr int kSums = 32;  // chains of a sum; a segment's are not longer than 32 then

// Calls add(i, chain) for each element i. The inner loop runs over chains, which makes it a loop
// over vectors.
template <typename Function>
FUSED_DEVICE void InChains(int count, const Function& add) {
  int i = 0;
  for (; i + kSums <= count; i += kSums) {
#pragma GCC unroll 1
    for (int k = 0; k < kSums; ++k) add(i + k, k);
  }
  for (int k = 0; i + k < count; ++k) add(i + k, k);
}

// The sum of up to 1,024 values.
FUSED_DEVICE float SumOf(const float* values, int count) {
  float sums[kSums] = {};
  InChains(count, [&](int i, int k) { sums[k] += values[i]; });
  return TreeSum(sums);
}

inline float ChainSumOf(const float* values, int64_t count, int64_t stride = 1) {
  ChainSum sum;
  for (int64_t i = 0; i < count; ++i) sum.Add(values[i * stride]);
  return sum.Total();
}

// The sum of a line of up to 1,024 values that lie `stride` apart.
FUSED_DEVICE float LineSumOf(const float* values, int count, int stride = 1) {
  constexpr int kFew = 8;
  if (count <= kFew) {
    float sum = 0.0f;
    for (int i = 0; i < count; ++i) sum += values[i * stride];
    return sum;
  }
  if (count >= kWide) return stride == 1 ? SumOf(values, count) : ChainSumOf(values, count, stride);
  float sums[kFew] = {};
  int i = 0;
  for (; i + kFew <= count; i += kFew) {
    for (int k = 0; k < kFew; ++k) sums[k] += values[(i + k) * stride];
  }
  for (int k = 0; i + k < count; ++k) sums[k] += values[(i + k) * stride];
  return TreeSum(sums);
}

FUSED_DEVICE float SquareSumOf(const float* values, int count) {
  float sums[kSums] = {};
  InChains(count, [&](int i, int k) { sums[k] += values[i] * values[i]; });
  return TreeSum(sums);
}

// The sums of columns, in chains of chains.
class ColumnSums {
 public:
  explicit ColumnSums(int width) : width_(width) {
    for (float (&level)[kTileCols] : levels_) {
      for (int j = 0; j < width_; ++j) level[j] = 0.0f;
    }
  }
  // Begins a row, and returns where it is added to.
  float* Next() {
    if (count_ > 0 && count_ % kRows == 0) MoveUp(0);
    if (count_ > 0 && count_ % (kRows * kChain) == 0) MoveUp(1);
    ++count_;
    return Row();
  }
  float* Row() { return levels_[0]; }
  void Totals(float* to) const {
    for (int j = 0; j < width_; ++j) to[j] = levels_[2][j] + (levels_[1][j] + levels_[0][j]);
  }

 private:
  static constexpr int kRows = 16;  // half a chain is more exact and costs next to nothing

  void MoveUp(int level) {
    for (int j = 0; j < width_; ++j) {
      levels_[level + 1][j] += levels_[level][j];
      levels_[level][j] = 0.0f;
    }
  }

  int width_;
  int count_ = 0;
  float levels_[3][kTileCols];
};

}  // namespace fused_optim
