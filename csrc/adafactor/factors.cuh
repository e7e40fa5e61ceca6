// F4: the factors r and c of runs and of elements.
#pragma once

#include "adafactor/tiles.cuh"

namespace fused_optim {

// 8 floats from an address that is a multiple of 16 bytes.
FUSED_DEVICE void LoadRun(const float* from, float (&x)[kRun]) {
  uint32_t words[kRun];
  const char* at = GlobalPointer<const char>(reinterpret_cast<int64_t>(from));
  LoadWords<4>(at, words);
  LoadWords<4>(at + 16, words + 4);
#pragma unroll
  for (int i = 0; i < kRun; ++i) x[i] = BitsFloat(words[i]);
}

// [F4] 1/sqrt of 8 column statistics from `first` on, a multiple of 8.
FUSED_DEVICE void ColumnFactors(int64_t state, int64_t first, float (&c)[kRun]) {
  LoadRun(GlobalPointer<const float>(state) + first, c);
#pragma unroll
  for (int i = 0; i < kRun; ++i) c[i] = InverseRoot(c[i]);
}

// [F4] The same of a matrix, as FinaliseLines left them in scratch.
FUSED_DEVICE const float* ColumnFactorsOf(const TensorTask& task, const LaneRuns& runs) {
  return GlobalPointer<const float>(task.scratch) + task.map.col_sums + runs.col;
}

// [F4] Where a tensor's r are, for the first step's row; how far apart they are, step by step.
struct RowFactors {
  const float* first;  // null for unfactored tensors, and packed ones: a matrix has its own there
  int stride;

  FUSED_DEVICE float At(int step) const {
    return first == nullptr ? 1.0f : LoadEntry(first + step * stride);
  }
};

FUSED_DEVICE RowFactors RowFactorsOf(const TensorTask& task, const LaneRuns& runs) {
  if (!task.Factored() || task.shape.packed) return {nullptr, 0};
  if (runs.linear) return {task.Scratch() + kRowFactor, 0};
  return {task.Scratch() + task.map.row_sums + runs.row, runs.rows_per_step};
}

// [F4] r*c of one element of a batch of tiny matrices, from the statistics themselves.
FUSED_SLOW_PATH float TinyMultiplier(int64_t row_state, int64_t col_state, int rows, int cols,
                                     float global_rows, float mean_floor, int64_t index) {
  const int64_t matrix = index / (rows * cols);
  const int at = static_cast<int>(index - matrix * (rows * cols));
  const float* r = GlobalPointer<const float>(row_state) + matrix * rows;
  ChainSum sum;
  for (int i = 0; i < rows; ++i) sum.Add(LoadStatistic(r + i));
  const float mean = Divide(sum.Total(), global_rows);
  const float row = Divide(LoadStatistic(r + at / cols), NanMax(mean, mean_floor));
  const float* c = GlobalPointer<const float>(col_state) + matrix * cols;
  return InverseRoot(row) * InverseRoot(LoadStatistic(c + at % cols));
}

// Where an element of packed matrices has its statistics: rows and columns are counted over all.
struct PackedPlace {
  uint32_t matrix, row, col;
};

FUSED_DEVICE PackedPlace PlaceInPacked(const TensorRecord& t, int64_t index) {
  const auto rows = static_cast<uint32_t>(t.rows);
  const auto cols = static_cast<uint32_t>(t.cols);
  const uint32_t row = static_cast<uint32_t>(index) / cols;
  const uint32_t matrix = row / rows;
  return {matrix, row, matrix * cols + (static_cast<uint32_t>(index) - row * cols)};
}

// [F4] r of a row of packed matrices.
FUSED_DEVICE float PackedRowFactor(const TensorTask& task, const PackedPlace& place) {
  const float mean = LoadEntry(task.Scratch() + task.map.row_sums + place.matrix);
  const float r = LoadStatistic(GlobalPointer<const float>(task.t.exp_avg_sq) + place.row);
  return InverseRoot(Divide(r, NanMax(mean, task.row.mean_floor)));
}

// [F4] r, and c of 8 elements, for a run of a linear tensor.
FUSED_DEVICE float LinearFactors(const TensorTask& task, const RowFactors& r, int64_t index,
                                 float (&c)[kRun]) {
  float factor = r.At(0);
  if (task.shape.packed) {
    const PackedPlace place = PlaceInPacked(task.t, index);
    factor = PackedRowFactor(task, place);
    index = place.col;
  }
  ColumnFactors(task.ColumnState(), index, c);
  return factor;
}

// The factor by which F6 multiplies the gradient of element i of a step's run.
FUSED_DEVICE float MultiplierAt(const TensorTask& task, const LaneRuns& runs, const RowFactors& r,
                                int step, int i) {
  const int64_t index = IndexAt(runs, step) + i;
  if (task.shape.tiny) {
    return TinyMultiplier(task.t.exp_avg_sq, task.t.max_exp_avg_sq, static_cast<int>(task.t.rows),
                          static_cast<int>(task.t.cols), static_cast<float>(task.t.global_rows),
                          task.row.mean_floor, index);
  }
  if (!runs.linear) return r.At(step) * LoadEntry(ColumnFactorsOf(task, runs) + i);
  const float* column = GlobalPointer<const float>(task.ColumnState());
  if (task.shape.packed) {
    const PackedPlace place = PlaceInPacked(task.t, index);
    return PackedRowFactor(task, place) * InverseRoot(LoadStatistic(column + place.col));
  }
  return r.At(step) * InverseRoot(LoadStatistic(column + index));
}

}  // namespace fused_optim
