// Moves elements between their storage and float32 registers (contract, sections 7 and 8).
//
// A run is N consecutive elements. Its stored words are loaded raw and unpacked later, so that all
// loads of an iteration are in flight before the first is waited for. N is 8 or 4 where every
// address is a multiple of 16 bytes, and 1 anywhere else.
#pragma once

#include "common/rounding.cuh"

namespace fused_optim {

// Indices of the strides in a Layout.
enum Slot : int {
  kParamSlot,
  kGradSlot,
  kExpAvgSlot,
  kExpAvgSqSlot,
  kMaxSlot,
  kExtraSlot,
  kElement
};

// The place of a run in tensors that share one dense memory order.
struct DensePlace {
  int64_t index;
  int64_t element;  // logical index of its first element in the full tensor

  FUSED_DEVICE int64_t Offset(Slot) const { return index; }
};

// The offset of one element in one of a layout's tensors.
FUSED_SLOW_PATH int64_t StridedOffset(int64_t address, int slot, int64_t index) {
  const Layout* layout = GlobalPointer<const Layout>(address);
  int64_t offset = 0;
  for (int64_t dim = LoadConstant(&layout->ndim) - 1; dim >= 0; --dim) {
    const int64_t size = LoadConstant(&layout->sizes[dim]);
    offset += index % size * LoadConstant(&layout->strides[slot][dim]);
    index /= size;
  }
  return offset;
}

// The place of one element in tensors of any strides. Offsets are computed when they are asked for.
struct StridedPlace {
  int64_t layout;
  int64_t index;
  int64_t element;

  FUSED_DEVICE int64_t Offset(Slot slot) const {
    return layout == 0 ? index : StridedOffset(layout, slot, index);
  }
};

FUSED_DEVICE StridedPlace PlaceOf(const TensorRecord& t, int64_t index) {
  const int64_t ahead = t.layout == 0 ? index : StridedOffset(t.layout, kElement, index);
  return {t.layout, index, t.first_element + ahead};
}

// N elements as stored: one per word, or two where they have 16 bits.
template <int N>
struct Raw {
  uint32_t words[N];
};

// N elements of 4 bytes (`wide`) or 2 from `index` on.
template <int N>
FUSED_DEVICE Raw<N> LoadRaw(int64_t address, bool wide, int64_t index) {
  const char* from = GlobalPointer<const char>(address) + index * (wide ? 4 : 2);
  Raw<N> raw;
  if constexpr (N == 8) {
    LoadWords<4>(from, raw.words);
    if (wide) LoadWords<4>(from + 16, raw.words + 4);
  } else if constexpr (N == 4) {
    if (wide) {
      LoadWords<4>(from, raw.words);
    } else {
      LoadWords<2>(from, raw.words);
    }
  } else {
    if (wide) {
      LoadWords<1>(from, raw.words);
    } else {
      raw.words[0] = LoadHalfWord(from);
    }
  }
  return raw;
}

// Prefetches a run that LoadRaw will load.
FUSED_DEVICE void PrefetchRaw(int64_t address, bool wide, int64_t index) {
  Prefetch(GlobalPointer<const char>(address) + index * (wide ? 4 : 2));
}

template <int N>
FUSED_DEVICE void StoreRaw(int64_t address, bool wide, int64_t index, const Raw<N>& raw) {
  char* to = GlobalPointer<char>(address) + index * (wide ? 4 : 2);
  if constexpr (N == 8) {
    StoreWords<4>(to, raw.words);
    if (wide) StoreWords<4>(to + 16, raw.words + 4);
  } else if constexpr (N == 4) {
    if (wide) {
      StoreWords<4>(to, raw.words);
    } else {
      StoreWords<2>(to, raw.words);
    }
  } else {
    if (wide) {
      StoreWords<1>(to, raw.words);
    } else {
      StoreHalfWord(to, raw.words[0]);
    }
  }
}

template <int N>
FUSED_DEVICE uint32_t HalfWord(const Raw<N>& raw, int i) {
  return raw.words[i / 2] >> (16 * (i % 2)) & 0xffffu;
}

template <int N>
FUSED_DEVICE Raw<N> PackHalfWords(const uint32_t (&halves)[N]) {
  Raw<N> raw = {};
  if constexpr (N == 1) {
    raw.words[0] = halves[0];
  } else {
#pragma unroll
    for (int i = 0; i < N; i += 2) raw.words[i / 2] = halves[i] | halves[i + 1] << 16;
  }
  return raw;
}

// A run of a gradient, whose dtype is known at run time only. float64 comes one element at a time.
template <int N>
FUSED_DEVICE Raw<N> LoadGradient(const TensorRecord& tensor, int64_t index) {
  if constexpr (N == 1) {
    if (tensor.grad_dtype == kFloat64) {
      const char* from = GlobalPointer<const char>(tensor.grad) + 8 * index;
      return {FloatBits(static_cast<float>(LoadDouble(from)))};
    }
  }
  return LoadRaw<N>(tensor.grad, tensor.grad_dtype == kFloat32, index);
}

// The float32 values of a run of dtype `dtype`; of gradients, what LoadGradient returned.
template <int N>
FUSED_DEVICE void Unpack(const Raw<N>& raw, int64_t dtype, float (&values)[N]) {
  if (dtype == kBFloat16) {
#pragma unroll
    for (int i = 0; i < N; ++i) values[i] = BFloat16ToFloat(HalfWord(raw, i));
  } else if (dtype == kFloat16) {
#pragma unroll
    for (int i = 0; i < N; ++i) values[i] = HalfBitsToFloat(HalfWord(raw, i));
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) values[i] = BitsFloat(raw.words[i]);
  }
}

// Stores a run of a moment: float32 as it is, float16 to nearest, bfloat16 stochastically.
template <int N>
FUSED_DEVICE void StoreMoment(int64_t address, int64_t dtype, int64_t index,
                              const float (&values)[N], const Draw& draw, RandomStream stream,
                              int64_t element) {
  if (dtype == kFloat32) {
    Raw<N> raw;
#pragma unroll
    for (int i = 0; i < N; ++i) raw.words[i] = FloatBits(values[i]);
    StoreRaw(address, true, index, raw);
    return;
  }
  uint32_t halves[N];
  if (dtype == kFloat16) {
#pragma unroll
    for (int i = 0; i < N; ++i) halves[i] = RoundNearest<kFloat16>(values[i]);
  } else {
    RandomHalves(draw, stream, element, halves);
#pragma unroll
    for (int i = 0; i < N; ++i) halves[i] = RoundStochastic<kBFloat16>(values[i], halves[i]);
  }
  StoreRaw(address, false, index, PackHalfWords(halves));
}

}  // namespace fused_optim
