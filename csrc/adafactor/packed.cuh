// Batches of small matrices: adafactor.cuh, note: [packed].
#pragma once

#include "adafactor/tiles.cuh"

namespace fused_optim {

// Adds up `terms` elements of each of `lines` lines of a matrix, by all lanes of a warp, and calls
// use(line, sum) in one lane for each line. Lanes that are more than the lines share their terms.
template <typename Use>
FUSED_DEVICE void ForLineSums(const TensorRecord& t, const Preparation& prepare, int64_t first,
                              int lines, int line_stride, int terms, int term_stride,
                              const Use& use) {
  int across = 1;  // lines at a time
  while (across < kLanes && across < lines) across *= 2;
  const int sharing = kLanes / across;
#pragma unroll 1
  for (int base = 0; base < lines; base += across) {
    const int line = base + (Lane() & (across - 1));
    ChainSum chain;
    if (line < lines) {
#pragma unroll 1
      for (int i = Lane() / across; i < terms; i += sharing) {
        const int64_t at = first + line * line_stride + i * term_stride;
        const float g = prepare(GradientAt(t.grad, t.grad_dtype, t.layout, at));
        chain.Add(g * g);
      }
    }
    float sum = chain.Total();
    for (int mask = across; mask < kLanes; mask *= 2) sum += ShuffleXor(sum, mask);
    if (Lane() < across && line < lines) use(line, sum);
  }
}

// The matrices that begin in a tile, [first, last).
struct MatrixRange {
  int64_t first;
  int64_t last;
};

FUSED_DEVICE MatrixRange MatricesFrom(const TensorTask& task, int32_t tile) {
  const TensorRecord& t = task.t;
  const int64_t elements = TileElements(task.shape);
  const int64_t end = (tile + 1) * elements < t.numel ? (tile + 1) * elements : t.numel;
  return {CeilDiv(tile * elements, t.rows * t.cols), CeilDiv(end, t.rows * t.cols)};
}

// F1, F3 and the mean of F4 of the matrices that begin in a tile, each by one warp.
FUSED_DEVICE void FinalisePackedMatrices(const TensorTask& task, int32_t tile) {
  Preparation prepare = task.prepare;
  const TensorRecord& t = task.t;
  const int rows = static_cast<int>(t.rows);
  const int cols = static_cast<int>(t.cols);
  const MatrixRange matrices = MatricesFrom(task, tile);
  const float k2 = prepare.clip * prepare.clip;
  const auto global_rows = static_cast<float>(t.global_rows);
  const auto global_cols = static_cast<float>(t.global_cols);
  prepare.clip = 1.0f;
#pragma unroll 1
  for (int64_t matrix = matrices.first + Warp(); matrix < matrices.last; matrix += kWarps) {
    const int64_t first = matrix * (rows * cols);
    float* r = GlobalPointer<float>(t.exp_avg_sq) + matrix * rows;
    float* c = GlobalPointer<float>(t.max_exp_avg_sq) + matrix * cols;
    ChainSum r_sum;
    ForLineSums(t, prepare, first, rows, cols, cols, 1, [&](int row, float sum) {
      const float mean = AdvanceMean(task.row, LoadStatistic(r + row), sum, k2, global_cols);
      StoreStatistic(r + row, mean);
      r_sum.Add(mean);
    });
    ForLineSums(t, prepare, first, cols, 1, rows, cols, [&](int col, float sum) {
      StoreStatistic(c + col, AdvanceMean(task.row, LoadStatistic(c + col), sum, k2, global_rows));
    });
    const float mean = Divide(LaneSum(r_sum.Total(), kLanes), global_rows);
    if (Lane() == 0) StoreEntry(task.Scratch() + task.map.row_sums + matrix, mean);
  }
}

}  // namespace fused_optim
