// Adafactor's F3 to F6: the statistics into their state, step sizes, and the size of the updates.
#include "lines.cuh"

namespace fused_optim {
namespace {

FUSED_DEVICE void FinaliseTensor(const TensorTask& task, float clip) {
  if (ThreadIndex() != 0) return;
  const float numel = static_cast<float>(task.t.global_numel);
  const float rms = SquareRoot(Divide(task.scratch[kParamSum], numel));
  if ((task.row.flags & kScaleParameter) != 0 && task.t.rms != 0) {
    *GlobalPointer<float>(task.t.rms) = rms;
  }
  task.scratch[kAlpha] = StepSize(task.row, rms);
  if (!task.shape.linear || !task.Factored()) return;
  float* r = GlobalPointer<float>(task.t.exp_avg_sq);
  *r = AdvanceMean(task.row, *r, task.scratch[kGradSum], clip * clip,
                   static_cast<float>(task.t.global_cols));
  task.scratch[kRowFactor] = InverseRoot(Divide(*r, NanMax(*r, task.row.mean_floor)));
}

FUSED_DEVICE void FinaliseLines(const TensorTask& task, const LineJob& job, float clip) {
  const Geometry& shape = task.shape;
  const float rows = static_cast<float>(task.t.global_rows);
  const float cols = static_cast<float>(task.t.global_cols);
  if (!job.is_row) {
    const int64_t at = job.batch * shape.cols + job.line;
    float* state = GlobalPointer<float>(task.t.max_exp_avg_sq) + at;
    const float sum = job.valid ? task.scratch[task.map.col_sums + at] : 0.0f;
    if (job.valid) {
      StoreStatistic(state, AdvanceMean(task.row, LoadStatistic(state), sum, clip * clip, rows));
    }
    return;
  }
  // The mean of the new R, from the means of its two parts: no block needs to wait for others.
  const int64_t first = job.batch * shape.row_jobs;
  const float* means = task.scratch + task.map.line_means + first;
  const float* olds = task.scratch + task.map.line_old + first;
  const float mean_sum = BlockSum(StridedSum(means, shape.row_jobs));
  const float old_mean = Divide(BlockSum(StridedSum(olds, shape.row_jobs)), rows);
  const float mean = AdvanceMean(task.row, old_mean, mean_sum, clip * clip, rows);
  if (!job.valid) return;
  const int64_t at = job.batch * shape.rows + job.line;
  float* state = GlobalPointer<float>(task.t.exp_avg_sq) + at;
  float* sum = task.scratch + task.map.row_sums + at;
  const float r = AdvanceMean(task.row, LoadStatistic(state), *sum, clip * clip, cols);
  StoreStatistic(state, r);
  *sum = InverseRoot(Divide(r, NanMax(mean, task.row.mean_floor)));
}

// F3 of a linear tensor, element by element.
FUSED_DEVICE void FinaliseElements(const TensorTask& task, int64_t tile,
                                   const Preparation& prepare) {
  const LaneRuns runs = RunsOf(task, PlaceOfTile(task.shape, tile));
  float* state = GlobalPointer<float>(task.ColumnState());
#pragma unroll 1
  for (int step = 0; step < task.shape.chains * kChain; ++step) {
    Raw<kRun> raw;
    if (WholeAt(runs, step)) raw = LoadGradient<kRun>(task.t, IndexAt(runs, step));
    float g[kRun];
    Gradients(task.t, runs, step, prepare, raw, g);
    const int count = CountAt(runs, step);
#pragma unroll
    for (int i = 0; i < kRun; ++i) {
      if (i >= count) continue;
      float* v = state + IndexAt(runs, step) + i;
      StoreStatistic(v, AdvanceMean(task.row, LoadStatistic(v), g[i] * g[i], 1.0f, 1.0f));
    }
  }
}

__global__ void __launch_bounds__(kThreads, 2)
    FinaliseKernel(const LaunchArguments launch, float* scratch) {
  if (*launch.found_inf != 0.0f) return;
  for (int64_t item = BlockIndex(); item < launch.num_items; item += BlockCount()) {
    const WorkItem work = launch.items[item];
    const TensorTask task = TaskOf(launch, work, scratch);
    const Preparation prepare = Prepare(launch, work.tensor, task.row.grad_mul, Infinity());
    if (work.part == 0) {
      FinaliseTensor(task, prepare.clip);
    } else if (task.shape.linear) {
      FinaliseElements(task, work.part - 1, prepare);
    } else {
      FinaliseLines(task, LineJobOf(task.shape, work.part), prepare.clip);
    }
  }
}

// [F6] This thread's part of the sum of squares of a tile's updates.
FUSED_DEVICE float SumUpdates(const TensorTask& task, int64_t tile, const Preparation& prepare) {
  constexpr int kAtOnce = 4;
  const LaneRuns runs = RunsOf(task, PlaceOfTile(task.shape, tile));
  const RowFactors r = RowFactorsOf(task, runs);
  const int64_t state = task.ColumnState();
  float c[kRun];
  if (!runs.linear) ColumnFactors(state, runs.col, runs.width, c);
  float total = 0.0f;
#pragma unroll 1
  for (int chain = 0; chain < task.shape.chains; ++chain) {
    float sum = 0.0f;
#pragma unroll 1
    for (int first = chain * kChain; first < (chain + 1) * kChain; first += kAtOnce) {
      Raw<kRun> raw[kAtOnce];
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) {
        if (!WholeAt(runs, first + k)) continue;
        raw[k] = LoadGradient<kRun>(task.t, IndexAt(runs, first + k));
      }
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) {
        const int count = CountAt(runs, first + k);
        if (count == 0) continue;
        if (runs.linear) ColumnFactors(state, IndexAt(runs, first + k), count, c);
        float u[kRun];
        Gradients(task.t, runs, first + k, prepare, raw[k], u);
        const float row_factor = r.At(first + k);
#pragma unroll
        for (int i = 0; i < kRun; ++i) {
          u[i] = i < count ? Unscaled(task.row, u[i], row_factor * c[i]) : 0.0f;
          u[i] = u[i] * u[i];
        }
        sum += TreeSum(u);
      }
    }
    total += sum;
  }
  return total;
}

__global__ void __launch_bounds__(kThreads, 1)
    UpdateSumsKernel(const LaunchArguments launch, float* scratch) {
  __shared__ bool is_last;
  if (*launch.found_inf != 0.0f) return;
  for (int64_t item = BlockIndex(); item < launch.num_items; item += BlockCount()) {
    const WorkItem work = launch.items[item];
    const TensorTask task = TaskOf(launch, work, scratch);
    const Preparation prepare = Prepare(launch, work.tensor, task.row.grad_mul, Infinity());
    float* sums = task.scratch + task.map.tile_sums;
    const float sum = BlockSum(SumUpdates(task, work.part, prepare));
    if (ThreadIndex() == 0) {
      sums[work.part] = sum;
      auto* arrived = reinterpret_cast<uint32_t*>(task.scratch + kArrived);
      is_last = Arrive(arrived) == task.shape.tiles - 1;
    }
    Barrier();
    if (is_last) {  // whichever tile of the tensor that is, it adds them all up in one order
      const float total = BlockSum(StridedSum(sums, task.shape.tiles));
      if (ThreadIndex() == 0) task.scratch[kUpdateSum] = total;
    }
    Barrier();
  }
}

}  // namespace

void AdafactorFinalise(const LaunchTarget& target, const LaunchArguments& lines, float* scratch) {
  const LaunchSite site = {"adafactor_finalise_", target.device, target.tensors, lines.num_items};
  Launch(site, target.stream, FinaliseKernel, lines, scratch);
}

void AdafactorUpdateSums(const LaunchTarget& target, const LaunchArguments& launch,
                         float* scratch) {
  const LaunchSite site = {"adafactor_update_sums", target.device, target.tensors,
                           launch.num_items};
  Launch(site, target.stream, UpdateSumsKernel, launch, scratch);
}

}  // namespace fused_optim
