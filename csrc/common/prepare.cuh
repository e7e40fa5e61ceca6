// How every kernel prepares a gradient (contract, section 5).
#pragma once

#include "common/storage.cuh"
#include "ops.h"

namespace fused_optim {

FUSED_DEVICE float NanMax(float a, float b) { return IsNan(a) || a > b ? a : b; }
FUSED_DEVICE float NanMin(float a, float b) { return IsNan(a) || a < b ? a : b; }

// Prepares the gradient elements of one tensor.
struct Preparation {
  float multiplier;
  float clip_value;  // infinite where nothing is clamped
  float clip;

  FUSED_DEVICE float operator()(float g) const {
    g = g * multiplier;
    if (clip_value < BitsFloat(0x7f800000u)) g = NanMin(NanMax(g, -clip_value), clip_value);
    return g * clip;
  }
};

FUSED_DEVICE Preparation Prepare(const LaunchArguments& launch, int tensor, float grad_mul,
                                 float clip_value) {
  return {grad_mul * Divide(1.0f, *launch.grad_scale), clip_value,
          launch.clip[tensor * launch.clip_stride]};
}

FUSED_DEVICE float Infinity() { return BitsFloat(0x7f800000u); }

FUSED_DEVICE Draw DrawOf(const LaunchArguments& launch, int64_t number, uint32_t step) {
  return {launch.seed_low, launch.seed_high, step, static_cast<uint32_t>(number)};
}

// Whether whole vectors of a record's tensors may be loaded and stored.
FUSED_DEVICE bool TakesVectors(const TensorRecord& tensor) {
  return (tensor.flags & kAligned) != 0 && tensor.grad_dtype != kFloat64 &&
         tensor.first_element % 8 == 0;
}

}  // namespace fused_optim
