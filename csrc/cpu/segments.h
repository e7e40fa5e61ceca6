// Segments of up to 1,024 elements, between storage of any layout and float32 in the nearest cache.
// A segment's elements are consecutive by their logical indices.
#pragma once

#include <type_traits>

#include "common/prepare.cuh"
#include "cpu/runs.h"
#include "cpu/tiling.h"

namespace fused_optim {

// The random bits of a segment, drawn in whole groups of eight.
class SegmentBits {
 public:
  void Fill(const Draw& draw, const RoundKeys& keys, uint32_t stream, int64_t element, int count) {
    lead_ = static_cast<int>(element % 8);
    RandomRun(draw, keys, stream, element - lead_, (lead_ + count + 7) / 8 * 8, halves_);
  }
  const uint16_t* At(int i) const { return halves_ + lead_ + i; }

 private:
  int lead_ = 0;
  uint16_t halves_[kSegment + 16];
};

// The random source of a tensor, and the round keys that all its segments share.
struct TensorDraw {
  Draw draw;
  RoundKeys keys;

  explicit TensorDraw(const Draw& of) : draw(of), keys(of) {}
};

inline void LoadSegment(const TensorRecord& t, Slot slot, int64_t address, int64_t dtype,
                        int64_t index, int count, float* values) {
  if (t.layout == 0) {
    InRuns(count,
           [&](auto n, int at) { LoadFloats(address, dtype, index + at, RunAt<n>(values + at)); });
    return;
  }
  for (int i = 0; i < count; ++i) {
    LoadFloats(address, dtype, StridedOffset(t.layout, slot, index + i), RunAt<1>(values + i));
  }
}

inline void StoreMomentSegment(const TensorRecord& t, const TensorDraw& source, int64_t index,
                               int count, float* m) {
  if (t.layout != 0) {
    for (int i = 0; i < count; ++i) {
      const StridedPlace place = PlaceOf(t, index + i);
      StoreMoment(t.exp_avg, t.exp_avg_dtype, place.Offset(kExpAvgSlot), RunAt<1>(m + i),
                  source.draw, kOfExpAvg, place.element);
    }
    return;
  }
  SegmentBits bits;
  if (t.exp_avg_dtype == kBFloat16) {
    bits.Fill(source.draw, source.keys, kOfExpAvg, t.first_element + index, count);
  }
  InRuns(count, [&](auto n, int at) {
    StoreMoments(t.exp_avg, t.exp_avg_dtype, index + at, bits.At(at), RunAt<n>(m + at));
  });
}

// How to load and store parameters of one dtype and mode, looked up once for a whole tensor.
struct ParamAccess {
  void (*load)(const TensorRecord& t, int64_t index, int count, float* p);
  void (*store)(const TensorRecord& t, const TensorDraw& source, int64_t index, int count,
                float* p);
};

template <int64_t kDtype, Mode kMode>
struct SegmentParams {
  static void Load(const TensorRecord& t, int64_t index, int count, float* p) {
    if (t.layout == 0) {
      InRuns(count,
             [&](auto n, int at) { LoadParams<kDtype, kMode>(t, index + at, RunAt<n>(p + at)); });
      return;
    }
    for (int i = 0; i < count; ++i) {
      const StridedPlace place = {t.layout, index + i, 0};
      RawParam<1> raw;
      LoadParam<kDtype, kMode, 1>(t, place, &raw);
      DecodeParam<kDtype, kMode>(raw, RunAt<1>(p + i));
    }
  }

  static void Store(const TensorRecord& t, const TensorDraw& source, int64_t index, int count,
                    float* p) {
    if (t.layout != 0) {
      for (int i = 0; i < count; ++i) {
        StoreParam<kDtype, kMode>(t, PlaceOf(t, index + i), RunAt<1>(p + i), source.draw);
      }
      return;
    }
    SegmentBits bits;
    if constexpr (kMode == kStochastic) {
      bits.Fill(source.draw, source.keys, kOfParam, t.first_element + index, count);
    }
    InRuns(count, [&](auto n, int at) {
      StoreParams<kDtype, kMode>(t, index + at, bits.At(at), RunAt<n>(p + at));
    });
  }
};

inline ParamAccess AccessOf(int64_t dtype, Mode mode) {
  ParamAccess access = {};
  RunVariant(dtype, mode, [&](auto known_dtype, auto known_mode) {
    using Params = SegmentParams<decltype(known_dtype)::value, decltype(known_mode)::value>;
    access = {&Params::Load, &Params::Store};
  });
  return access;
}

// Elements of one dtype, read as float32.
template <int64_t kDtype>
struct View {
  using Stored = std::conditional_t<kDtype == kFloat64, double,
                                    std::conditional_t<kDtype == kFloat32, float, uint16_t>>;
  const Stored* from;

  FUSED_DEVICE float operator[](int64_t i) const {
    if constexpr (kDtype == kFloat32 || kDtype == kFloat64) {
      return static_cast<float>(from[i]);
    } else {
      return Widen<kDtype>(from[i]);
    }
  }
};

// Calls run(view) for `count` elements of a gradient; those of any strides are gathered first.
template <typename Function>
FUSED_DEVICE void WithGradients(const TensorRecord& t, int64_t index, int count,
                                const Function& run) {
  const auto dense = [&](auto dtype) {
    using Of = View<dtype>;
    run(Of{reinterpret_cast<const typename Of::Stored*>(t.grad) + index});
  };
  if (t.layout != 0) {
    float gathered[kSegment];
    LoadSegment(t, kGradSlot, t.grad, t.grad_dtype, index, count, gathered);
    run(View<kFloat32>{gathered});
  } else if (t.grad_dtype == kFloat32) {
    dense(std::integral_constant<int64_t, kFloat32>());
  } else if (t.grad_dtype == kBFloat16) {
    dense(std::integral_constant<int64_t, kBFloat16>());
  } else if (t.grad_dtype == kFloat16) {
    dense(std::integral_constant<int64_t, kFloat16>());
  } else {
    dense(std::integral_constant<int64_t, kFloat64>());
  }
}

}  // namespace fused_optim
