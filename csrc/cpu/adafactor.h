// The stages of an Adafactor step on a CPU: math.cuh's updates on segments of tiles.
#pragma once

#include "adafactor/math.cuh"
#include "cpu/kernels.h"
#include "cpu/segments.h"
#include "cpu/sums.h"

namespace fused_optim {

// One tensor as the stages see it.
struct TensorTask {
  const TensorRecord& t;
  AdafactorRow row;
  Tiling shape;
  ScratchMap map;
  Preparation prepare;
  TensorDraw source;
  ParamAccess params;
  float* scratch;
  bool wants_sum;  // whether the caller asks for the sum of the gradient's squares

  bool Factored() const { return t.max_exp_avg_sq != 0; }
  float* RowState() const { return GlobalPointer<float>(t.exp_avg_sq); }
  // Statistics by column or, of a linear tensor, by element.
  float* ColumnState() const {
    return GlobalPointer<float>(Factored() ? t.max_exp_avg_sq : t.exp_avg_sq);
  }
};

inline TensorTask TaskOf(const fused_optim_cpu::AdafactorWork& work) {
  const auto& launch = *static_cast<const LaunchArguments*>(work.launch);
  const TensorRecord& t = launch.records[work.tensor];
  const AdafactorRow& row = static_cast<const AdafactorRow*>(launch.rows)[t.row];
  const Tiling shape = TilingOf(t.batch, t.rows, t.cols);
  return {t,
          row,
          shape,
          ScratchMapOf(shape),
          Prepare(launch, work.tensor, row.grad_mul, Infinity()),
          TensorDraw(DrawOf(launch, t.number, row.step)),
          AccessOf(work.dtype, static_cast<Mode>(work.mode)),
          work.scratch + t.scratch,
          work.sums != nullptr};
}

// The squares of consecutive prepared gradients.
FUSED_DEVICE void Squares(const TensorTask& task, const Preparation& prepare, int64_t index,
                          int count, float* __restrict__ squares) {
  WithGradients(task.t, index, count, [&](auto gradients) {
    for (int i = 0; i < count; ++i) {
      const float g = prepare(gradients[i]);
      squares[i] = g * g;
    }
  });
}

// F1 of a row of a tile: its sum, and what it adds to the sums of columns.
FUSED_DEVICE float SumRow(const float* __restrict__ squares, int width,
                          float* __restrict__ columns) {
  for (int i = 0; i < width; ++i) columns[i] += squares[i];
  return LineSumOf(squares, width);
}

// F1 of a segment of a matrix. Returns the total.
FUSED_DEVICE float SumRows(const TensorTask& task, const Preparation& prepare, const Segment& at,
                           float* row_sums, ColumnSums* columns) {
  float squares[kSegment];
  Squares(task, prepare, at.index, at.Count(), squares);
  ChainSum total;
  for (int row = 0; row < at.rows; ++row) {
    float* to = at.offset == 0 ? columns->Next() : columns->Row();
    const float sum = SumRow(squares + row * at.width, at.width, to + at.offset);
    row_sums[row] = at.offset == 0 ? sum : row_sums[row] + sum;
    total.Add(sum);
  }
  return total.Total();
}

// F2 of a segment.
FUSED_DEVICE float SumParams(const TensorTask& task, const Segment& at) {
  float p[kSegment];
  task.params.load(task.t, at.index, at.Count(), p);
  return SquareSumOf(p, at.Count());
}

// F1 and F2 of a tile.
inline void SumTile(const TensorTask& task, int64_t tile) {
  const Tiling& shape = task.shape;
  const bool keeps_lines = shape.KeepsLines();
  const bool reads_g = task.wants_sum || (shape.linear && task.Factored());
  const bool reads_p = (task.row.flags & kScaleParameter) != 0;
  Preparation prepare = task.prepare;
  prepare.clip = 1.0f;
  const int64_t below = keeps_lines ? tile / shape.col_tiles : 0;
  float* row_sums = task.scratch + task.map.row_sums;
  int64_t first_col = 0;
  int width = 0;
  if (keeps_lines) {
    const int64_t strip = tile % shape.col_tiles;
    row_sums += strip * shape.batch * shape.rows;
    first_col = strip * shape.tile_cols;
    const int64_t left = shape.cols - first_col;
    width = static_cast<int>(left < shape.tile_cols ? left : shape.tile_cols);
  }
  ColumnSums columns(width);
  ChainSum g_sum, p_sum;
  ForSegments(shape, tile, [&](const Segment& at) {
    if (keeps_lines) {
      g_sum.Add(SumRows(task, prepare, at, row_sums + at.row, &columns));
    } else if (reads_g) {
      float squares[kSegment];
      Squares(task, prepare, at.index, at.Count(), squares);
      g_sum.Add(SumOf(squares, at.Count()));
    }
    if (reads_p) p_sum.Add(SumParams(task, at));
  });
  task.scratch[task.map.tile_sums + tile] = g_sum.Total();
  task.scratch[task.map.tile_params + tile] = p_sum.Total();
  if (!keeps_lines) return;
  const int64_t batch = below / shape.row_tiles;
  const int64_t row_tile = below % shape.row_tiles;
  columns.Totals(task.scratch + task.map.col_sums + (row_tile * shape.batch + batch) * shape.cols +
                 first_col);
}

// Adds up the sums of a tensor's tiles.
inline void FoldTotals(const TensorTask& task) {
  const int64_t tiles = task.shape.tiles;
  task.scratch[kGradSum] = ChainSumOf(task.scratch + task.map.tile_sums, tiles);
  task.scratch[kParamSum] = ChainSumOf(task.scratch + task.map.tile_params, tiles);
}

// Up to 1,024 rows or columns of one matrix.
struct LineJob {
  bool is_row;
  int64_t batch, job;
  int64_t first, last;  // lines of the matrix
};

inline LineJob LineJobOf(const Tiling& shape, int64_t part) {
  const int64_t per_batch = shape.row_jobs + shape.col_jobs;
  LineJob job;
  job.batch = part / per_batch;
  job.job = part % per_batch;
  job.is_row = job.job < shape.row_jobs;
  if (!job.is_row) job.job -= shape.row_jobs;
  const int64_t lines = job.is_row ? shape.rows : shape.cols;
  job.first = job.job * kLineJob;
  job.last = job.first + kLineJob < lines ? job.first + kLineJob : lines;
  return job;
}

// Adds up the tiles' sums of each line: `tiles` arrays, `stride` apart. Totals replace the first.
inline void FoldTiles(float* sums, int64_t lines, int64_t tiles, int64_t stride) {
  if (tiles == 1) return;
  for (int64_t i = 0; i < lines; ++i) sums[i] = ChainSumOf(sums + i, tiles, stride);
}

// One line job of F1.
inline void FoldLines(const TensorTask& task, int64_t part) {
  const Tiling& shape = task.shape;
  const LineJob job = LineJobOf(shape, part);
  const int64_t lines = job.last - job.first;
  if (!job.is_row) {
    const int64_t at = job.batch * shape.cols + job.first;
    FoldTiles(task.scratch + task.map.col_sums + at, lines, shape.row_tiles,
              shape.batch * shape.cols);
    return;
  }
  const int64_t at = job.batch * shape.rows + job.first;
  float* sums = task.scratch + task.map.row_sums + at;
  FoldTiles(sums, lines, shape.col_tiles, shape.batch * shape.rows);
  const auto cols = static_cast<float>(task.t.global_cols);
  const int count = static_cast<int>(lines);
  float means[kLineJob];
  for (int i = 0; i < count; ++i) means[i] = Divide(sums[i], cols);
  const int64_t slot = job.batch * shape.row_jobs + job.job;
  task.scratch[task.map.line_means + slot] = LineSumOf(means, count);
  task.scratch[task.map.line_old + slot] = LineSumOf(task.RowState() + at, count);
}

// F3 to F5 of the scalars of a tensor: its root mean square, step size and, if it is linear, R.
inline void FinaliseTotals(const TensorTask& task) {
  const float clip = task.prepare.clip;
  const float rms =
      SquareRoot(Divide(task.scratch[kParamSum], static_cast<float>(task.t.global_numel)));
  if ((task.row.flags & kScaleParameter) != 0 && task.t.rms != 0) {
    *GlobalPointer<float>(task.t.rms) = rms;
  }
  task.scratch[kAlpha] = StepSize(task.row, rms);
  task.scratch[kRowFactor] = 1.0f;
  if (!task.shape.linear || !task.Factored()) return;
  float* state = task.RowState();
  *state = AdvanceMean(task.row, *state, task.scratch[kGradSum], clip * clip,
                       static_cast<float>(task.t.global_cols));
  const float mean = NanMax(*state, task.row.mean_floor);
  task.scratch[kRowFactor] = InverseRoot(Divide(*state, mean));
}

// One line job of F3 and F4: updates statistics, and writes r or c in place of their sums.
inline void FinaliseLines(const TensorTask& task, int64_t part) {
  const Tiling& shape = task.shape;
  const LineJob job = LineJobOf(shape, part);
  const AdafactorRow row = task.row;
  const int64_t lines = job.last - job.first;
  const float k2 = task.prepare.clip * task.prepare.clip;
  const auto rows = static_cast<float>(task.t.global_rows);
  const auto cols = static_cast<float>(task.t.global_cols);
  if (!job.is_row) {
    const int64_t at = job.batch * shape.cols + job.first;
    float* __restrict__ state = task.ColumnState() + at;
    float* __restrict__ sums = task.scratch + task.map.col_sums + at;
    for (int64_t j = 0; j < lines; ++j) {
      state[j] = AdvanceMean(row, state[j], sums[j], k2, rows);
      sums[j] = InverseRoot(state[j]);
    }
    return;
  }
  // The mean of the new R follows from the means of the old R and of the sums, so that no job
  // waits for others.
  const int64_t slots = job.batch * shape.row_jobs;
  const float mean_sum = ChainSumOf(task.scratch + task.map.line_means + slots, shape.row_jobs);
  const float old_sum = ChainSumOf(task.scratch + task.map.line_old + slots, shape.row_jobs);
  const float mean = AdvanceMean(row, Divide(old_sum, rows), mean_sum, k2, rows);
  const float floor = NanMax(mean, row.mean_floor);
  const int64_t at = job.batch * shape.rows + job.first;
  float* __restrict__ state = task.RowState() + at;
  float* __restrict__ sums = task.scratch + task.map.row_sums + at;
  for (int64_t i = 0; i < lines; ++i) {
    state[i] = AdvanceMean(row, state[i], sums[i], k2, cols);
    sums[i] = InverseRoot(Divide(state[i], floor));
  }
}

}  // namespace fused_optim
