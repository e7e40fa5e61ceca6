// The random bits of runs of elements: Philox of rounding.cuh, on as many groups at once as a
// vector register of the CPU has 64-bit lanes.
#pragma once

#include "common/rounding.cuh"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace fused_optim {

#if defined(__AVX512F__)
constexpr int kWideLanes = 8;
#elif defined(__AVX2__)
constexpr int kWideLanes = 4;
#else
constexpr int kWideLanes = 2;
#endif

constexpr int kLanesOfFloat = 16 * kWideLanes;

// A 32-bit word in the low half of each lane. The high halves may hold anything.
typedef uint64_t Wide __attribute__((vector_size(8 * kWideLanes)));

// The 64-bit products of the words and a constant. Compilers turn a product of 64-bit lanes into
// three of these instructions.
inline Wide MultiplyWords(Wide words, uint32_t by) {
#if defined(__AVX512F__)
  return (Wide)_mm512_mul_epu32((__m512i)words, _mm512_set1_epi64(by));
#elif defined(__AVX2__)
  return (Wide)_mm256_mul_epu32((__m256i)words, _mm256_set1_epi64x(by));
#elif defined(__x86_64__)
  return (Wide)_mm_mul_epu32((__m128i)words, _mm_set1_epi64x(by));
#elif defined(__aarch64__)
  return (Wide)vmull_n_u32(vmovn_u64((uint64x2_t)words), by);
#else
  return (words & 0xffffffffu) * static_cast<uint64_t>(by);
#endif
}

// Lanes of `a` and `b` by turns: those of the lower half of each, and those of the upper half.
#if defined(__AVX512F__)
constexpr Wide kLaneNumbers = {0, 1, 2, 3, 4, 5, 6, 7};
inline Wide FirstPairs(Wide a, Wide b) {
  return __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
}
inline Wide LastPairs(Wide a, Wide b) {
  return __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
}
#elif defined(__AVX2__)
constexpr Wide kLaneNumbers = {0, 1, 2, 3};
inline Wide FirstPairs(Wide a, Wide b) { return __builtin_shufflevector(a, b, 0, 4, 1, 5); }
inline Wide LastPairs(Wide a, Wide b) { return __builtin_shufflevector(a, b, 2, 6, 3, 7); }
#else
constexpr Wide kLaneNumbers = {0, 1};
inline Wide FirstPairs(Wide a, Wide b) { return __builtin_shufflevector(a, b, 0, 2); }
inline Wide LastPairs(Wide a, Wide b) { return __builtin_shufflevector(a, b, 1, 3); }
#endif

// The keys of Philox's rounds, which all groups of a launch share.
struct RoundKeys {
  uint64_t even[10];
  uint64_t odd[10];

  explicit RoundKeys(const Draw& draw) {
    uint32_t key0 = draw.seed_low;
    uint32_t key1 = draw.seed_high;
    for (int round = 0; round < 10; ++round) {
      even[round] = key0;
      odd[round] = key1;
      key0 += 0x9e3779b9u;
      key1 += 0xbb67ae85u;
    }
  }
};

// Two vectors of groups, from number `first` on: see RandomWords. Their chains of products overlap.
FUSED_DEVICE void RandomGroups(const Draw& draw, const RoundKeys& keys, uint32_t stream,
                               int64_t first, uint16_t* halves) {
  constexpr int kVectors = 2;
  Wide w0[kVectors], w1[kVectors], w2[kVectors], w3[kVectors];
  for (int k = 0; k < kVectors; ++k) {
    w0[k] = kLaneNumbers + static_cast<uint64_t>(first + k * kWideLanes);
    w1[k] = w0[k] >> 32;
    w2[k] = Wide{} + draw.step;
    w3[k] = Wide{} + (draw.number | stream << 28);
  }
  for (int round = 0; round < 10; ++round) {
    for (int k = 0; k < kVectors; ++k) {
      const Wide product0 = MultiplyWords(w0[k], 0xd2511f53u);
      const Wide product1 = MultiplyWords(w2[k], 0xcd9e8d57u);
      w0[k] = (product1 >> 32) ^ w1[k] ^ keys.even[round];
      w1[k] = product1;
      w2[k] = (product0 >> 32) ^ w3[k] ^ keys.odd[round];
      w3[k] = product0;
    }
  }
  for (int k = 0; k < kVectors; ++k) {
    const Wide low = (w0[k] & 0xffffffffu) | w1[k] << 32;
    const Wide high = (w2[k] & 0xffffffffu) | w3[k] << 32;
    const Wide pairs[2] = {FirstPairs(low, high), LastPairs(low, high)};
    std::memcpy(halves + 8 * kWideLanes * k, pairs, sizeof(pairs));
  }
}

// The random bits of `count` elements from `element` on, both multiples of 8.
FUSED_DEVICE void RandomRun(const Draw& draw, const RoundKeys& keys, uint32_t stream,
                            int64_t element, int count, uint16_t* halves) {
  constexpr int kGroups = 2 * kWideLanes;
  int64_t group = element >> 3;
  const int64_t last = group + count / 8;
  for (; group + kGroups <= last; group += kGroups, halves += 8 * kGroups) {
    RandomGroups(draw, keys, stream, group, halves);
  }
  for (; group < last; ++group, halves += 8) {
    uint32_t words[4];
    RandomWords(draw, stream, group, words);
    std::memcpy(halves, words, 16);
  }
}

}  // namespace fused_optim
