// One run of an elementwise update: its loads, its step and its stores.
//
// An update is a struct. `Row` is the type of its scalars. `kMoments` says how many of exp_avg,
// exp_avg_sq and max_exp_avg_sq it has; the others are not read. `Step(row, g, p, m, v, h)` turns
// the values of N elements into the next ones, in float32 registers.
#pragma once

#include "common/precision.cuh"
#include "common/prepare.cuh"

namespace fused_optim {

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

// Prefetches what LoadRun will load of a tensor whose elements lie densely.
template <typename Update, int64_t kDtype, Mode kMode>
FUSED_DEVICE void PrefetchRun(const TensorRecord& t, int64_t index) {
  PrefetchRaw(t.grad, t.grad_dtype == kFloat32, index);
  FixedParams<kDtype, kMode>().Prefetch(t, index);
  PrefetchRaw(t.exp_avg, t.exp_avg_dtype == kFloat32, index);
  if constexpr (Update::kMoments > 1) {
    PrefetchRaw(t.exp_avg_sq, t.exp_avg_sq_dtype == kFloat32, index);
  }
  if constexpr (Update::kMoments > 2) {
    PrefetchRaw(t.max_exp_avg_sq, t.exp_avg_sq_dtype == kFloat32, index);
  }
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

}  // namespace fused_optim
