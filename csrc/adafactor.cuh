// Adafactor: how a tensor is cut into tiles, where its sums live in scratch, and the update math.
//
// note: [tiles] A warp reads runs of 8 elements, `lanes` of them side by side in a row (a power of
// two, so that narrow matrices keep all 32 lanes busy), and walks down 32 steps: a chain. A block's
// warps and chains lie below each other. Sums along rows are of a warp; sums down columns are of
// the block, and what either lacks is added by the next launch. A tensor of one row is linear: it
// is walked as if it had 256 columns, and its column statistics, if factored, are element by
// element.
#pragma once

#include "launch.cuh"
#include "reduce.cuh"

namespace fused_optim {

constexpr int kRun = 8;
constexpr int kMaxChains = 4;
constexpr int64_t kManyElements = 1 << 22;  // above, tiles of four chains keep scratch small
constexpr int64_t kLineJob = kThreads;      // rows or columns that a block finishes at once

struct Geometry {
  int64_t batch, rows, cols, numel;
  bool linear;
  int lanes;
  int chains;
  int64_t tile_rows, tile_cols;
  int64_t row_tiles, col_tiles, tiles;  // tiles: of all batch indices together
  int64_t row_jobs, col_jobs;           // per batch index
};

FUSED_MATH int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

FUSED_MATH Geometry GeometryOf(int64_t batch, int64_t rows, int64_t cols) {
  Geometry g;
  g.numel = batch * rows * cols;
  g.linear = batch * rows == 1;
  g.batch = batch;
  g.cols = g.linear ? kLanes * kRun : cols;
  g.rows = g.linear ? CeilDiv(cols, g.cols) : rows;
  g.lanes = 1;
  while (g.lanes < kLanes && g.lanes * kRun < g.cols) g.lanes *= 2;
  g.chains = g.numel >= kManyElements ? kMaxChains : 1;
  g.tile_rows = static_cast<int64_t>(kWarps) * g.chains * kChain * (kLanes / g.lanes);
  g.tile_cols = g.lanes * kRun;
  g.row_tiles = CeilDiv(g.rows, g.tile_rows);
  g.col_tiles = CeilDiv(g.cols, g.tile_cols);
  g.tiles = batch * g.row_tiles * g.col_tiles;
  g.row_jobs = g.linear ? g.tiles : CeilDiv(rows, kLineJob);
  g.col_jobs = g.linear ? 0 : CeilDiv(cols, kLineJob);
  return g;
}

// Offsets into a tensor's part of scratch. Totals over tiles replace the first tile's part, and
// F4's r in turn replaces the row sums.
struct ScratchMap {
  int64_t row_sums;     // [col_tiles, batch * rows]
  int64_t col_sums;     // [row_tiles, batch * cols]
  int64_t tile_sums;    // [tiles]: g^2, later u^2
  int64_t tile_params;  // [tiles]: p^2
  int64_t line_means;   // [batch, row_jobs]: sums of the row means of g^2
  int64_t line_old;     // [batch, row_jobs]: sums of R before the step
  int64_t size;
};

enum Scalar : int { kGradSum, kParamSum, kUpdateSum, kAlpha, kRowFactor, kArrived, kScalars = 8 };

FUSED_MATH ScratchMap ScratchMapOf(const Geometry& g) {
  ScratchMap map;
  const int64_t lines = g.linear ? 0 : 1;
  map.row_sums = kScalars;
  map.col_sums = map.row_sums + lines * g.col_tiles * g.batch * g.rows;
  map.tile_sums = map.col_sums + lines * g.row_tiles * g.batch * g.cols;
  map.tile_params = map.tile_sums + g.tiles;
  map.line_means = map.tile_params + g.tiles;
  map.line_old = map.line_means + lines * g.batch * g.row_jobs;
  map.size = map.line_old + lines * g.batch * g.row_jobs;
  return map;
}

// [F3] A mean of squares moves towards this step's: k2 is the square of the clip coefficient.
FUSED_DEVICE float AdvanceMean(const AdafactorRow& row, float mean, float sum, float k2,
                               float count) {
  return (row.b2 * mean) + (row.omb2 * ((k2 * Divide(sum, count)) + row.eps_grad));
}

FUSED_DEVICE float InverseRoot(float x) { return Divide(1.0f, SquareRoot(x)); }  // [F4]

// [F5] The step size before clipping, from the parameter's root mean square.
FUSED_DEVICE float StepSize(const AdafactorRow& row, float rms) {
  if ((row.flags & kScaleParameter) == 0) return row.rho;
  return row.rho * (rms > row.eps_rms ? rms : row.eps_rms);  // eps_rms where rms is NaN
}

// [F6] The update before it is scaled.
FUSED_DEVICE float Unscaled(const AdafactorRow& row, float g, float multiplier) {
  return g * NanMin(multiplier, row.update_cap);
}

// What F8 and F9 multiply with.
struct Scaling {
  float update;
  float decay;
};

FUSED_DEVICE Scaling ScalingOf(const AdafactorRow& row, float alpha, float u_sum, float numel) {
  if ((row.flags & kHoldIfZero) != 0 && u_sum == 0.0f) alpha = 0.0f;  // [F7]
  float ratio = Divide(SquareRoot(Divide(u_sum, numel)), row.clip_threshold);
  if ((row.flags & kClipIgnoresNan) != 0 && IsNan(ratio)) ratio = 1.0f;
  const float decay = row.decay_alpha != 0.0f ? 1.0f - (row.decay_alpha * alpha) : 1.0f;
  return {Divide(alpha, NanMax(ratio, 1.0f)), decay};
}

// One step of one element from its unscaled update u; m is the first moment, if there is one.
FUSED_DEVICE void ApplyUpdate(const AdafactorRow& row, const Scaling& scaling, bool has_m, float u,
                              float* m, float* p) {
  u = u * scaling.update;  // [F8]
  if (has_m) {
    *m = (row.b1 * *m) + (row.omb1 * u);
    u = *m;
  }
  *p = (*p * row.decay_before) * scaling.decay;  // [F9]
  *p = *p - (u + 0.0f);                          // [F10]
}

}  // namespace fused_optim
