// Rounds float32 to 16 bits by integer arithmetic, and makes the random bits for that (contract,
// section 8). 16-bit values are the low halves of uint32 words.
#pragma once

#include "common/device.cuh"
#include "common/tables.h"

namespace fused_optim {

enum RandomStream : uint32_t { kOfParam = 0, kOfExpAvg = 1, kOfExpAvgSq = 2, kOfMax = 3 };

FUSED_DEVICE bool IsNan(float x) { return x != x; }

// The bits of x; those of any NaN become 0x7fc00000, whose high half is a NaN too.
FUSED_DEVICE uint32_t CanonicalBits(float x) { return IsNan(x) ? 0x7fc00000u : FloatBits(x); }

FUSED_DEVICE float BFloat16ToFloat(uint32_t bits) { return BitsFloat(bits << 16); }

// The float32 value of a 16-bit element.
template <int64_t kDtype>
FUSED_DEVICE float Widen(uint32_t bits) {
  return kDtype == kBFloat16 ? BFloat16ToFloat(bits) : HalfBitsToFloat(bits);
}

// Rounds to nearest, ties to even; overflow becomes infinity.
template <int64_t kDtype>
FUSED_DEVICE uint32_t RoundNearest(float x) {
  if constexpr (kDtype == kBFloat16) {
    const uint32_t bits = CanonicalBits(x);
    return (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  } else {
    return IsNan(x) ? 0x7e00u : FloatToHalfBits(x);
  }
}

// Rounds to bfloat16, ties away from zero. Result and low half of the bits determine the value.
FUSED_DEVICE uint32_t RoundHalfAway(float x) { return (CanonicalBits(x) + 0x8000u) >> 16; }

// The stored parameter of a float32 master.
template <int64_t kDtype>
FUSED_DEVICE uint32_t RoundMaster(float x) {
  return kDtype == kBFloat16 ? RoundHalfAway(x) : RoundNearest<kFloat16>(x);
}

// Rounds up with the probability that the cut-off bits give, by 16 random bits; else down.
FUSED_DEVICE uint32_t RoundStochasticHalf(float x, uint32_t random) {
  if (IsNan(x)) return 0x7e00u;
  const uint32_t sign = FloatBits(x) >> 16 & 0x8000u;
  const uint32_t magnitude = FloatBits(x) & 0x7fffffffu;
  if (magnitude >= 0x38800000u) {  // 2^-14
    const uint32_t rounded = (magnitude + (random >> 3)) >> 13;
    return sign | (rounded >= 0x47800000u >> 13 ? 0x7c00u : rounded - (112u << 10));
  }
  // Multiples of 2^-24: 13 bits are lost, and one more per binade below 2^-14.
  const int field = static_cast<int>(magnitude >> 23);
  const int exponent = field > 1 ? field : 1;
  const uint32_t significand = magnitude - (static_cast<uint32_t>(exponent - 1) << 23);
  const int shift = 126 - exponent;
  if (shift <= 16) return sign | (significand + (random >> (16 - shift))) >> shift;
  const int excess = shift - 16 < 24 ? shift - 16 : 24;
  return sign | ((significand >> excess) + random) >> 16;
}

template <int64_t kDtype>
FUSED_DEVICE uint32_t RoundStochastic(float x, uint32_t random) {
  return kDtype == kBFloat16 ? (CanonicalBits(x) + random) >> 16 : RoundStochasticHalf(x, random);
}

// The source of one parameter's random bits in one step.
struct Draw {
  uint32_t seed_low;
  uint32_t seed_high;
  uint32_t step;
  uint32_t number;
};

// Philox4x32-10 (Salmon et al., SC 2011): the four words of a group of eight elements.
FUSED_DEVICE void RandomWords(const Draw& draw, uint32_t stream, int64_t group, uint32_t (&w)[4]) {
  w[0] = static_cast<uint32_t>(group);
  w[1] = static_cast<uint32_t>(static_cast<uint64_t>(group) >> 32);
  w[2] = draw.step;
  w[3] = draw.number | stream << 28;
  uint32_t key0 = draw.seed_low;
  uint32_t key1 = draw.seed_high;
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const uint32_t high0 = MultiplyHigh(0xd2511f53u, w[0]);
    const uint32_t high1 = MultiplyHigh(0xcd9e8d57u, w[2]);
    const uint32_t low0 = 0xd2511f53u * w[0];
    const uint32_t low1 = 0xcd9e8d57u * w[2];
    w[0] = high1 ^ w[1] ^ key0;
    w[1] = low1;
    w[2] = high0 ^ w[3] ^ key1;
    w[3] = low0;
    key0 += 0x9e3779b9u;
    key1 += 0xbb67ae85u;
  }
}

// 16 random bits each for `kCount` (1, 4 or 8) elements from `element` on, a multiple of kCount.
template <int kCount>
FUSED_DEVICE void RandomHalves(const Draw& draw, uint32_t stream, int64_t element,
                               uint32_t (&halves)[kCount]) {
  static_assert(kCount == 1 || kCount == 4 || kCount == 8, "within one group of eight");
  uint32_t words[4];
  RandomWords(draw, stream, element >> 3, words);
  if constexpr (kCount == 8) {
#pragma unroll
    for (int i = 0; i < 8; ++i) halves[i] = words[i / 2] >> (16 * (i % 2)) & 0xffffu;
  } else {
    // Selects instead of indexing: an index that is known at run time alone would put the words
    // into
    // local memory.
    const bool upper = (element & 4) != 0;
    const uint32_t low = upper ? words[2] : words[0];
    const uint32_t high = upper ? words[3] : words[1];
    if constexpr (kCount == 4) {
      halves[0] = low & 0xffffu;
      halves[1] = low >> 16;
      halves[2] = high & 0xffffu;
      halves[3] = high >> 16;
    } else {
      const uint32_t word = (element & 2) != 0 ? high : low;
      halves[0] = (element & 1) != 0 ? word >> 16 : word & 0xffffu;
    }
  }
}

}  // namespace fused_optim
