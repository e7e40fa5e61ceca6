// The body of every elementwise kernel: it loads a run of elements, applies an update and stores.
//
// An update is a struct. `Row` is the type of its scalars. `kMoments` says how many of exp_avg,
// exp_avg_sq and max_exp_avg_sq it has; the others are not read. `Step(row, g, p, m, v, h)` turns
// the values of N elements into the next ones, in float32 registers.
#pragma once

#include "common/dispatch.cuh"
#include "common/precision.cuh"
#include "common/prepare.cuh"

namespace fused_optim {

// How many blocks have to fit on a processor: the second argument of `__launch_bounds__`.
template <int64_t kDtype>
constexpr int kElementwiseBlocks = kDtype == kFloat32 ? 1 : 2;

// The stored words of N elements, of every tensor of a record.
template <int N>
struct RawRun {
  Raw<N> g;
  RawParam<N> p;
  Raw<N> m;
  Raw<N> v;
  Raw<N> h;
};

template <typename Update, int64_t kDtype, Mode kMode, int N, typename Place>
FUSED_DEVICE void LoadRun(const TensorRecord& t, const Place& place, RawRun<N>* raw) {
  const bool wide_v = t.exp_avg_sq_dtype == kFloat32;
  raw->g = LoadGradient<N>(t, place.Offset(kGradSlot));
  LoadParam<kDtype, kMode, N>(t, place, &raw->p);
  raw->m = LoadRaw<N>(t.exp_avg, t.exp_avg_dtype == kFloat32, place.Offset(kExpAvgSlot));
  if constexpr (Update::kMoments > 1) {
    raw->v = LoadRaw<N>(t.exp_avg_sq, wide_v, place.Offset(kExpAvgSqSlot));
  }
  if constexpr (Update::kMoments > 2)
    raw->h = LoadRaw<N>(t.max_exp_avg_sq, wide_v, place.Offset(kMaxSlot));
}

// The scalars of one tensor.
template <typename Row>
struct Scalars {
  Row row;
  Preparation prepare;
  Draw draw;
};

template <typename Update, int64_t kDtype, Mode kMode, int N, typename Place>
FUSED_DEVICE void FinishRun(const TensorRecord& t, const Scalars<typename Update::Row>& scalars,
                            const Place& place, const RawRun<N>& raw) {
  float g[N], p[N], m[N], v[N], h[N];
  Unpack(raw.g, t.grad_dtype, g);
  DecodeParam<kDtype, kMode>(raw.p, p);
  Unpack(raw.m, t.exp_avg_dtype, m);
  if constexpr (Update::kMoments > 1) Unpack(raw.v, t.exp_avg_sq_dtype, v);
  if constexpr (Update::kMoments > 2) Unpack(raw.h, t.exp_avg_sq_dtype, h);
#pragma unroll
  for (int i = 0; i < N; ++i) g[i] = scalars.prepare(g[i]);
  Update::Step(scalars.row, g, p, m, v, h);
  const Draw& draw = scalars.draw;
  StoreParam<kDtype, kMode>(t, place, p, draw);
  StoreMoment(t.exp_avg, t.exp_avg_dtype, place.Offset(kExpAvgSlot), m, draw, kOfExpAvg,
              place.element);
  if constexpr (Update::kMoments > 1) {
    StoreMoment(t.exp_avg_sq, t.exp_avg_sq_dtype, place.Offset(kExpAvgSqSlot), v, draw, kOfExpAvgSq,
                place.element);
  }
  if constexpr (Update::kMoments > 2) {
    StoreMoment(t.max_exp_avg_sq, t.exp_avg_sq_dtype, place.Offset(kMaxSlot), h, draw, kOfMax,
                place.element);
  }
}

// Steps elements [first, last) of a tensor one at a time, for any strides and any alignment.
template <typename Update, int64_t kDtype, Mode kMode>
FUSED_DEVICE void StepSingly(const TensorRecord& t, const Scalars<typename Update::Row>& scalars,
                             int64_t first, int64_t last) {
  RawRun<1> raw;
  for (int64_t i = first + ThreadIndex(); i < last; i += kThreads) {
    const StridedPlace place = PlaceOf(t, i);
    LoadRun<Update, kDtype, kMode>(t, place, &raw);
    FinishRun<Update, kDtype, kMode>(t, scalars, place, raw);
  }
}

// Steps elements [first, last) by 16 bytes of the parameter, with the loads of kRuns such runs in
// flight at once. Returns the first element that is left, as the last run is not whole.
template <typename Update, int64_t kDtype, Mode kMode>
FUSED_DEVICE int64_t StepVectors(const TensorRecord& t,
                                 const Scalars<typename Update::Row>& scalars, int64_t first,
                                 int64_t last) {
  constexpr int N = kDtype == kFloat32 ? 4 : 8;
  constexpr int kRuns = N == 4 && Update::kMoments < 3 ? 2 : 1;  // more would spill registers
  const int runs = static_cast<int>((last - first) / N);
  for (int run = ThreadIndex(); run < runs; run += kRuns * kThreads) {
    RawRun<N> raw[kRuns];
#pragma unroll
    for (int k = 0; k < kRuns; ++k) {
      const int64_t i = first + N * (run + k * kThreads);
      const DensePlace place = {i, t.first_element + i};
      if (run + k * kThreads < runs) LoadRun<Update, kDtype, kMode>(t, place, &raw[k]);
    }
#pragma unroll
    for (int k = 0; k < kRuns; ++k) {
      const int64_t i = first + N * (run + k * kThreads);
      const DensePlace place = {i, t.first_element + i};
      if (run + k * kThreads < runs) FinishRun<Update, kDtype, kMode>(t, scalars, place, raw[k]);
    }
  }
  return first + N * runs;
}

// The body of an elementwise kernel: a block's share of the work items.
template <typename Update, int64_t kDtype, Mode kMode>
FUSED_DEVICE void StepChunks(const LaunchArguments& launch) {
  using Row = typename Update::Row;
  if (*launch.found_inf != 0.0f) return;
  for (int64_t item = BlockIndex(); item < launch.num_items; item += BlockCount()) {
    const WorkItem chunk = launch.items[item];
    const TensorRecord t = launch.records[chunk.tensor];
    Scalars<Row> scalars;
    scalars.row = static_cast<const Row*>(launch.rows)[t.row];
    scalars.prepare = Prepare(launch, chunk.tensor, scalars.row.grad_mul, scalars.row.clip_value);
    scalars.draw = DrawOf(launch, t, scalars.row.step);
    int64_t first = chunk.part * kChunkSize;
    const int64_t last = first + kChunkSize < t.numel ? first + kChunkSize : t.numel;
    if (TakesVectors(t)) first = StepVectors<Update, kDtype, kMode>(t, scalars, first, last);
    StepSingly<Update, kDtype, kMode>(t, scalars, first, last);
  }
}

}  // namespace fused_optim
