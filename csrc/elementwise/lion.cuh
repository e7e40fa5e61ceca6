// The update math of Lion: float32 registers only, one rounding per operation (contract, section
// 6).
#pragma once

#include "common/prepare.cuh"

namespace fused_optim {

// Lion as an elementwise update. It has no second moment: `v` and `h` are not touched.
struct LionUpdate {
  using Row = LionRow;
  static constexpr int kMoments = 1;

  // One step on N elements, from prepared gradients.
  template <int N>
  FUSED_DEVICE static void Step(const Row& row, const float (&g)[N], float (&p)[N], float (&m)[N],
                                float (&)[N], float (&)[N]) {
    const float rate = row.step_size;  // loaded here, as a CPU can't load it under a condition
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const float u = (row.b1 * m[i]) + (row.omb1 * g[i]);  // [L1]
      const float rest = u < 0.0f ? -rate : u;              // 0 and NaN are their own signs
      const float move = u > 0.0f ? rate : rest;
      p[i] = (p[i] * row.decay_before) - (move + 0.0f);  // [L2]
      m[i] = (row.b2 * m[i]) + (row.omb2 * g[i]);        // [L3]
    }
  }
};

}  // namespace fused_optim
