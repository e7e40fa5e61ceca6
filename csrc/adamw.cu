// AdamW on any number of tensors in one launch.
#include "adamw.cuh"
#include "precision.cuh"
#include "variants.cuh"

namespace fused_optim {
namespace {

// N elements of every tensor of a record, as stored.
template <int N>
struct RawRun {
  Raw<N> g;
  RawParam<N> p;
  Raw<N> m;
  Raw<N> v;
  Raw<N> h;
};

template <int64_t kDtype, Mode kMode, bool kAmsgrad, int N, typename Place>
FUSED_DEVICE void LoadRun(const TensorRecord& t, const Place& place, RawRun<N>* raw) {
  const bool wide_v = t.exp_avg_sq_dtype == kFloat32;
  raw->g = LoadGradient<N>(t, place.Offset(kGradSlot));
  LoadParam<kDtype, kMode, N>(t, place, &raw->p);
  raw->m = LoadRaw<N>(t.exp_avg, t.exp_avg_dtype == kFloat32, place.Offset(kExpAvgSlot));
  raw->v = LoadRaw<N>(t.exp_avg_sq, wide_v, place.Offset(kExpAvgSqSlot));
  if constexpr (kAmsgrad) raw->h = LoadRaw<N>(t.max_exp_avg_sq, wide_v, place.Offset(kMaxSlot));
}

// The scalars of one tensor.
struct Scalars {
  AdamWRow row;
  Preparation prepare;
  Draw draw;
};

template <int64_t kDtype, Mode kMode, bool kAmsgrad, int N, typename Place>
FUSED_DEVICE void FinishRun(const TensorRecord& t, const Scalars& scalars, const Place& place,
                            const RawRun<N>& raw) {
  float g[N], p[N], m[N], v[N], h[N];
  Unpack(raw.g, t.grad_dtype, g);
  DecodeParam<kDtype, kMode>(raw.p, p);
  Unpack(raw.m, t.exp_avg_dtype, m);
  Unpack(raw.v, t.exp_avg_sq_dtype, v);
  if constexpr (kAmsgrad) Unpack(raw.h, t.exp_avg_sq_dtype, h);
#pragma unroll
  for (int i = 0; i < N; ++i) g[i] = scalars.prepare(g[i]);
  UpdateAdamW<kAmsgrad>(scalars.row, g, p, m, v, h);
  const Draw& draw = scalars.draw;
  StoreParam<kDtype, kMode>(t, place, p, draw);
  StoreMoment(t.exp_avg, t.exp_avg_dtype, place.Offset(kExpAvgSlot), m, draw, kOfExpAvg,
              place.element);
  StoreMoment(t.exp_avg_sq, t.exp_avg_sq_dtype, place.Offset(kExpAvgSqSlot), v, draw, kOfExpAvgSq,
              place.element);
  if constexpr (kAmsgrad) {
    StoreMoment(t.max_exp_avg_sq, t.exp_avg_sq_dtype, place.Offset(kMaxSlot), h, draw, kOfMax,
                place.element);
  }
}

// Elements [first, last) of a tensor, one at a time: any strides, any alignment.
template <int64_t kDtype, Mode kMode, bool kAmsgrad>
FUSED_DEVICE void StepSingly(const TensorRecord& t, const Scalars& scalars, int64_t first,
                             int64_t last) {
  RawRun<1> raw;
  for (int64_t i = first + ThreadIndex(); i < last; i += kThreads) {
    const StridedPlace place = PlaceOf(t, i);
    LoadRun<kDtype, kMode, kAmsgrad>(t, place, &raw);
    FinishRun<kDtype, kMode, kAmsgrad>(t, scalars, place, raw);
  }
}

// The same, 16 bytes of the parameter at a time, and kRuns such with their loads in flight at once.
// Returns the first element that is left: there are no 16 bytes of them.
template <int64_t kDtype, Mode kMode, bool kAmsgrad>
FUSED_DEVICE int64_t StepVectors(const TensorRecord& t, const Scalars& scalars, int64_t first,
                                 int64_t last) {
  constexpr int N = kDtype == kFloat32 ? 4 : 8;
  constexpr int kRuns = N == 4 && !kAmsgrad ? 2 : 1;  // with amsgrad, two would spill registers
  const int runs = static_cast<int>((last - first) / N);
  for (int run = ThreadIndex(); run < runs; run += kRuns * kThreads) {
    RawRun<N> raw[kRuns];
#pragma unroll
    for (int k = 0; k < kRuns; ++k) {
      const int64_t i = first + N * (run + k * kThreads);
      const DensePlace place = {i, t.first_element + i};
      if (run + k * kThreads < runs) LoadRun<kDtype, kMode, kAmsgrad>(t, place, &raw[k]);
    }
#pragma unroll
    for (int k = 0; k < kRuns; ++k) {
      const int64_t i = first + N * (run + k * kThreads);
      const DensePlace place = {i, t.first_element + i};
      if (run + k * kThreads < runs) FinishRun<kDtype, kMode, kAmsgrad>(t, scalars, place, raw[k]);
    }
  }
  return first + N * runs;
}

template <int64_t kDtype, Mode kMode, bool kAmsgrad>
__global__ void __launch_bounds__(kThreads, kDtype == kFloat32 ? 1 : 2)
    AdamWKernel(const LaunchArguments launch) {
  if (*launch.found_inf != 0.0f) return;
  for (int64_t item = BlockIndex(); item < launch.num_items; item += BlockCount()) {
    const WorkItem chunk = launch.items[item];
    const TensorRecord t = launch.records[chunk.tensor];
    Scalars scalars;
    scalars.row = static_cast<const AdamWRow*>(launch.rows)[t.row];
    scalars.prepare = Prepare(launch, chunk.tensor, scalars.row.grad_mul, scalars.row.clip_value);
    scalars.draw = DrawOf(launch, t, scalars.row.step);
    int64_t first = chunk.part * kChunkSize;
    const int64_t last = first + kChunkSize < t.numel ? first + kChunkSize : t.numel;
    if (TakesVectors(t)) first = StepVectors<kDtype, kMode, kAmsgrad>(t, scalars, first, last);
    StepSingly<kDtype, kMode, kAmsgrad>(t, scalars, first, last);
  }
}

}  // namespace

void CheckDevice(int device) { CheckLoads(AdamWKernel<kFloat32, kNone, false>, device); }

void AdamW(const LaunchTarget& target, const LaunchArguments& launch, bool amsgrad) {
  const LaunchSite site = {"adamw_", target.device, target.tensors, launch.num_items};
  Dispatch(target, site.op, [&](auto dtype, auto mode) {
    constexpr int64_t kDtype = decltype(dtype)::value;
    constexpr Mode kMode = decltype(mode)::value;
    if (amsgrad) {
      Launch(site, target.stream, AdamWKernel<kDtype, kMode, true>, launch);
    } else {
      Launch(site, target.stream, AdamWKernel<kDtype, kMode, false>, launch);
    }
  });
}

}  // namespace fused_optim
