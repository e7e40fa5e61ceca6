// F6: the sums of squares of the updates, before they are scaled.
#pragma once

#include "adafactor/factors.cuh"

namespace fused_optim {

// A lane's part of a tile's sum, from the last step to the first: note: [back and forth].
template <bool kFast>
FUSED_DEVICE float SumUpdates(const TensorTask& task, const LaneRuns& runs) {
  constexpr int kAtOnce = kFast ? 2 : 1;
  constexpr int kAhead = 4;
  const Scaled prepare = ScaledOf(task);
  const TensorRecord& t = task.t;
  const RowFactors r = RowFactorsOf(task, runs);
  const int dtype = static_cast<int>(t.grad_dtype);
  const bool wide = dtype == kFloat32;
  const float cap = task.row.update_cap;
  float c[kRun];
  if (kFast && !runs.linear && runs.steps > 0) LoadRun(ColumnFactorsOf(task, runs), c);
  float total = 0.0f;
  float sum = 0.0f;  // of a chain
  int first = (runs.steps - 1) / kAtOnce * kAtOnce;
  int64_t index = IndexAt(runs, first);
#pragma unroll 1
  for (; first >= 0 && runs.steps > 0; first -= kAtOnce, index -= kAtOnce * runs.stride) {
    Raw<kRun> raw[kAtOnce];
    if constexpr (kFast) {
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) {
        if (first + k < runs.steps) raw[k] = LoadRaw<kRun>(t.grad, wide, index + k * runs.stride);
      }
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) {
        if (first >= kAhead) PrefetchRaw(t.grad, wide, index + (k - kAhead) * runs.stride);
      }
    }
#pragma unroll
    for (int k = kAtOnce - 1; k >= 0; --k) {  // one order, however many there are at once
      if (first + k >= runs.steps) continue;
      float u[kRun];
      if constexpr (kFast) {
        const float row_factor =
            runs.linear ? LinearFactors(task, r, index + k * runs.stride, c) : r.At(first + k);
        Unpack(raw[k], dtype, u);
#pragma unroll
        for (int i = 0; i < kRun; ++i) u[i] = Unscaled(prepare(u[i]), row_factor * c[i], cap);
      } else {
        GradientsSingly(t, runs, first + k, prepare, u);
        const int count = CountAt(runs, first + k);
#pragma unroll
        for (int i = 0; i < kRun; ++i) c[i] = 1.0f;
#pragma unroll 1
        for (int i = 0; i < count; ++i) Put(MultiplierAt(task, runs, r, first + k, i), i, c);
#pragma unroll
        for (int i = 0; i < kRun; ++i) u[i] = Unscaled(u[i], c[i], cap);
      }
#pragma unroll
      for (int i = 0; i < kRun; ++i) u[i] = u[i] * u[i];
      sum += TreeSum(u);
    }
    if (first % kChain != 0) continue;
    total += sum;
    sum = 0.0f;
  }
  return total;
}

// The sum of one tile, to scratch. All threads of the block must call it.
FUSED_DEVICE void SumUpdatesOfTile(const TensorTask& task, int32_t tile) {
  const LaneRuns runs = RunsOf(task.shape, PlaceOfTile(task.shape, tile));
  const bool fast = HasFastFactors(task, tile);
  const float sum = BlockSum(fast ? SumUpdates<true>(task, runs) : SumUpdates<false>(task, runs));
  if (ThreadIndex() == 0) StoreEntry(task.Scratch() + task.map.tile_sums + tile, sum);
}

// The sum of the tensor, once its tiles are there. All threads of the block must call it.
FUSED_DEVICE void FoldUpdateSums(const TensorTask& task) {
  const float total = BlockSum(StridedSum(task.Scratch() + task.map.tile_sums, task.shape.tiles));
  if (ThreadIndex() == 0) StoreEntry(task.Scratch() + kUpdateSum, total);
}

}  // namespace fused_optim
