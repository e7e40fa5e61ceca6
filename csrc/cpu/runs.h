// Runs of elements between their storage and float32 registers, as storage.cuh and precision.cuh do
// it, in loops that a compiler turns into vector instructions. A run lies densely in memory.
#pragma once

#include <type_traits>

#include "common/precision.cuh"
#include "cpu/random.h"

namespace fused_optim {

// Calls run(count, at) for runs of 64, 8 and 1 elements that together are [0, count).
template <typename Function>
FUSED_DEVICE void InRuns(int count, const Function& run) {
  int at = 0;
  for (; at + 64 <= count; at += 64) run(std::integral_constant<int, 64>(), at);
  for (; at + 8 <= count; at += 8) run(std::integral_constant<int, 8>(), at);
  for (; at < count; ++at) run(std::integral_constant<int, 1>(), at);
}

template <int N>
FUSED_DEVICE float (&RunAt(float* values)) [N] { return *reinterpret_cast<float (*)[N]>(values); }

template <typename T, int N>
void LoadRunOf(int64_t address, int64_t index, T (&values)[N]) {
  std::memcpy(values, reinterpret_cast<const T*>(address) + index, sizeof(values));
}

template <typename T, int N>
void StoreRunOf(int64_t address, int64_t index, const T (&values)[N]) {
  std::memcpy(reinterpret_cast<T*>(address) + index, values, sizeof(values));
}

// The float32 values of N elements of a dtype that is known at run time.
template <int N>
FUSED_DEVICE void LoadFloats(int64_t address, int64_t dtype, int64_t index, float (&values)[N]) {
  if (dtype == kFloat32) {
    LoadRunOf(address, index, values);
  } else if (dtype == kFloat64) {
    double wide[N];
    LoadRunOf(address, index, wide);
    for (int i = 0; i < N; ++i) values[i] = static_cast<float>(wide[i]);
  } else {
    uint16_t halves[N];
    LoadRunOf(address, index, halves);
    if (dtype == kBFloat16) {
      for (int i = 0; i < N; ++i) values[i] = BFloat16ToFloat(halves[i]);
    } else {
      for (int i = 0; i < N; ++i) values[i] = HalfBitsToFloat(halves[i]);
    }
  }
}

template <int64_t kDtype, Mode kMode, int N>
FUSED_DEVICE void LoadParams(const TensorRecord& t, int64_t index, float (&values)[N]) {
  if constexpr (kDtype == kFloat32) {
    LoadRunOf(t.param, index, values);
  } else {
    uint16_t params[N];
    LoadRunOf(t.param, index, params);
    if constexpr (kMode == kMaster) {
      uint32_t masters[N];
      LoadRunOf(t.extra, index, masters);
      for (int i = 0; i < N; ++i) values[i] = DecodeMaster<kDtype>(params[i], masters[i]);
    } else if constexpr (kHasExtra<kMode>) {
      uint16_t extras[N];
      LoadRunOf(t.extra, index, extras);
      for (int i = 0; i < N; ++i) {
        values[i] = kMode == kKahan ? DecodeKahan<kDtype>(params[i], extras[i])
                                    : DecodeSplit(params[i], extras[i]);
      }
    } else {
      for (int i = 0; i < N; ++i) values[i] = Widen<kDtype>(params[i]);
    }
  }
}

template <int64_t kDtype, Mode kMode, int N>
FUSED_DEVICE void StoreParams(const TensorRecord& t, int64_t index, const uint16_t* random,
                              const float (&values)[N]) {
  if constexpr (kDtype == kFloat32) {
    StoreRunOf(t.param, index, values);
  } else {
    uint16_t params[N];
    if constexpr (kMode == kStochastic) {
      for (int i = 0; i < N; ++i) {
        params[i] = static_cast<uint16_t>(RoundStochastic<kDtype>(values[i], random[i]));
      }
    } else if constexpr (kMode == kKahan) {
      uint16_t extras[N];
      for (int i = 0; i < N; ++i) {
        uint32_t param;
        uint32_t extra;
        EncodeKahan<kDtype>(values[i], &param, &extra);
        params[i] = static_cast<uint16_t>(param);
        extras[i] = static_cast<uint16_t>(extra);
      }
      StoreRunOf(t.extra, index, extras);
    } else if constexpr (kMode == kSplit) {
      uint16_t extras[N];
      for (int i = 0; i < N; ++i) {
        params[i] = static_cast<uint16_t>(RoundHalfAway(values[i]));
        extras[i] = static_cast<uint16_t>(CanonicalBits(values[i]));
      }
      StoreRunOf(t.extra, index, extras);
    } else if constexpr (kMode == kMaster) {
      for (int i = 0; i < N; ++i) params[i] = static_cast<uint16_t>(RoundMaster<kDtype>(values[i]));
      StoreRunOf(t.extra, index, values);
    } else {
      for (int i = 0; i < N; ++i)
        params[i] = static_cast<uint16_t>(RoundNearest<kDtype>(values[i]));
    }
    StoreRunOf(t.param, index, params);
  }
}

template <int N>
FUSED_DEVICE void StoreMoments(int64_t address, int64_t dtype, int64_t index,
                               const uint16_t* random, const float (&values)[N]) {
  if (dtype == kFloat32) {
    StoreRunOf(address, index, values);
    return;
  }
  uint16_t halves[N];
  if (dtype == kFloat16) {
    for (int i = 0; i < N; ++i) {
      halves[i] = static_cast<uint16_t>(RoundNearest<kFloat16>(values[i]));
    }
  } else {
    for (int i = 0; i < N; ++i) {
      halves[i] = static_cast<uint16_t>(RoundStochastic<kBFloat16>(values[i], random[i]));
    }
  }
  StoreRunOf(address, index, halves);
}

}  // namespace fused_optim
