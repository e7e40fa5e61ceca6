// The update math of Adafactor: float32 registers only, one rounding per operation (contract,
// section 6).
#pragma once

#include "common/prepare.cuh"

namespace fused_optim {

// [F3] A mean of squares moves towards this step's: k2 is the square of the clip coefficient.
FUSED_DEVICE float AdvanceMean(const AdafactorRow& row, float mean, float sum, float k2,
                               float count) {
  return (row.b2 * mean) + (row.omb2 * ((k2 * Divide(sum, count)) + row.eps_grad));
}

FUSED_DEVICE float InverseRoot(float x) { return Divide(1.0f, SquareRoot(x)); }  // [F4]

// [F5] The step size before clipping, from the parameter's root mean square.
FUSED_DEVICE float StepSize(const AdafactorRow& row, float rms) {
  if ((row.flags & kScaleParameter) == 0) return row.rho;
  return row.rho * (rms > row.eps_rms ? rms : row.eps_rms);  // eps_rms where rms is NaN
}

// [F6] The update before it is scaled. The cap is a number, and a multiplier may be NaN.
FUSED_DEVICE float Unscaled(float g, float multiplier, float cap) {
  return g * (multiplier > cap ? cap : multiplier);
}

// The factors of F8 and F9.
struct Scaling {
  float update;
  float decay;
};

FUSED_DEVICE Scaling ScalingOf(const AdafactorRow& row, float alpha, float u_sum, float numel) {
  if ((row.flags & kHoldIfZero) != 0 && u_sum == 0.0f) alpha = 0.0f;  // [F7]
  float ratio = Divide(SquareRoot(Divide(u_sum, numel)), row.clip_threshold);
  if ((row.flags & kClipIgnoresNan) != 0 && IsNan(ratio)) ratio = 1.0f;
  const float decay = row.decay_alpha != 0.0f ? 1.0f - (row.decay_alpha * alpha) : 1.0f;
  return {Divide(alpha, NanMax(ratio, 1.0f)), decay};
}

// One step of one element from its unscaled update u; m is the first moment, if there is one.
FUSED_DEVICE void ApplyUpdate(const AdafactorRow& row, const Scaling& scaling, bool has_m, float u,
                              float* m, float* p) {
  u = u * scaling.update;  // [F8]
  if (has_m) {
    *m = (row.b1 * *m) + (row.omb1 * u);
    u = *m;
  }
  *p = (*p * row.decay_before) * scaling.decay;  // [F9]
  *p = *p - (u + 0.0f);                          // [F10]
}

}  // namespace fused_optim
