// F1 and F2: sums of squares along rows and columns of a tile, and the sums over tiles.
#pragma once

#include "adafactor/lines.cuh"

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

// `count` steps of a lane from `first` on, with all their loads in flight at once.
template <bool kFast, int kAtOnce, typename Params>
FUSED_DEVICE void SumSteps(const Params& params, const TensorTask& task, const LaneRuns& runs,
                           int first, const Preparation& prepare, float* row_sums,
                           float (&column)[kRun], SquareSums* sums) {
  const TensorRecord& t = task.t;
  const bool sums_params = (task.row.flags & kScaleParameter) != 0;
  Raw<kRun> raw[kAtOnce] = {};
  RawParam<kRun> raw_p[kAtOnce] = {};
  if constexpr (kFast) {
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      if (first + k >= runs.steps) continue;
      const DensePlace place = {IndexAt(runs, first + k), 0};
      raw[k] = LoadGradient<kRun>(t, place.index);
      if (sums_params) params.Load(t, place, &raw_p[k]);
    }
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      PrefetchGradients(t, runs, first + 2 + k);
      if (sums_params) PrefetchParams(params, t, runs, first + 2 + k);
    }
  }
#pragma unroll
  for (int k = 0; k < kAtOnce; ++k) {
    const int step = first + k;
    float x[kRun];
    if constexpr (kFast) {
      Unpack(raw[k], t.grad_dtype, x);  // what was not loaded is 0 in all dtypes
#pragma unroll
      for (int i = 0; i < kRun; ++i) x[i] = prepare(x[i]);
    } else {
      GradientsSingly(t, runs, step, prepare, x);
    }
#pragma unroll
    for (int i = 0; i < kRun; ++i) {
      x[i] = x[i] * x[i];
      column[i] += x[i];
    }
    const float sum = TreeSum(x);
    sums->g += sum;
    if (!runs.linear) {
      const float row_sum = LaneSum(sum, 1 << task.shape.lane_bits);  // [F1]
      if (Lane() % (1 << task.shape.lane_bits) == 0 && step < runs.steps) {
        StoreEntry(row_sums + step * runs.rows_per_step, row_sum);
      }
    }
    if (!sums_params) continue;
    if constexpr (kFast) {
      params.Decode(raw_p[k], x);
    } else {
      ParamsSingly(params, t, runs, step, x);
    }
#pragma unroll
    for (int i = 0; i < kRun; ++i) x[i] = x[i] * x[i];
    sums->p += TreeSum(x);  // [F2]
  }
}

// A lane's part of a tile's sums; row sums go to scratch, columns to this warp's `columns`.
template <bool kFast, typename Params>
FUSED_DEVICE SquareSums SumSquares(const Params& params, const TensorTask& task,
                                   const LaneRuns& runs, const Preparation& prepare,
                                   float* columns) {
  constexpr int kAtOnce = kFast ? 2 : 1;
  const Geometry& shape = task.shape;
  float* row_sums =
      task.Scratch() + task.map.row_sums + runs.strip * shape.batch * shape.rows + runs.row;
  SquareSums total;
#pragma unroll 1
  for (int chain = 0; chain == 0 || chain * kChain < runs.warp_steps; ++chain) {
    SquareSums sums;
    float column[kRun] = {};
    const int last =
        (chain + 1) * kChain < runs.warp_steps ? (chain + 1) * kChain : runs.warp_steps;
#pragma unroll 1
    for (int first = chain * kChain; first < last; first += kAtOnce) {
      SumSteps<kFast, kAtOnce>(params, task, runs, first, prepare, row_sums, column, &sums);
    }
    total.g += sums.g;
    total.p += sums.p;
    if (!runs.linear) AddColumns(1 << shape.lane_bits, column, chain == 0, columns);
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
  Preparation prepare = task.prepare;
  prepare.clip = 1.0f;
  float* mine = columns[Warp()];
  const SquareSums sums = IsFast(task, tile) ? SumSquares<true>(params, task, runs, prepare, mine)
                                             : SumSquares<false>(params, task, runs, prepare, mine);
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
