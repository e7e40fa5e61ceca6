// Walking a tile of an Adafactor tensor: adafactor.cuh, note: [tiles].
#pragma once

#include "adafactor.cuh"
#include "precision.cuh"

namespace fused_optim {

// One tensor as its kernels see it.
struct TensorTask {
  TensorRecord t;
  AdafactorRow row;
  Geometry shape;
  ScratchMap map;
  float* scratch;  // of this tensor

  FUSED_DEVICE bool Factored() const { return t.max_exp_avg_sq != 0; }
  // Statistics by column or, of a linear tensor, by element.
  FUSED_DEVICE int64_t ColumnState() const { return Factored() ? t.max_exp_avg_sq : t.exp_avg_sq; }
};

FUSED_DEVICE TensorTask TaskOf(const LaunchArguments& launch, const WorkItem& item,
                               float* scratch) {
  TensorTask task;
  task.t = launch.records[item.tensor];
  task.row = static_cast<const AdafactorRow*>(launch.rows)[task.t.row];
  task.shape = GeometryOf(task.t.batch, task.t.rows, task.t.cols);
  task.map = ScratchMapOf(task.shape);
  task.scratch = scratch + task.t.scratch;
  return task;
}

FUSED_DEVICE int Lane() { return ThreadIndex() % kLanes; }
FUSED_DEVICE int Warp() { return ThreadIndex() / kLanes; }

// Where a tile lies. Columns vary fastest, so that consecutive tiles share memory pages.
struct TilePlace {
  int64_t batch, row_tile, col_tile;
};

FUSED_DEVICE TilePlace PlaceOfTile(const Geometry& shape, int64_t tile) {
  const int64_t above = tile / shape.col_tiles;
  return {above / shape.row_tiles, above % shape.row_tiles, tile % shape.col_tiles};
}

// This lane's runs of a tile: one per step, each a fixed number of rows below the one before.
struct LaneRuns {
  int64_t index;   // logical index of the first run's first element
  int64_t stride;  // from one run to the next
  int64_t end;     // of a linear tensor; more than any index for others
  int64_t row;     // of the first run, all batch indices counted
  int64_t col;     // of all runs: into the column statistics
  int steps;       // in which the row exists
  int rows_per_step;
  int width;  // elements of a run that exist
  bool linear;
  bool vectors;  // runs of 8 may be loaded whole
};

FUSED_DEVICE LaneRuns RunsOf(const TensorTask& task, const TilePlace& place) {
  const Geometry& shape = task.shape;
  LaneRuns runs;
  runs.rows_per_step = kLanes / shape.lanes;
  const int64_t row = place.row_tile * shape.tile_rows + Lane() / shape.lanes +
                      static_cast<int64_t>(Warp()) * shape.chains * kChain * runs.rows_per_step;
  const int64_t col = place.col_tile * shape.tile_cols + Lane() % shape.lanes * kRun;
  const int64_t left = shape.cols - col;
  runs.width = static_cast<int>(left < 0 ? 0 : left < kRun ? left : kRun);
  const int64_t below = row < shape.rows ? CeilDiv(shape.rows - row, runs.rows_per_step) : 0;
  const int64_t most = shape.chains * kChain;
  runs.steps = static_cast<int>(below < most ? below : most);
  runs.row = place.batch * shape.rows + row;
  runs.col = place.batch * shape.cols + col;
  runs.index = runs.row * shape.cols + col;
  runs.stride = runs.rows_per_step * shape.cols;
  runs.linear = shape.linear;
  runs.end = shape.linear ? shape.numel : INT64_MAX;
  runs.vectors = TakesVectors(task.t) && (shape.linear || shape.cols % kRun == 0);
  return runs;
}

FUSED_DEVICE int64_t IndexAt(const LaneRuns& runs, int step) {
  return runs.index + step * runs.stride;
}

// Elements of a step's run: 0 to 8.
FUSED_DEVICE int CountAt(const LaneRuns& runs, int step) {
  if (step >= runs.steps) return 0;
  const int64_t left = runs.end - IndexAt(runs, step);
  return left >= runs.width ? runs.width : left > 0 ? static_cast<int>(left) : 0;
}

FUSED_DEVICE bool WholeAt(const LaneRuns& runs, int step) {
  return runs.vectors && CountAt(runs, step) == kRun;
}

// One element of a gradient, of any strides.
FUSED_SLOW_PATH float GradientAt(int64_t grad, int64_t dtype, int64_t layout, int64_t index) {
  TensorRecord t;
  t.grad = grad;
  t.grad_dtype = dtype;
  float x[1];
  Unpack(LoadGradient<1>(t, layout == 0 ? index : StridedOffset(layout, kGradSlot, index)), dtype,
         x);
  return x[0];
}

// One element of a parameter, likewise.
template <int64_t kDtype, Mode kMode>
FUSED_SLOW_PATH float ParamAt(int64_t param, int64_t extra, int64_t layout, int64_t index) {
  TensorRecord t;
  t.param = param;
  t.extra = extra;
  const StridedPlace place = {layout, index, 0};
  RawParam<1> raw;
  float x[1];
  LoadParam<kDtype, kMode, 1>(t, place, &raw);
  DecodeParam<kDtype, kMode>(raw, x);
  return x[0];
}

// values[i] = x, without an index known at run time only, which would need local memory.
FUSED_DEVICE void Put(float x, int i, float (&values)[kRun]) {
#pragma unroll
  for (int k = 0; k < kRun; ++k) values[k] = k == i ? x : values[k];
}

// The prepared gradients of a step's run; 0 beyond its end. `raw` was loaded where it is whole.
FUSED_DEVICE void Gradients(const TensorRecord& t, const LaneRuns& runs, int step,
                            const Preparation& prepare, const Raw<kRun>& raw, float (&g)[kRun]) {
  if (WholeAt(runs, step)) {
    Unpack(raw, t.grad_dtype, g);
#pragma unroll
    for (int i = 0; i < kRun; ++i) g[i] = prepare(g[i]);
  } else {
    const int count = CountAt(runs, step);
#pragma unroll
    for (int i = 0; i < kRun; ++i) g[i] = 0.0f;
#pragma unroll 1
    for (int i = 0; i < count; ++i) {
      const int64_t index = IndexAt(runs, step) + i;
      Put(prepare(GradientAt(t.grad, t.grad_dtype, t.layout, index)), i, g);
    }
  }
}

// The float32 values of a step's parameters, likewise.
template <int64_t kDtype, Mode kMode>
FUSED_DEVICE void Params(const TensorRecord& t, const LaneRuns& runs, int step,
                         const RawParam<kRun>& raw, float (&p)[kRun]) {
  if (WholeAt(runs, step)) {
    DecodeParam<kDtype, kMode>(raw, p);
  } else {
    const int count = CountAt(runs, step);
#pragma unroll
    for (int i = 0; i < kRun; ++i) p[i] = 0.0f;
#pragma unroll 1
    for (int i = 0; i < count; ++i) {
      const int64_t index = IndexAt(runs, step) + i;
      Put(ParamAt<kDtype, kMode>(t.param, t.extra, t.layout, index), i, p);
    }
  }
}

// [F4] 1/sqrt of `count` column statistics from `first` on.
FUSED_DEVICE void ColumnFactors(int64_t state, int64_t first, int count, float (&c)[kRun]) {
  const float* from = GlobalPointer<const float>(state) + first;
#pragma unroll
  for (int i = 0; i < kRun; ++i) c[i] = i < count ? InverseRoot(LoadStatistic(from + i)) : 0.0f;
}

// [F4] Where a tensor's r are, for the first step's row; how far apart they are, step by step.
struct RowFactors {
  const float* first;  // null for unfactored tensors
  int stride;

  FUSED_DEVICE float At(int step) const {
    return first == nullptr ? 1.0f : LoadEntry(first + step * stride);
  }
};

FUSED_DEVICE RowFactors RowFactorsOf(const TensorTask& task, const LaneRuns& runs) {
  if (!task.Factored()) return {nullptr, 0};
  if (runs.linear) return {task.scratch + kRowFactor, 0};
  return {task.scratch + task.map.row_sums + runs.row, runs.rows_per_step};
}

}  // namespace fused_optim
