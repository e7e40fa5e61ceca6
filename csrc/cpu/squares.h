// Sums of squares of gradients, in an order that depends on sizes alone.
#pragma once

#include "common/prepare.cuh"
#include "cpu/runs.h"

namespace fused_optim {

// The sum of squares of one chunk's gradients, prepared but not clipped. Eight float64 sums, each
// of every eighth element, are added up at the end.
inline double ChunkSquares(const LaunchArguments& launch, const WorkItem& chunk, bool clamps) {
  constexpr int kSums = 8;
  const TensorRecord& t = launch.records[chunk.tensor];
  const AdamWRow& row = static_cast<const AdamWRow*>(launch.rows)[t.row];
  Preparation prepare =
      Prepare(launch, chunk.tensor, row.grad_mul, clamps ? row.clip_value : Infinity());
  prepare.clip = 1.0f;
  double sums[kSums] = {};
  int64_t index = chunk.part * kChunkSize;
  const int64_t last = index + kChunkSize < t.numel ? index + kChunkSize : t.numel;
  const auto add = [&](auto& g) {
    constexpr int kCount = sizeof(g) / sizeof(g[0]);
    for (int i = 0; i < kCount; ++i) g[i] = prepare(g[i]);
    for (int i = 0; i < kCount; i += kSums) {
      for (int k = 0; k < kSums && k < kCount; ++k) {
        sums[k] += static_cast<double>(g[i + k]) * static_cast<double>(g[i + k]);
      }
    }
  };
  if (t.layout == 0) {
    constexpr int kRun = 128;
    for (; index + kRun <= last; index += kRun) {
      float g[kRun];
      LoadFloats(t.grad, t.grad_dtype, index, g);
      add(g);
    }
  }
  for (; index < last; ++index) {
    float g[1];
    const int64_t at = PlaceOf(t, index).Offset(kGradSlot);
    Unpack(LoadGradient<1>(t, at), t.grad_dtype, g);
    add(g);
  }
  double sum = 0.0;
  for (double each : sums) sum += each;
  return sum;
}

}  // namespace fused_optim
