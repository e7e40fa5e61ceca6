// The update math of AdamW: float32 registers only, one rounding per operation (contract, section
// 6).
#pragma once

#include "common/prepare.cuh"

namespace fused_optim {

// AdamW as an elementwise update. Without kAmsgrad `h` is not touched.
template <bool kAmsgrad>
struct AdamWUpdate {
  using Row = AdamWRow;
  static constexpr int kMoments = kAmsgrad ? 3 : 2;

  // One step on N elements, from prepared gradients.
  template <int N>
  FUSED_DEVICE static void Step(const Row& row, const float (&gradients)[N], float (&p)[N],
                                float (&m)[N], float (&v)[N], float (&h)[N]) {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const float with_l2 = gradients[i] + (row.l2 * p[i]);
      const float g = row.l2 != 0.0f ? with_l2 : gradients[i];  // [W1]
      p[i] = p[i] * row.decay_before;                           // [W2]
      m[i] = m[i] + (row.omb1 * (g - m[i]));                    // [W3]
      v[i] = (row.b2 * v[i]) + ((row.omb2 * g) * g);            // [W4]
      float s = v[i];
      if constexpr (kAmsgrad) s = h[i] = NanMax(h[i], v[i]);  // [W5]
      const float denominator = (SquareRoot(s) * row.denom_scale) + row.eps;
      p[i] = (p[i] - (Divide(row.step_size * m[i], denominator) + 0.0f)) * row.decay_after;  // [W6]
    }
  }
};

}  // namespace fused_optim
