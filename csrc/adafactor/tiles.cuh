// Walks a tile of an Adafactor tensor: adafactor.cuh, note: [tiles].
//
// A tile is walked in one of two ways. Where all its runs may be loaded whole (`IsFast`) nothing in
// the loop is decided element by element; anywhere else elements come one at a time, through
// functions that are called, so that they take no registers from the fast way.
#pragma once

#include "adafactor/task.cuh"
#include "common/precision.cuh"

namespace fused_optim {

FUSED_DEVICE int Lane() { return ThreadIndex() & (kLanes - 1); }
FUSED_DEVICE int Warp() { return ThreadIndex() >> kLaneBits; }

// This lane's runs of a tile: one per step, each a fixed number of rows below the one before.
struct LaneRuns {
  int64_t index;   // logical index of the first run's first element
  int64_t stride;  // from one run to the next
  int64_t end;     // of a linear tensor; more than any index for others
  int64_t row;     // of the first run, all batch indices counted
  int64_t col;     // of all runs: into the column statistics
  int64_t strip;
  int steps;       // in which there is a run; its last may be cut short by the end
  int warp_steps;  // the most of any lane of this warp
  int rows_per_step;
  int width;  // elements of a run that exist
  bool linear;
};

FUSED_DEVICE int Clamped(int64_t steps, int most) {
  return static_cast<int>(steps < 0 ? 0 : steps < most ? steps : most);
}

FUSED_DEVICE LaneRuns RunsOf(const Geometry& shape, const TilePlace& place) {
  LaneRuns runs;
  const int step_bits = shape.RowsPerStepBits();
  const int across = Warp() & ((1 << shape.across_bits) - 1);
  const int64_t down = Warp() >> shape.across_bits;
  const int64_t warp_row = (place.row_tile << shape.TileRowBits()) + (down << shape.WarpRowBits());
  const int64_t row = warp_row + (Lane() >> shape.lane_bits);
  runs.strip = (place.col_tile << shape.across_bits) + across;
  const int col_in_strip = (Lane() & ((1 << shape.lane_bits) - 1)) << kRunBits;
  const int64_t col = (runs.strip << shape.StripBits()) + col_in_strip;
  const int64_t left = shape.cols - col;
  runs.width = static_cast<int>(left < 0 ? 0 : left < kRun ? left : kRun);
  runs.rows_per_step = 1 << step_bits;
  runs.row = place.batch * shape.rows + row;
  runs.col = place.batch * shape.cols + col;
  runs.index = runs.row * shape.cols + col;
  runs.stride = shape.cols << step_bits;
  runs.linear = shape.linear;
  runs.end = shape.linear ? shape.numel : INT64_MAX;
  runs.warp_steps = Clamped(CeilShift(shape.rows - warp_row, step_bits), shape.Steps());
  const int64_t below = shape.linear ? CeilShift(shape.numel - runs.index, kLaneBits + kRunBits)
                                     : CeilShift(shape.rows - row, step_bits);
  runs.steps = runs.width > 0 ? Clamped(below, shape.Steps()) : 0;
  return runs;
}

// Whether every run of a tile that there is has 8 elements which may be loaded whole.
FUSED_DEVICE bool IsFast(const TensorTask& task, int32_t tile) {
  const Geometry& shape = task.shape;
  const bool ends_whole =
      shape.linear ? shape.numel % kRun == 0 || tile + 1 < shape.tiles : shape.cols % kRun == 0;
  return TakesVectors(task.t) && ends_whole;
}

// Whether F4's factors are found for a whole run at once too.
FUSED_DEVICE bool HasFastFactors(const TensorTask& task, int32_t tile) {
  const Geometry& shape = task.shape;
  return IsFast(task, tile) && !shape.tiny && !(shape.packed && task.t.cols % kRun != 0);
}

FUSED_DEVICE int64_t IndexAt(const LaneRuns& runs, int step) {
  return runs.index + step * runs.stride;
}

// Elements of a step's run: 0 to 8.
FUSED_DEVICE int CountAt(const LaneRuns& runs, int step) {
  if (step >= runs.steps) return 0;
  const int64_t left = runs.end - IndexAt(runs, step);
  return left >= runs.width ? runs.width : static_cast<int>(left);
}

// Prepares gradients that nothing clamps: Adafactor's.
struct Scaled {
  float multiplier;
  float clip;

  FUSED_DEVICE float operator()(float g) const { return (g * multiplier) * clip; }
};

FUSED_DEVICE Scaled ScaledOf(const TensorTask& task) {
  return {task.prepare.multiplier, task.prepare.clip};
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

// One element of a parameter, of any strides.
template <typename Params>
FUSED_SLOW_PATH float ParamAt(Params params, int64_t param, int64_t extra, int64_t layout,
                              int64_t index) {
  TensorRecord t;
  t.param = param;
  t.extra = extra;
  const StridedPlace place = {layout, index, 0};
  RawParam<1> raw;
  float x[1];
  params.Load(t, place, &raw);
  params.Decode(raw, x);
  return x[0];
}

// Stores x in values[i] without an index at run time, which would need local memory.
FUSED_DEVICE void Put(float x, int i, float (&values)[kRun]) {
#pragma unroll
  for (int k = 0; k < kRun; ++k) values[k] = k == i ? x : values[k];
}

// A step's prepared gradients, one at a time; 0 beyond the run's end.
template <typename Prepare>
FUSED_DEVICE void GradientsSingly(const TensorRecord& t, const LaneRuns& runs, int step,
                                  const Prepare& prepare, float (&g)[kRun]) {
  const int count = CountAt(runs, step);
#pragma unroll
  for (int i = 0; i < kRun; ++i) g[i] = 0.0f;
#pragma unroll 1
  for (int i = 0; i < count; ++i) {
    Put(prepare(GradientAt(t.grad, t.grad_dtype, t.layout, IndexAt(runs, step) + i)), i, g);
  }
}

// The float32 values of a step's parameters, one at a time; 0 beyond the run's end.
template <typename Params>
FUSED_DEVICE void ParamsSingly(const Params& params, const TensorRecord& t, const LaneRuns& runs,
                               int step, float (&p)[kRun]) {
  const int count = CountAt(runs, step);
#pragma unroll
  for (int i = 0; i < kRun; ++i) p[i] = 0.0f;
#pragma unroll 1
  for (int i = 0; i < count; ++i) {
    Put(ParamAt(params, t.param, t.extra, t.layout, IndexAt(runs, step) + i), i, p);
  }
}

}  // namespace fused_optim
