// F3 to F5, which advance the statistics and find the step size before clipping.
#pragma once

#include "adafactor/lines.cuh"
#include "adafactor/packed.cuh"

namespace fused_optim {

FUSED_DEVICE void FinaliseTensor(const TensorTask& task, float clip) {
  if (ThreadIndex() != 0) return;
  const float numel = static_cast<float>(task.t.global_numel);
  const float rms = SquareRoot(Divide(LoadEntry(task.Scratch() + kParamSum), numel));
  if ((task.row.flags & kScaleParameter) != 0 && task.t.rms != 0) {
    StoreEntry(GlobalPointer<float>(task.t.rms), rms);
  }
  StoreEntry(task.Scratch() + kAlpha, StepSize(task.row, rms));
  const Geometry& shape = task.shape;
  if (!shape.linear || shape.tiny || shape.packed || !task.Factored()) return;
  float* state = GlobalPointer<float>(task.t.exp_avg_sq);
  const float r = AdvanceMean(task.row, LoadEntry(state), LoadEntry(task.Scratch() + kGradSum),
                              clip * clip, static_cast<float>(task.t.global_cols));
  StoreEntry(state, r);
  StoreEntry(task.Scratch() + kRowFactor, InverseRoot(Divide(r, NanMax(r, task.row.mean_floor))));
}

FUSED_DEVICE void FinaliseLines(const TensorTask& task, const LineJob& job, float clip) {
  const Geometry& shape = task.shape;
  const float rows = static_cast<float>(task.t.global_rows);
  const float cols = static_cast<float>(task.t.global_cols);
  if (!job.is_row) {
    const int64_t at = job.batch * shape.cols + job.line;
    float* state = GlobalPointer<float>(task.t.max_exp_avg_sq) + at;
    float* sum = task.Scratch() + task.map.col_sums + at;
    if (!job.valid) return;
    const float c = AdvanceMean(task.row, LoadStatistic(state), LoadEntry(sum), clip * clip, rows);
    StoreStatistic(state, c);
    StoreEntry(sum, InverseRoot(c));
    return;
  }
  // The mean of the new R, from the means of its two parts: no block needs to wait for others.
  const int64_t first = job.batch * shape.row_jobs;
  const float* means = task.Scratch() + task.map.line_means + first;
  const float* olds = task.Scratch() + task.map.line_old + first;
  const float mean_sum = BlockSum(StridedSum(means, shape.row_jobs));
  const float old_mean = Divide(BlockSum(StridedSum(olds, shape.row_jobs)), rows);
  const float mean = AdvanceMean(task.row, old_mean, mean_sum, clip * clip, rows);
  if (!job.valid) return;
  const int64_t at = job.batch * shape.rows + job.line;
  float* state = GlobalPointer<float>(task.t.exp_avg_sq) + at;
  float* sum = task.Scratch() + task.map.row_sums + at;
  const float r = AdvanceMean(task.row, LoadStatistic(state), LoadEntry(sum), clip * clip, cols);
  StoreStatistic(state, r);
  StoreEntry(sum, InverseRoot(Divide(r, NanMax(mean, task.row.mean_floor))));
}

// F3 of a linear tensor, element by element.
FUSED_DEVICE void FinaliseElements(const TensorTask& task, int32_t tile) {
  const Preparation prepare = task.prepare;
  const LaneRuns runs = RunsOf(task.shape, PlaceOfTile(task.shape, tile));
  const bool fast = IsFast(task, tile);
  float* state = GlobalPointer<float>(task.ColumnState());
#pragma unroll 1
  for (int step = 0; step < runs.steps; ++step) {
    float g[kRun];
    if (fast) {
      Unpack(LoadGradient<kRun>(task.t, IndexAt(runs, step)), task.t.grad_dtype, g);
#pragma unroll
      for (int i = 0; i < kRun; ++i) g[i] = prepare(g[i]);
    } else {
      GradientsSingly(task.t, runs, step, prepare, g);
    }
    const int count = CountAt(runs, step);
#pragma unroll
    for (int i = 0; i < kRun; ++i) {
      if (i >= count) continue;
      float* v = state + IndexAt(runs, step) + i;
      StoreStatistic(v, AdvanceMean(task.row, LoadStatistic(v), g[i] * g[i], 1.0f, 1.0f));
    }
  }
}

// F1 of one line of a tiny matrix: `count` elements from `first` on.
FUSED_DEVICE float TinyLineSum(const TensorRecord& t, const Preparation& prepare, int64_t first,
                               int stride, int count) {
  ChainSum sum;
#pragma unroll 1
  for (int i = 0; i < count; ++i) {
    const float g = prepare(GradientAt(t.grad, t.grad_dtype, t.layout, first + i * stride));
    sum.Add(g * g);
  }
  return sum.Total();
}

// F1 and F3 of the tiny matrices that begin in a tile, each by one thread.
FUSED_DEVICE void FinaliseTinyMatrices(const TensorTask& task, int32_t tile) {
  Preparation prepare = task.prepare;
  const TensorRecord& t = task.t;
  const int rows = static_cast<int>(t.rows);
  const int cols = static_cast<int>(t.cols);
  const MatrixRange matrices = MatricesFrom(task, tile);
  const float k2 = prepare.clip * prepare.clip;
  prepare.clip = 1.0f;
#pragma unroll 1
  for (int64_t matrix = matrices.first + ThreadIndex(); matrix < matrices.last;
       matrix += kThreads) {
    const int64_t first = matrix * (rows * cols);
    float* r = GlobalPointer<float>(t.exp_avg_sq) + matrix * rows;
    float* c = GlobalPointer<float>(t.max_exp_avg_sq) + matrix * cols;
#pragma unroll 1
    for (int i = 0; i < rows; ++i) {
      const float sum = TinyLineSum(t, prepare, first + i * cols, 1, cols);
      const float count = static_cast<float>(t.global_cols);
      StoreStatistic(r + i, AdvanceMean(task.row, LoadStatistic(r + i), sum, k2, count));
    }
#pragma unroll 1
    for (int j = 0; j < cols; ++j) {
      const float sum = TinyLineSum(t, prepare, first + j, cols, rows);
      const float count = static_cast<float>(t.global_rows);
      StoreStatistic(c + j, AdvanceMean(task.row, LoadStatistic(c + j), sum, k2, count));
    }
  }
}

// One line job of F3 to F5; part 0 is the tensor's scalars. All threads of the block must call it.
FUSED_DEVICE void Finalise(const TensorTask& task, int32_t part) {
  if (part == 0) {
    FinaliseTensor(task, task.prepare.clip);
  } else if (task.shape.tiny) {
    FinaliseTinyMatrices(task, part - 1);
  } else if (task.shape.packed) {
    FinalisePackedMatrices(task, part - 1);
  } else if (task.shape.linear) {
    FinaliseElements(task, part - 1);
  } else {
    FinaliseLines(task, LineJobOf(task.shape, part), task.prepare.clip);
  }
}

}  // namespace fused_optim
