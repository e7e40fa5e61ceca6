// Adafactor's F1 and F2: sums of squares along rows and columns, in two launches.
#include "lines.cuh"
#include "variants.cuh"

namespace fused_optim {
namespace {

// Adds up what the lanes of a warp have of each column, and stores it.
FUSED_DEVICE void StoreColumns(int lanes, float (&column)[kRun], float* to) {
#pragma unroll
  for (int i = 0; i < kRun; ++i) {
    for (int mask = lanes; mask < kLanes; mask *= 2) column[i] += ShuffleXor(column[i], mask);
    if (Lane() < lanes) to[Lane() * kRun + i] = column[i];
  }
}

// Adds up a tile's squares of gradients: along rows to scratch, down columns to `columns`.
// Returns this thread's part of the sum of all of them and, in *p_sum, of the parameters'.
template <int64_t kDtype, Mode kMode>
FUSED_DEVICE float SumSquares(const TensorTask& task, const LaneRuns& runs, float* row_sums,
                              const Preparation& prepare, float* p_sum,
                              float (*columns)[kLanes * kRun]) {
  constexpr int kAtOnce = 2;
  const TensorRecord& t = task.t;
  const bool sums_params = (task.row.flags & kScaleParameter) != 0;
  const int lanes = task.shape.lanes;
  const int chains = task.shape.chains;
  float g_total = 0.0f;
  *p_sum = 0.0f;
#pragma unroll 1
  for (int chain = 0; chain < chains; ++chain) {
    float g_chain = 0.0f;
    float p_chain = 0.0f;
    float column[kRun] = {};
#pragma unroll 1
    for (int first = chain * kChain; first < (chain + 1) * kChain; first += kAtOnce) {
      Raw<kRun> raw[kAtOnce];
      RawParam<kRun> raw_p[kAtOnce];
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) {
        if (!WholeAt(runs, first + k)) continue;
        const DensePlace place = {IndexAt(runs, first + k), 0};
        raw[k] = LoadGradient<kRun>(t, place.index);
        if (sums_params) LoadParam<kDtype, kMode, kRun>(t, place, &raw_p[k]);
      }
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) {
        const int step = first + k;
        float x[kRun];
        Gradients(t, runs, step, prepare, raw[k], x);
#pragma unroll
        for (int i = 0; i < kRun; ++i) {
          x[i] = x[i] * x[i];
          column[i] += x[i];
        }
        const float sum = TreeSum(x);
        g_chain += sum;
        if (!runs.linear) {
          const float row_sum = LaneSum(sum, lanes);  // [F1]
          if (Lane() % lanes == 0 && step < runs.steps)
            row_sums[step * runs.rows_per_step] = row_sum;
        }
        if (sums_params) {
          Params<kDtype, kMode>(t, runs, step, raw_p[k], x);
#pragma unroll
          for (int i = 0; i < kRun; ++i) x[i] = x[i] * x[i];
          p_chain += TreeSum(x);  // [F2]
        }
      }
    }
    g_total += g_chain;
    *p_sum += p_chain;
    if (!runs.linear) StoreColumns(lanes, column, columns[Warp() * chains + chain]);
  }
  return g_total;
}

template <int64_t kDtype, Mode kMode>
__global__ void __launch_bounds__(kThreads, 1)
    StatisticsKernel(const LaunchArguments launch, float* scratch) {
  __shared__ float columns[kWarps * kMaxChains][kLanes * kRun];
  for (int64_t item = BlockIndex(); item < launch.num_items; item += BlockCount()) {
    const WorkItem work = launch.items[item];
    const TensorTask task = TaskOf(launch, work, scratch);
    const Geometry& shape = task.shape;
    const TilePlace place = PlaceOfTile(shape, work.part);
    const LaneRuns runs = RunsOf(task, place);
    Preparation prepare = Prepare(launch, work.tensor, task.row.grad_mul, Infinity());
    prepare.clip = 1.0f;
    float* row_sums =
        task.scratch + task.map.row_sums + place.col_tile * shape.batch * shape.rows + runs.row;
    float p_sum;
    const float g_sum = SumSquares<kDtype, kMode>(task, runs, row_sums, prepare, &p_sum, columns);
    const float g_total = BlockSum(g_sum);  // its barriers also order `columns`
    const float p_total = BlockSum(p_sum);
    if (ThreadIndex() == 0) {
      task.scratch[task.map.tile_sums + work.part] = g_total;
      task.scratch[task.map.tile_params + work.part] = p_total;
    }
    const int64_t col = place.col_tile * shape.tile_cols + ThreadIndex();
    if (!shape.linear && ThreadIndex() < shape.tile_cols && col < shape.cols) {
      float sum = 0.0f;  // of at most 32 chains
      for (int i = 0; i < kWarps * shape.chains; ++i) sum += columns[i][ThreadIndex()];
      const int64_t line = (place.row_tile * shape.batch + place.batch) * shape.cols;
      task.scratch[task.map.col_sums + line + col] = sum;
    }
    Barrier();  // before the next tile's columns
  }
}

// Adds up what tiles left of one row or column: `count` terms, `stride` apart. The sum replaces the
// first of them.
FUSED_DEVICE float FoldTiles(float* sums, int64_t count, int64_t stride) {
  ChainSum sum;
  for (int64_t i = 0; i < count; ++i) sum.Add(sums[i * stride]);
  sums[0] = sum.Total();
  return sums[0];
}

FUSED_DEVICE void FoldTensor(const TensorTask& task, float* sum_out) {
  const float g_sum = BlockSum(StridedSum(task.scratch + task.map.tile_sums, task.shape.tiles));
  const float p_sum = BlockSum(StridedSum(task.scratch + task.map.tile_params, task.shape.tiles));
  if (ThreadIndex() != 0) return;
  task.scratch[kGradSum] = g_sum;
  task.scratch[kParamSum] = p_sum;
  task.scratch[kArrived] = BitsFloat(0);
  *sum_out = g_sum;
}

FUSED_DEVICE void FoldLines(const TensorTask& task, const LineJob& job) {
  const Geometry& shape = task.shape;
  if (!job.is_row) {
    float* sums = task.scratch + task.map.col_sums + job.batch * shape.cols + job.line;
    if (job.valid) FoldTiles(sums, shape.row_tiles, shape.batch * shape.cols);
    return;
  }
  const int64_t at = job.batch * shape.rows + job.line;
  float mean = 0.0f;
  float old = 0.0f;
  if (job.valid) {
    float* sums = task.scratch + task.map.row_sums + at;
    const float sum = FoldTiles(sums, shape.col_tiles, shape.batch * shape.rows);
    mean = Divide(sum, static_cast<float>(task.t.global_cols));
    old = GlobalPointer<const float>(task.t.exp_avg_sq)[at];
  }
  const float means = BlockSum(mean);
  const float olds = BlockSum(old);
  if (ThreadIndex() == 0) {
    const int64_t slot = job.batch * shape.row_jobs + job.job;
    task.scratch[task.map.line_means + slot] = means;
    task.scratch[task.map.line_old + slot] = olds;
  }
}

__global__ void __launch_bounds__(kThreads, 1)
    FoldKernel(const LaunchArguments launch, const WorkItem* lines, int64_t num_lines,
               float* scratch, float* sums) {
  for (int64_t item = BlockIndex(); item < num_lines; item += BlockCount()) {
    const TensorTask task = TaskOf(launch, lines[item], scratch);
    if (lines[item].part == 0) {
      FoldTensor(task, sums + lines[item].tensor);
    } else if (!task.shape.linear) {
      FoldLines(task, LineJobOf(task.shape, lines[item].part));
    }
  }
}

}  // namespace

int64_t AdafactorTiles(int64_t batch, int64_t rows, int64_t cols) {
  return GeometryOf(batch, rows, cols).tiles;
}

int64_t AdafactorLines(int64_t batch, int64_t rows, int64_t cols) {
  const Geometry shape = GeometryOf(batch, rows, cols);
  return 1 + batch * (shape.row_jobs + shape.col_jobs);
}

int64_t AdafactorScratch(int64_t batch, int64_t rows, int64_t cols) {
  return ScratchMapOf(GeometryOf(batch, rows, cols)).size;
}

void AdafactorStatistics(const LaunchTarget& target, const LaunchArguments& launch,
                         const WorkItem* lines, int64_t num_lines, float* scratch, float* sums) {
  const char* op = "adafactor_statistics";
  const LaunchSite tiles = {op, target.device, target.tensors, launch.num_items};
  const LaunchSite folds = {op, target.device, target.tensors, num_lines};
  Dispatch(target, op, [&](auto dtype, auto mode) {
    Launch(tiles, target.stream, StatisticsKernel<decltype(dtype)::value, decltype(mode)::value>,
           launch, scratch);
  });
  Launch(folds, target.stream, FoldKernel, launch, lines, num_lines, scratch, sums);
}

}  // namespace fused_optim
