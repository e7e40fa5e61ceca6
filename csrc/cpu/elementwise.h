// The body of every elementwise op on a CPU: run.cuh's updates on runs in memory order.
#pragma once

#include "cpu/eight_bit.h"
#include "cpu/runs.h"
#include "elementwise/run.cuh"

namespace fused_optim {

constexpr int kRun = 128;  // elements whose random bits are drawn together

// The random bits of a run of every tensor, for those that are rounded stochastically.
struct RunBits {
  uint16_t param[kRun];
  uint16_t exp_avg[kRun];
  uint16_t exp_avg_sq[kRun];
  uint16_t max_exp_avg_sq[kRun];
};

template <typename Update, Mode kMode, int N>
FUSED_DEVICE void DrawRun(const TensorRecord& t, const Draw& draw, const RoundKeys& keys,
                          int64_t element, RunBits* bits) {
  const auto fill = [&](uint32_t stream, uint16_t* halves) {
    RandomRun(draw, keys, stream, element, N, halves);
  };
  if constexpr (kMode == kStochastic) fill(kOfParam, bits->param);
  if (t.exp_avg_dtype == kBFloat16) fill(kOfExpAvg, bits->exp_avg);
  if constexpr (Update::kMoments > 1) {
    if (t.exp_avg_sq_dtype == kBFloat16) fill(kOfExpAvgSq, bits->exp_avg_sq);
  }
  if constexpr (Update::kMoments > 2) {
    if (t.exp_avg_sq_dtype == kBFloat16) fill(kOfMax, bits->max_exp_avg_sq);
  }
}

// N elements of a dense tensor, from `index` on; `at` is their place in the run of the bits.
template <typename Update, int64_t kDtype, Mode kMode, int N>
FUSED_DEVICE void StepLanes(const TensorRecord& t, const Scalars<typename Update::Row>& scalars,
                            int64_t index, const RunBits& bits, int at) {
  float g[N], p[N], m[N], v[N], h[N];
  LoadFloats(t.grad, t.grad_dtype, index, g);
  LoadParams<kDtype, kMode>(t, index, p);
  LoadFloats(t.exp_avg, t.exp_avg_dtype, index, m);
  if constexpr (Update::kMoments > 1) LoadFloats(t.exp_avg_sq, t.exp_avg_sq_dtype, index, v);
  if constexpr (Update::kMoments > 2) LoadFloats(t.max_exp_avg_sq, t.exp_avg_sq_dtype, index, h);
  for (int i = 0; i < N; ++i) g[i] = scalars.prepare(g[i]);
  Update::Step(scalars.row, g, p, m, v, h);
  StoreParams<kDtype, kMode>(t, index, bits.param + at, p);
  StoreMoments(t.exp_avg, t.exp_avg_dtype, index, bits.exp_avg + at, m);
  if constexpr (Update::kMoments > 1) {
    StoreMoments(t.exp_avg_sq, t.exp_avg_sq_dtype, index, bits.exp_avg_sq + at, v);
  }
  if constexpr (Update::kMoments > 2) {
    StoreMoments(t.max_exp_avg_sq, t.exp_avg_sq_dtype, index, bits.max_exp_avg_sq + at, h);
  }
}

// N elements of a dense tensor, from `index` on. With random bits they begin at a multiple of 8.
template <typename Update, int64_t kDtype, Mode kMode, int N>
void StepRun(const TensorRecord& t, const Scalars<typename Update::Row>& scalars,
             const RoundKeys& keys, int64_t index) {
  constexpr int kStep = N < kLanesOfFloat ? N : kLanesOfFloat;
  RunBits bits;
  DrawRun<Update, kMode, N>(t, scalars.draw, keys, t.first_element + index, &bits);
  for (int at = 0; at < N; at += kStep) {
    StepLanes<Update, kDtype, kMode, kStep>(t, scalars, index + at, bits, at);
  }
}

// One chunk of a tensor of any layout.
template <typename Update, int64_t kDtype, Mode kMode>
void StepChunk(const LaunchArguments& launch, const WorkItem& chunk) {
  const TensorRecord& t = launch.records[chunk.tensor];
  const auto& row = static_cast<const typename Update::Row*>(launch.rows)[t.row];
  const Scalars<typename Update::Row> scalars = {
      row, Prepare(launch, chunk.tensor, row.grad_mul, row.clip_value),
      DrawOf(launch, t.number, row.step)};
  const RoundKeys keys(scalars.draw);
  int64_t index = chunk.part * kChunkSize;
  const int64_t last = index + kChunkSize < t.numel ? index + kChunkSize : t.numel;
  const auto step_one = [&] {
    RawRun<1> raw;
    const StridedPlace place = PlaceOf(t, index);
    LoadRun<Update, kDtype, kMode>(t, place, &raw);
    FinishRun<Update, kDtype, kMode>(t, scalars, place, raw);
    ++index;
  };
  if constexpr (Update::kMoments > 1) {
    if (t.exp_avg_dtype == kEightBit) {
      for (; index < last; index += kBlockSize) {
        const int64_t left = last - index;
        const int count = static_cast<int>(left < kBlockSize ? left : kBlockSize);
        StepBlock<Update, kDtype, kMode>(t, scalars, keys, index, count);
      }
      return;
    }
  }
  if (t.layout == 0) {
    while (index < last && (t.first_element + index) % 8 != 0) step_one();
    for (; index + kRun <= last; index += kRun) {
      StepRun<Update, kDtype, kMode, kRun>(t, scalars, keys, index);
    }
    for (; index + 8 <= last; index += 8)
      StepRun<Update, kDtype, kMode, 8>(t, scalars, keys, index);
  }
  while (index < last) step_one();
}

}  // namespace fused_optim
