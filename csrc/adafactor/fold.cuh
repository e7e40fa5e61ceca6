// F1 and F2: what the tiles of a tensor have, added up.
#pragma once

#include "adafactor/lines.cuh"

namespace fused_optim {

// Adds up the tiles' sums of one row or column: `count` terms, `stride` apart. The sum replaces the
// first term. Loads of 8 terms are in flight at once: a tall matrix in small tiles has hundreds.
FUSED_DEVICE float FoldTiles(float* sums, int64_t count, int64_t stride) {
  constexpr int kAtOnce = 8;
  ChainSum sum;
  int64_t i = 0;
#pragma unroll 1
  for (; i + kAtOnce <= count; i += kAtOnce) {
    float terms[kAtOnce];
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) terms[k] = LoadEntry(sums + (i + k) * stride);
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) sum.Add(terms[k]);
  }
#pragma unroll 1
  for (; i < count; ++i) sum.Add(LoadEntry(sums + i * stride));
  StoreEntry(sums, sum.Total());
  return sum.Total();
}

FUSED_DEVICE void FoldTensor(const TensorTask& task, float* sum_out) {
  const float g_sum = BlockSum(StridedSum(task.Scratch() + task.map.tile_sums, task.shape.tiles));
  const float p_sum = BlockSum(StridedSum(task.Scratch() + task.map.tile_params, task.shape.tiles));
  if (ThreadIndex() != 0) return;
  StoreEntry(task.Scratch() + kGradSum, g_sum);
  StoreEntry(task.Scratch() + kParamSum, p_sum);
  StoreEntry(task.Scratch() + kArrived, BitsFloat(0));
  if (sum_out != nullptr) StoreEntry(sum_out, g_sum);
}

FUSED_DEVICE void FoldLines(const TensorTask& task, const LineJob& job) {
  const Geometry& shape = task.shape;
  if (!job.is_row) {
    float* sums = task.Scratch() + task.map.col_sums + job.batch * shape.cols + job.line;
    if (job.valid) FoldTiles(sums, shape.row_tiles, shape.batch * shape.cols);
    return;
  }
  const int64_t at = job.batch * shape.rows + job.line;
  float mean = 0.0f;
  float old = 0.0f;
  if (job.valid) {
    float* sums = task.Scratch() + task.map.row_sums + at;
    const float sum = FoldTiles(sums, shape.strips, shape.batch * shape.rows);
    mean = Divide(sum, static_cast<float>(task.t.global_cols));
    old = LoadEntry(GlobalPointer<const float>(task.t.exp_avg_sq) + at);
  }
  const float means = BlockSum(mean);
  const float olds = BlockSum(old);
  if (ThreadIndex() == 0) {
    const int64_t slot = job.batch * shape.row_jobs + job.job;
    StoreEntry(task.Scratch() + task.map.line_means + slot, means);
    StoreEntry(task.Scratch() + task.map.line_old + slot, olds);
  }
}

// One line job of F1 and F2; part 0 is the tensor's totals.
FUSED_DEVICE void Fold(const TensorTask& task, int32_t part, float* sum_out) {
  if (part == 0) {
    FoldTensor(task, sum_out);
  } else if (!task.shape.linear) {
    FoldLines(task, LineJobOf(task.shape, part));
  }
}

}  // namespace fused_optim
