// Adafactor's F7 to F10: scaling the updates and writing the parameters.
#include "tiles.cuh"
#include "variants.cuh"

namespace fused_optim {
namespace {

// What a tile's updates are scaled with, and its random bits.
struct ApplyTask {
  const TensorRecord& t;
  const AdafactorRow& row;
  Preparation prepare;
  Scaling scaling;
  Draw draw;
};

// One element, of any strides.
template <int64_t kDtype, Mode kMode>
FUSED_DEVICE void ApplyElement(const ApplyTask& apply, const StridedPlace& place,
                               float multiplier) {
  const TensorRecord& t = apply.t;
  RawParam<1> raw;
  LoadParam<kDtype, kMode, 1>(t, place, &raw);
  float g[1], p[1], m[1];
  Unpack(LoadGradient<1>(t, place.Offset(kGradSlot)), t.grad_dtype, g);
  DecodeParam<kDtype, kMode>(raw, p);
  const int64_t at = place.Offset(kExpAvgSlot);
  const bool has_m = t.exp_avg != 0;
  if (has_m) Unpack(LoadRaw<1>(t.exp_avg, t.exp_avg_dtype == kFloat32, at), t.exp_avg_dtype, m);
  const float u = Unscaled(apply.row, apply.prepare(g[0]), multiplier);
  ApplyUpdate(apply.row, apply.scaling, has_m, u, m, p);
  StoreParam<kDtype, kMode>(t, place, p, apply.draw);
  if (has_m) StoreMoment(t.exp_avg, t.exp_avg_dtype, at, m, apply.draw, kOfExpAvg, place.element);
}

// `count` elements from `index` on. The statistics of their columns start at `column`.
template <int64_t kDtype, Mode kMode>
FUSED_DEVICE void ApplySingly(const ApplyTask& apply, int64_t index, int count, float r,
                              const float* column) {
#pragma unroll 1
  for (int i = 0; i < count; ++i) {
    const float multiplier = r * InverseRoot(LoadStatistic(column + i));
    ApplyElement<kDtype, kMode>(apply, PlaceOf(apply.t, index + i), multiplier);
  }
}

// A run of 8 as stored.
struct RawUpdate {
  Raw<kRun> g;
  RawParam<kRun> p;
  Raw<kRun> m;
};

template <int64_t kDtype, Mode kMode>
FUSED_DEVICE void ApplyRun(const ApplyTask& apply, int64_t index, const RawUpdate& raw, float r,
                           const float (&c)[kRun]) {
  const TensorRecord& t = apply.t;
  const DensePlace place = {index, t.first_element + index};
  const bool has_m = t.exp_avg != 0;
  float g[kRun], p[kRun], m[kRun];
  Unpack(raw.g, t.grad_dtype, g);
  DecodeParam<kDtype, kMode>(raw.p, p);
  if (has_m) Unpack(raw.m, t.exp_avg_dtype, m);
#pragma unroll
  for (int i = 0; i < kRun; ++i) {
    const float u = Unscaled(apply.row, apply.prepare(g[i]), r * c[i]);
    ApplyUpdate(apply.row, apply.scaling, has_m, u, &m[i], &p[i]);
  }
  StoreParam<kDtype, kMode>(t, place, p, apply.draw);
  if (has_m) {
    StoreMoment(t.exp_avg, t.exp_avg_dtype, index, m, apply.draw, kOfExpAvg, place.element);
  }
}

template <int64_t kDtype, Mode kMode>
FUSED_DEVICE void ApplyTile(const ApplyTask& apply, const LaneRuns& runs, const RowFactors& r,
                            int64_t column_state) {
  constexpr int kAtOnce = 2;
  const TensorRecord& t = apply.t;
  const float* columns = GlobalPointer<const float>(column_state);
  float c[kRun];
  if (!runs.linear) ColumnFactors(column_state, runs.col, runs.width, c);
#pragma unroll 1
  for (int first = 0; first < runs.steps; first += kAtOnce) {
    RawUpdate raw[kAtOnce];
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      if (!WholeAt(runs, first + k)) continue;
      const DensePlace place = {IndexAt(runs, first + k), 0};
      raw[k].g = LoadGradient<kRun>(t, place.index);
      LoadParam<kDtype, kMode, kRun>(t, place, &raw[k].p);
      if (t.exp_avg != 0) {
        raw[k].m = LoadRaw<kRun>(t.exp_avg, t.exp_avg_dtype == kFloat32, place.index);
      }
    }
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      const int64_t index = IndexAt(runs, first + k);
      const int count = CountAt(runs, first + k);
      if (count == 0) continue;
      if (WholeAt(runs, first + k)) {
        if (runs.linear) ColumnFactors(column_state, index, count, c);
        ApplyRun<kDtype, kMode>(apply, index, raw[k], r.At(first + k), c);
      } else {
        const float* column = columns + (runs.linear ? index : runs.col);
        ApplySingly<kDtype, kMode>(apply, index, count, r.At(first + k), column);
      }
    }
  }
}

template <int64_t kDtype, Mode kMode>
__global__ void __launch_bounds__(kThreads, 1)
    ApplyKernel(const LaunchArguments launch, float* scratch) {
  if (*launch.found_inf != 0.0f) return;
  for (int64_t item = BlockIndex(); item < launch.num_items; item += BlockCount()) {
    const WorkItem work = launch.items[item];
    const TensorTask task = TaskOf(launch, work, scratch);
    const LaneRuns runs = RunsOf(task, PlaceOfTile(task.shape, work.part));
    const ApplyTask apply = {task.t, task.row,
                             Prepare(launch, work.tensor, task.row.grad_mul, Infinity()),
                             ScalingOf(task.row, task.scratch[kAlpha], task.scratch[kUpdateSum],
                                       static_cast<float>(task.t.global_numel)),
                             DrawOf(launch, task.t, task.row.step)};
    ApplyTile<kDtype, kMode>(apply, runs, RowFactorsOf(task, runs), task.ColumnState());
  }
}

}  // namespace

void AdafactorApply(const LaunchTarget& target, const LaunchArguments& launch, float* scratch) {
  const LaunchSite site = {"adafactor_apply_", target.device, target.tensors, launch.num_items};
  Dispatch(target, site.op, [&](auto dtype, auto mode) {
    Launch(site, target.stream, ApplyKernel<decltype(dtype)::value, decltype(mode)::value>, launch,
           scratch);
  });
}

}  // namespace fused_optim
