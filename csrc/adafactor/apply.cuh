// F7 to F10, which scale the updates and write the parameters.
#pragma once

#include "adafactor/factors.cuh"

namespace fused_optim {

// The scale of a tile's updates, and the source of its random bits.
struct ApplyTask {
  const TensorRecord& t;
  const AdafactorRow& row;
  Scaled prepare;
  Scaling scaling;
  const Draw& draw;
};

// One element, of any strides.
template <typename Params>
FUSED_DEVICE void ApplyElement(const Params& params, const ApplyTask& apply,
                               const StridedPlace& place, float multiplier) {
  const TensorRecord& t = apply.t;
  RawParam<1> raw;
  params.Load(t, place, &raw);
  float g[1], p[1], m[1];
  Unpack(LoadGradient<1>(t, place.Offset(kGradSlot)), t.grad_dtype, g);
  params.Decode(raw, p);
  const int64_t at = place.Offset(kExpAvgSlot);
  const bool has_m = t.exp_avg != 0;
  if (has_m) Unpack(LoadRaw<1>(t.exp_avg, t.exp_avg_dtype == kFloat32, at), t.exp_avg_dtype, m);
  const float u = Unscaled(apply.prepare(g[0]), multiplier, apply.row.update_cap);
  ApplyUpdate(apply.row, apply.scaling, has_m, u, m, p);
  params.Store(t, place, p, apply.draw);
  if (has_m) StoreMoment(t.exp_avg, t.exp_avg_dtype, at, m, apply.draw, kOfExpAvg, place.element);
}

// A run of 8 as stored.
struct RawUpdate {
  Raw<kRun> g;
  RawParam<kRun> p;
  Raw<kRun> m;
};

template <bool kHasM, typename Params>
FUSED_DEVICE void ApplyRun(const Params& params, const ApplyTask& apply, int64_t index, int dtype,
                           const RawUpdate& raw, float r, const float (&c)[kRun]) {
  const TensorRecord& t = apply.t;
  const DensePlace place = {index, t.first_element + index};
  float g[kRun], p[kRun], m[kRun];
  Unpack(raw.g, dtype, g);
  params.Decode(raw.p, p);
  if constexpr (kHasM) Unpack(raw.m, t.exp_avg_dtype, m);
#pragma unroll
  for (int i = 0; i < kRun; ++i) {
    const float u = Unscaled(apply.prepare(g[i]), r * c[i], apply.row.update_cap);
    ApplyUpdate(apply.row, apply.scaling, kHasM, u, &m[i], &p[i]);
  }
  params.Store(t, place, p, apply.draw);
  if constexpr (kHasM) {
    StoreMoment(t.exp_avg, t.exp_avg_dtype, index, m, apply.draw, kOfExpAvg, place.element);
  }
}

// A lane's part of a tile.
template <bool kHasM, typename Params>
FUSED_DEVICE void ApplyRuns(const Params& params, const TensorTask& task, const ApplyTask& apply,
                            const LaneRuns& runs) {
  constexpr int kAhead = 2;
  const TensorRecord& t = apply.t;
  const RowFactors r = RowFactorsOf(task, runs);
  const int dtype = static_cast<int>(t.grad_dtype);
  const bool wide = dtype == kFloat32;
  const bool wide_m = t.exp_avg_dtype == kFloat32;
  float c[kRun];
  if (!runs.linear && runs.steps > 0) LoadRun(ColumnFactorsOf(task, runs), c);
  int64_t index = runs.index;
#pragma unroll 1
  for (int step = 0; step < runs.steps; ++step, index += runs.stride) {
    const DensePlace place = {index, 0};
    RawUpdate raw;
    raw.g = LoadRaw<kRun>(t.grad, wide, index);
    params.Load(t, place, &raw.p);
    if constexpr (kHasM) raw.m = LoadRaw<kRun>(t.exp_avg, wide_m, index);
    if (step + kAhead < runs.steps) {
      const int64_t ahead = index + kAhead * runs.stride;
      PrefetchRaw(t.grad, wide, ahead);
      params.Prefetch(t, ahead);
      if constexpr (kHasM) PrefetchRaw(t.exp_avg, wide_m, ahead);
    }
    const float row_factor = runs.linear ? LinearFactors(task, r, index, c) : r.At(step);
    ApplyRun<kHasM>(params, apply, index, dtype, raw, row_factor, c);
  }
}

// Applies a lane's part of a tile one element at a time.
template <typename Params>
FUSED_DEVICE void ApplySingly(const Params& params, const TensorTask& task, const ApplyTask& apply,
                              const LaneRuns& runs) {
  const RowFactors r = RowFactorsOf(task, runs);
#pragma unroll 1
  for (int step = 0; step < runs.steps; ++step) {
    const int count = CountAt(runs, step);
#pragma unroll 1
    for (int i = 0; i < count; ++i) {
      const StridedPlace place = PlaceOf(apply.t, IndexAt(runs, step) + i);
      ApplyElement(params, apply, place, MultiplierAt(task, runs, r, step, i));
    }
  }
}

template <typename Params>
FUSED_DEVICE void ApplyTile(const Params& params, const TensorTask& task, int32_t tile) {
  const LaneRuns runs = RunsOf(task.shape, PlaceOfTile(task.shape, tile));
  const float numel = static_cast<float>(task.t.global_numel);
  const float* scalars = task.Scratch();
  const Scaling scaling =
      ScalingOf(task.row, LoadEntry(scalars + kAlpha), LoadEntry(scalars + kUpdateSum), numel);
  const ApplyTask apply = {task.t, task.row, ScaledOf(task), scaling, task.draw};
  if (!HasFastFactors(task, tile)) {
    ApplySingly(params, task, apply, runs);
  } else if (task.t.exp_avg != 0) {
    ApplyRuns<true>(params, task, apply, runs);
  } else {
    ApplyRuns<false>(params, task, apply, runs);
  }
}

}  // namespace fused_optim
