// The scalar functions of device.cuh for a C++ compiler: of the tests' host build, and of csrc/cpu.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace fused_optim {

inline uint32_t FloatBits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}

inline float BitsFloat(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

inline float HalfBitsToFloat(uint32_t bits) {
  const uint32_t sign = (bits & 0x8000) << 16;
  const uint32_t magnitude = bits & 0x7fff;
  const uint32_t special = sign | 0x7f800000 | (magnitude & 0x3ff) << 13;
  // The bits of a binary16 are those of a float32 2^112 times too small, subnormals included.
  const uint32_t finite = sign | FloatBits(BitsFloat(magnitude << 13) * 0x1p112f);
  return BitsFloat(magnitude >= 0x7c00 ? special : finite);
}

inline uint32_t FloatToHalfBits(float x) {
  const uint32_t sign = FloatBits(x) >> 16 & 0x8000;
  const uint32_t magnitude = FloatBits(x) & 0x7fffffff;
  // 0.5 has the spacing of binary16's subnormals, 2^-24.
  const uint32_t subnormal = FloatBits(BitsFloat(magnitude) + 0.5f) - FloatBits(0.5f);
  const uint32_t normal = (magnitude + 0xfff + (magnitude >> 13 & 1) - (112u << 23)) >> 13;
  const uint32_t finite = magnitude < 0x38800000 ? subnormal : normal;
  return sign | (magnitude >= 0x477ff000 ? 0x7c00 : finite);
}

inline uint32_t MultiplyHigh(uint32_t a, uint32_t b) {
  return static_cast<uint32_t>(static_cast<uint64_t>(a) * b >> 32);
}
inline float Divide(float a, float b) { return a / b; }  // IEEE, division by zero included
inline float SquareRoot(float x) { return std::sqrt(x); }

}  // namespace fused_optim
