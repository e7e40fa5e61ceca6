// F1 and F2: sums of squares along rows and columns of a tile.
#pragma once

#include "adafactor/tiles.cuh"

namespace fused_optim {

// The column sums of each warp, over its strip.
using ColumnSums = float[kWarps][kLanes * kRun];

// Adds up each column's sums over the lanes of a warp, and adds the result to `to`.
FUSED_DEVICE void AddColumns(int lanes, float (&column)[kRun], bool first, float* to) {
#pragma unroll
  for (int i = 0; i < kRun; ++i) {
    for (int mask = lanes; mask < kLanes; mask *= 2) column[i] += ShuffleXor(column[i], mask);
    float* sum = to + Lane() * kRun + i;
    if (Lane() < lanes) *sum = first ? column[i] : *sum + column[i];
  }
}

// A lane's sums over a chain.
struct SquareSums {
  float g = 0.0f;
  float p = 0.0f;
};

// Prepares gradients that are not clipped.
struct Unclipped {
  float multiplier;

  FUSED_DEVICE float operator()(float g) const { return g * multiplier; }
};

// What a lane keeps in registers on its way through a tile.
struct StatisticsWalk {
  int64_t index;    // of the next run
  float* row_sums;  // of its row
  Unclipped prepare;
  int dtype;  // of the gradients
  int lane_bits;
  int row_steps;  // in which the warp's strip has a row, though this lane may be beyond its columns
  bool sums_params;
};

// [F1] The sums of `kAtOnce` rows, to scratch.
template <int kAtOnce>
FUSED_DEVICE void StoreRowSums(const StatisticsWalk& walk, const LaneRuns& runs, int first,
                               const float (&sums)[kAtOnce]) {
  const int next = runs.rows_per_step;
  if constexpr (kAtOnce == 2) {
    if (walk.lane_bits == kLaneBits) {
      const float sum = LaneSums(sums[0], sums[1]);
      const int which = Lane() / (kLanes / 2);
      if (Lane() % (kLanes / 2) == 0 && first + which < walk.row_steps) {
        StoreEntry(walk.row_sums + which * next, sum);
      }
      return;
    }
  }
#pragma unroll
  for (int k = 0; k < kAtOnce; ++k) {
    const float sum = LaneSum(sums[k], 1 << walk.lane_bits);
    if ((Lane() & ((1 << walk.lane_bits) - 1)) == 0 && first + k < runs.steps) {
      StoreEntry(walk.row_sums + k * next, sum);
    }
  }
}

// `kAtOnce` steps of a lane from `first` on, with all their loads in flight at once.
template <bool kFast, int kAtOnce, typename Params>
FUSED_DEVICE void SumSteps(const Params& params, const TensorTask& task, const LaneRuns& runs,
                           int first, const StatisticsWalk& walk, float (&column)[kRun],
                           SquareSums* sums) {
  const TensorRecord& t = task.t;
  const bool wide = walk.dtype == kFloat32;
  Raw<kRun> raw[kAtOnce] = {};
  RawParam<kRun> raw_p[kAtOnce] = {};
  if constexpr (kFast) {
    // Loads alone would run out of registers before enough bytes are in flight to hide the memory's
    // latency, so later steps are prefetched: docs/internals/notes_cuda.md, loads in flight.
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      if (first + k >= runs.steps) continue;
      const DensePlace place = {walk.index + k * runs.stride, 0};
      raw[k] = LoadRaw<kRun>(t.grad, wide, place.index);
      if (walk.sums_params) params.Load(t, place, &raw_p[k]);
    }
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      if (first + kAtOnce + k >= runs.steps) continue;
      const int64_t ahead = walk.index + (kAtOnce + k) * runs.stride;
      PrefetchRaw(t.grad, wide, ahead);
      if (walk.sums_params) params.Prefetch(t, ahead);
    }
  }
  float rows[kAtOnce];
#pragma unroll
  for (int k = 0; k < kAtOnce; ++k) {
    float x[kRun];
    if constexpr (kFast) {
      Unpack(raw[k], walk.dtype, x);  // what was not loaded is 0 in all dtypes
#pragma unroll
      for (int i = 0; i < kRun; ++i) x[i] = walk.prepare(x[i]);
    } else {
      GradientsSingly(t, runs, first + k, walk.prepare, x);
    }
#pragma unroll
    for (int i = 0; i < kRun; ++i) {
      x[i] = x[i] * x[i];
      column[i] += x[i];
    }
    rows[k] = TreeSum(x);
    sums->g += rows[k];
    if (!walk.sums_params) continue;
    if constexpr (kFast) {
      params.Decode(raw_p[k], x);
    } else {
      ParamsSingly(params, t, runs, first + k, x);
    }
#pragma unroll
    for (int i = 0; i < kRun; ++i) x[i] = x[i] * x[i];
    sums->p += TreeSum(x);  // [F2]
  }
  if (!runs.linear) StoreRowSums(walk, runs, first, rows);
}

// A lane's part of a tile's sums; row sums go to scratch, columns to this warp's `columns`.
template <bool kFast, typename Params>
FUSED_DEVICE SquareSums SumSquares(const Params& params, const TensorTask& task,
                                   const LaneRuns& runs, float* columns) {
  constexpr int kAtOnce = kFast ? 2 : 1;
  const Geometry& shape = task.shape;
  StatisticsWalk walk;
  walk.index = runs.index;
  walk.row_sums =
      task.Scratch() + task.map.row_sums + runs.strip * shape.batch * shape.rows + runs.row;
  walk.prepare = {task.prepare.multiplier};
  walk.dtype = static_cast<int>(task.t.grad_dtype);
  walk.lane_bits = shape.lane_bits;
  walk.row_steps = runs.strip < shape.strips ? runs.warp_steps : 0;
  walk.sums_params = (task.row.flags & kScaleParameter) != 0;
  SquareSums total;
#pragma unroll 1
  for (int chain = 0; chain == 0 || chain * kChain < runs.warp_steps; ++chain) {
    SquareSums sums;
    float column[kRun] = {};
    const int last =
        (chain + 1) * kChain < runs.warp_steps ? (chain + 1) * kChain : runs.warp_steps;
#pragma unroll 1
    for (int first = chain * kChain; first < last; first += kAtOnce) {
      SumSteps<kFast, kAtOnce>(params, task, runs, first, walk, column, &sums);
      walk.index += kAtOnce * runs.stride;
      walk.row_sums += kAtOnce * runs.rows_per_step;
    }
    total.g += sums.g;
    total.p += sums.p;
    if (!runs.linear) AddColumns(1 << walk.lane_bits, column, chain == 0, columns);
  }
  return total;
}

// All sums of one tile, to scratch. All threads of the block must call it.
template <typename Params>
FUSED_DEVICE void SumTile(const Params& params, const TensorTask& task, int32_t tile,
                          ColumnSums& columns) {
  const Geometry& shape = task.shape;
  const TilePlace place = PlaceOfTile(shape, tile);
  const LaneRuns runs = RunsOf(shape, place);
  float* mine = columns[Warp()];
  const SquareSums sums = IsFast(task, tile) ? SumSquares<true>(params, task, runs, mine)
                                             : SumSquares<false>(params, task, runs, mine);
  const float g_total = BlockSum(sums.g);  // its barriers also order `columns`
  const float p_total = BlockSum(sums.p);
  if (ThreadIndex() == 0) {
    StoreEntry(task.Scratch() + task.map.tile_sums + tile, g_total);
    StoreEntry(task.Scratch() + task.map.tile_params + tile, p_total);
  }
  if (!shape.linear) {
    const int across = 1 << shape.across_bits;
    const int64_t first = place.col_tile << (shape.across_bits + shape.StripBits());
    float* to = task.Scratch() + task.map.col_sums +
                (place.row_tile * shape.batch + place.batch) * shape.cols + first;
    for (int col = ThreadIndex(); col < across << shape.StripBits(); col += kThreads) {
      if (first + col >= shape.cols) continue;
      const int at = col & ((1 << shape.StripBits()) - 1);
      float sum = 0.0f;  // of at most 8 warps
      for (int warp = col >> shape.StripBits(); warp < kWarps; warp += across) {
        sum += columns[warp][at];
      }
      StoreEntry(to + col, sum);
    }
  }
  Barrier();  // before the next tile's columns
}

}  // namespace fused_optim
