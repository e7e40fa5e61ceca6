// Moments in 8 bits: the code of one element, and the scales of a block of 256 (contract, section
// 9; fused_optim/precision/eight_bit.py says what is coded and why). A block's record is its codes
// and then its scale, a word.
#pragma once

#include "common/device.cuh"

namespace fused_optim {

constexpr int kBlockSize = 256;
constexpr int kRecordBytes = kBlockSize + 4;

// The scale of a block with an infinity or a NaN, whose values are NaN from then on.
constexpr uint32_t kSpoiled = 0x7fc00008u;

// --- second moments: steps of 2^shift down from the bits of the largest, which code 255 is ---

FUSED_DEVICE uint32_t MagnitudeBits(float x) { return FloatBits(x) & 0x7fffffffu; }

// The scale of a block, from the bits of its largest value and of the least one that is not zero.
FUSED_DEVICE uint32_t SecondScale(uint32_t top, uint32_t least) {
  if (top >= 0x7f800000u) return kSpoiled;
  const uint32_t largest = (top + 0xffu) & ~0xffu;
  uint32_t shift = 8;
  while (shift < 20 && largest - least > 254u << shift) ++shift;
  return largest | shift;
}

FUSED_DEVICE float DecodeSecond(uint32_t code, uint32_t scale) {
  const uint32_t bits = (scale & ~0xffu) - ((255u - code) << (scale & 0x1fu));
  if (scale >= 0x7f800000u) return BitsFloat(0x7fc00000u);
  return BitsFloat(code == 0 ? 0u : bits);
}

// The code of a value, by 16 random bits.
FUSED_DEVICE uint32_t EncodeSecond(float value, uint32_t scale, uint32_t random) {
  const uint32_t bits = MagnitudeBits(value);
  const uint32_t largest = scale & ~0xffu;
  const uint32_t shift = scale & 0x1fu;
  const uint32_t reach = 254u << shift;
  const uint32_t down = largest - bits < reach ? largest - bits : reach;
  const uint32_t dither = shift < 16 ? random >> (16 - shift) : random << (shift - 16);
  const uint32_t steps = (down + dither) >> shift;
  const uint32_t positive = (largest - 1) >> shift;  // no code stands for less than zero
  const uint32_t lowest = positive < 254u ? positive : 254u;
  const uint32_t code = 255u - (steps < lowest ? steps : lowest);
  if (scale == kSpoiled) return 255u;
  return bits == 0 ? 0u : code;
}

// --- first moments: linear in units of the power of two at or below the root of the second ---

// The unit of a first moment for a `sign` of 1, its reciprocal for -1; both are exact.
FUSED_DEVICE float FirstUnit(float second, int sign) {
  const int half = (static_cast<int>(FloatBits(second) >> 23) + 127) / 2 - 127;
  return BitsFloat(static_cast<uint32_t>(127 + sign * half) << 23);
}

// The scale of a block, from the largest magnitude in units: what one code stands for.
FUSED_DEVICE float FirstScale(float top) {
  // 17 bits, so that the product with a code of 7 bits is exact.
  const uint32_t step = (FloatBits(Divide(top, 127.0f)) + 0x7fu) & ~0x7fu;
  return BitsFloat(MagnitudeBits(top) < 0x7f800000u ? step : 0x7fc00000u);
}

FUSED_DEVICE float FirstInverse(float scale) { return scale > 0.0f ? Divide(1.0f, scale) : 0.0f; }

// The code of a value in units, by the high 8 of 16 random bits: int8, in the low bits.
FUSED_DEVICE uint32_t EncodeFirst(float in_units, float inverse, uint32_t random) {
  const float dither = (static_cast<float>(random >> 8) + 0.5f) * 0x1p-8f;
  const float steps = (BitsFloat(MagnitudeBits(in_units)) * inverse) + dither;
  int code = steps > 0.0f ? static_cast<int>(steps < 127.0f ? steps : 127.0f) : 0;
  if ((FloatBits(in_units) >> 31) != 0) code = -code;
  return static_cast<uint32_t>(code) & 0xffu;
}

FUSED_DEVICE float DecodeFirst(uint32_t code, float scale, float unit) {
  return static_cast<float>(static_cast<int8_t>(code)) * scale * unit;
}

}  // namespace fused_optim
