// The precision modes: decoding a stored parameter to its float32 value, and encoding one
// (contract, section 8).
#pragma once

#include "common/dispatch.cuh"
#include "common/storage.cuh"
#include "ops.h"

namespace fused_optim {

// Whether a mode keeps a tensor beside the parameter, and whether that is float32.
template <Mode kMode>
constexpr bool kHasExtra = kMode == kKahan || kMode == kSplit || kMode == kMaster;
template <Mode kMode>
constexpr bool kExtraIsWide = kMode == kMaster;

template <int64_t kDtype>
FUSED_DEVICE float DecodeKahan(uint32_t param, uint32_t compensation) {
  const float sum = Widen<kDtype>(param) + Widen<kDtype>(compensation);
  return RoundNearest<kDtype>(sum) == param ? sum : Widen<kDtype>(param);
}

template <int64_t kDtype>
FUSED_DEVICE void EncodeKahan(float x, uint32_t* param, uint32_t* compensation) {
  *param = RoundNearest<kDtype>(x);
  const float shown = Widen<kDtype>(*param);
  const bool finite = shown - shown == 0.0f;
  uint32_t lost = finite ? RoundNearest<kDtype>(x - shown) : 0;
  // A sum on the midpoint between two parameters may round to the neighbour, and decoding would
  // take the parameter for an external write. So the compensation moves one step towards zero.
  const bool tie = RoundNearest<kDtype>(shown + Widen<kDtype>(lost)) != *param;
  if (tie && (lost & 0x7fffu) != 0) --lost;
  *compensation = lost;
}

FUSED_DEVICE float DecodeSplit(uint32_t param, uint32_t remainder) {
  const uint32_t magnitude = param & 0x7fffu;
  const bool negative = remainder >= 0x8000u;
  // No value has such a pair: the remainder belongs to a value that was overwritten since.
  const bool stale = negative ? magnitude == 0 : magnitude == 0x7f80u;
  if (stale) remainder = 0;
  const uint32_t high = param - (negative && !stale ? 1 : 0);
  return BitsFloat(high << 16 | remainder);
}

template <int64_t kDtype>
FUSED_DEVICE float DecodeMaster(uint32_t param, uint32_t master) {
  const float x = BitsFloat(master);
  return RoundMaster<kDtype>(x) == param ? x : Widen<kDtype>(param);
}

// A run of a parameter with what its mode keeps beside it.
template <int N>
struct RawParam {
  Raw<N> param;
  Raw<N> extra;
};

template <int64_t kDtype, Mode kMode, int N, typename Place>
FUSED_DEVICE void LoadParam(const TensorRecord& tensor, const Place& place, RawParam<N>* raw) {
  raw->param = LoadRaw<N>(tensor.param, kDtype == kFloat32, place.Offset(kParamSlot));
  if constexpr (kHasExtra<kMode>) {
    raw->extra = LoadRaw<N>(tensor.extra, kExtraIsWide<kMode>, place.Offset(kExtraSlot));
  }
}

template <int64_t kDtype, Mode kMode, int N>
FUSED_DEVICE void DecodeParam(const RawParam<N>& raw, float (&values)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) {
    if constexpr (kDtype == kFloat32) {
      values[i] = BitsFloat(raw.param.words[i]);
    } else {
      const uint32_t param = HalfWord(raw.param, i);
      if constexpr (kMode == kKahan) {
        values[i] = DecodeKahan<kDtype>(param, HalfWord(raw.extra, i));
      } else if constexpr (kMode == kSplit) {
        values[i] = DecodeSplit(param, HalfWord(raw.extra, i));
      } else if constexpr (kMode == kMaster) {
        values[i] = DecodeMaster<kDtype>(param, raw.extra.words[i]);
      } else {
        values[i] = Widen<kDtype>(param);
      }
    }
  }
}

template <int64_t kDtype, Mode kMode, int N>
FUSED_DEVICE RawParam<N> EncodeParam(const float (&values)[N], const Draw& draw, int64_t element) {
  RawParam<N> raw = {};
  if constexpr (kDtype == kFloat32) {
#pragma unroll
    for (int i = 0; i < N; ++i) raw.param.words[i] = FloatBits(values[i]);
  } else {
    uint32_t params[N];
    uint32_t extras[N];
    if constexpr (kMode == kStochastic) RandomHalves(draw, kOfParam, element, params);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      if constexpr (kMode == kStochastic) {
        params[i] = RoundStochastic<kDtype>(values[i], params[i]);
      } else if constexpr (kMode == kKahan) {
        EncodeKahan<kDtype>(values[i], &params[i], &extras[i]);
      } else if constexpr (kMode == kSplit) {
        params[i] = RoundHalfAway(values[i]);
        extras[i] = CanonicalBits(values[i]) & 0xffffu;
      } else if constexpr (kMode == kMaster) {
        params[i] = RoundMaster<kDtype>(values[i]);
        raw.extra.words[i] = FloatBits(values[i]);
      } else {
        params[i] = RoundNearest<kDtype>(values[i]);
      }
    }
    raw.param = PackHalfWords(params);
    if constexpr (kMode == kKahan || kMode == kSplit) raw.extra = PackHalfWords(extras);
  }
  return raw;
}

template <int64_t kDtype, Mode kMode, int N, typename Place>
FUSED_DEVICE void StoreParam(const TensorRecord& tensor, const Place& place,
                             const float (&values)[N], const Draw& draw) {
  const RawParam<N> raw = EncodeParam<kDtype, kMode, N>(values, draw, place.element);
  StoreRaw(tensor.param, kDtype == kFloat32, place.Offset(kParamSlot), raw.param);
  if constexpr (kHasExtra<kMode>) {
    StoreRaw(tensor.extra, kExtraIsWide<kMode>, place.Offset(kExtraSlot), raw.extra);
  }
}

// Access to parameters whose dtype and mode are known at compile time.
template <int64_t kDtype, Mode kMode>
struct FixedParams {
  template <int N, typename Place>
  FUSED_DEVICE void Load(const TensorRecord& tensor, const Place& place, RawParam<N>* raw) const {
    LoadParam<kDtype, kMode, N>(tensor, place, raw);
  }
  FUSED_DEVICE void Prefetch(const TensorRecord& tensor, int64_t index) const {
    PrefetchRaw(tensor.param, kDtype == kFloat32, index);
    if constexpr (kHasExtra<kMode>) PrefetchRaw(tensor.extra, kExtraIsWide<kMode>, index);
  }
  template <int N>
  FUSED_DEVICE void Decode(const RawParam<N>& raw, float (&values)[N]) const {
    DecodeParam<kDtype, kMode>(raw, values);
  }
  template <int N, typename Place>
  FUSED_DEVICE void Store(const TensorRecord& tensor, const Place& place, const float (&values)[N],
                          const Draw& draw) const {
    StoreParam<kDtype, kMode>(tensor, place, values, draw);
  }
};

// Access to parameters whose dtype and mode are known at run time. All threads of a launch branch
// alike.
struct AnyParams {
  int64_t dtype;
  Mode mode;

  template <int N, typename Place>
  FUSED_DEVICE void Load(const TensorRecord& tensor, const Place& place, RawParam<N>* raw) const {
    raw->param = LoadRaw<N>(tensor.param, dtype == kFloat32, place.Offset(kParamSlot));
    if (tensor.extra != 0) {
      raw->extra = LoadRaw<N>(tensor.extra, mode == kMaster, place.Offset(kExtraSlot));
    }
  }
  FUSED_DEVICE void Prefetch(const TensorRecord& tensor, int64_t index) const {
    PrefetchRaw(tensor.param, dtype == kFloat32, index);
    if (tensor.extra != 0) PrefetchRaw(tensor.extra, mode == kMaster, index);
  }
  template <int N>
  FUSED_DEVICE void Decode(const RawParam<N>& raw, float (&values)[N]) const {
    RunVariant(dtype, mode, [&](auto known_dtype, auto known_mode) {
      DecodeParam<decltype(known_dtype)::value, decltype(known_mode)::value>(raw, values);
    });
  }
  template <int N, typename Place>
  FUSED_DEVICE void Store(const TensorRecord& tensor, const Place& place, const float (&values)[N],
                          const Draw& draw) const {
    RunVariant(dtype, mode, [&](auto known_dtype, auto known_mode) {
      StoreParam<decltype(known_dtype)::value, decltype(known_mode)::value>(tensor, place, values,
                                                                            draw);
    });
  }
};

}  // namespace fused_optim
