// What instructions do to rows without memory: arithmetic, comparisons, conversions, moves.
//
// note: [NaN] A GPU's arithmetic gives one NaN, 0x7fffffff; a CPU's keeps an operand's.
#pragma once

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "common/host_math.h"
#include "machine.h"

namespace ptx {

using Handler = void (*)(Machine&, Warp&, const Instruction&, uint32_t lanes);

struct Operation {
  const char* name;
  Kind kind;
  Handler run;  // null where executor.cpp has it
};

template <typename To, typename From>
inline To BitsAs(From value) {
  static_assert(sizeof(To) == sizeof(From), "of one size");
  To to;
  std::memcpy(&to, &value, sizeof to);
  return to;
}

inline float Canonical(float x) { return x == x ? x : BitsAs<float>(0x7fffffffu); }
template <typename T>
inline T Canonical(T x) {
  return x;
}

// Calls store(lane) for the lanes of a mask; without a branch for each where all are in it.
template <typename Store>
inline void ForLanes(uint32_t lanes, const Store& store) {
  if (lanes == kAllLanes) {
    for (int lane = 0; lane < kLanes; ++lane) store(lane);
  } else {
    for (uint32_t left = lanes; left != 0; left &= left - 1) store(__builtin_ctz(left));
  }
}

template <typename To, typename A, typename Function>
void Unary(Machine& machine, Warp& warp, const Instruction& i, uint32_t lanes) {
  To* to = Row<To>(warp, i.to[0]);
  const A* a = Row<A>(machine, warp, i.from[0]);
  ForLanes(lanes, [&](int lane) { to[lane] = Canonical(static_cast<To>(Function()(a[lane]))); });
}

template <typename To, typename A, typename B, typename Function>
void Binary(Machine& machine, Warp& warp, const Instruction& i, uint32_t lanes) {
  To* to = Row<To>(warp, i.to[0]);
  const A* a = Row<A>(machine, warp, i.from[0]);
  const B* b = Row<B>(machine, warp, i.from[1]);
  ForLanes(lanes,
           [&](int lane) { to[lane] = Canonical(static_cast<To>(Function()(a[lane], b[lane]))); });
}

template <typename To, typename A, typename B, typename C, typename Function>
void Ternary(Machine& machine, Warp& warp, const Instruction& i, uint32_t lanes) {
  To* to = Row<To>(warp, i.to[0]);
  const A* a = Row<A>(machine, warp, i.from[0]);
  const B* b = Row<B>(machine, warp, i.from[1]);
  const C* c = Row<C>(machine, warp, i.from[2]);
  ForLanes(lanes, [&](int lane) {
    to[lane] = Canonical(static_cast<To>(Function()(a[lane], b[lane], c[lane])));
  });
}

template <typename T, typename Function>
void Compare(Machine& machine, Warp& warp, const Instruction& i, uint32_t lanes) {
  const T* a = Row<T>(machine, warp, i.from[0]);
  const T* b = Row<T>(machine, warp, i.from[1]);
  uint32_t found = 0;
  for (int lane = 0; lane < kLanes; ++lane) {
    found |= static_cast<uint32_t>(Function()(a[lane], b[lane])) << lane;
  }
  uint32_t* to = Row<uint32_t>(warp, i.to[0]);
  *to = (*to & ~lanes) | (found & lanes);
}

template <typename Function>
void Logic(Machine& machine, Warp& warp, const Instruction& i, uint32_t lanes) {
  const uint32_t a = *Row<uint32_t>(machine, warp, i.from[0]);
  const uint32_t b = *Row<uint32_t>(machine, warp, i.from[1]);
  uint32_t* to = Row<uint32_t>(warp, i.to[0]);
  *to = (*to & ~lanes) | (Function()(a, b) & lanes);
}

template <typename T>
void Select(Machine& machine, Warp& warp, const Instruction& i, uint32_t lanes) {
  T* to = Row<T>(warp, i.to[0]);
  const T* a = Row<T>(machine, warp, i.from[0]);
  const T* b = Row<T>(machine, warp, i.from[1]);
  const uint32_t chosen = *Row<uint32_t>(machine, warp, i.from[2]);
  ForLanes(lanes, [&](int lane) { to[lane] = chosen >> lane & 1 ? a[lane] : b[lane]; });
}

template <typename Half, typename Whole>
void Unpack(Machine& machine, Warp& warp, const Instruction& i, uint32_t lanes) {
  Half* low = i.to[0] < 0 ? nullptr : Row<Half>(warp, i.to[0]);
  Half* high = i.to[1] < 0 ? nullptr : Row<Half>(warp, i.to[1]);
  const Whole* from = Row<Whole>(machine, warp, i.from[0]);
  ForLanes(lanes, [&](int lane) {
    const Whole whole = from[lane];
    if (low != nullptr) low[lane] = static_cast<Half>(whole);
    if (high != nullptr) high[lane] = static_cast<Half>(whole >> (8 * sizeof(Half)));
  });
}

#define PTX_FUNCTION(NAME, EXPRESSION) \
  struct NAME {                        \
    template <typename A>              \
    auto operator()(A a) const {       \
      return EXPRESSION;               \
    }                                  \
  };
#define PTX_FUNCTION2(NAME, EXPRESSION) \
  struct NAME {                         \
    template <typename A, typename B>   \
    auto operator()(A a, B b) const {   \
      return EXPRESSION;                \
    }                                   \
  };

// Integers wrap, which C++ leaves open for signed ones: they are added as unsigned.
PTX_FUNCTION(Copy, a)
PTX_FUNCTION(Not, ~a)
PTX_FUNCTION(Negate, A(0) - a)
PTX_FUNCTION(NegateFloat, -a)
PTX_FUNCTION(AbsoluteFloat, std::fabs(a))
PTX_FUNCTION(SquareRoot, std::sqrt(a))
PTX_FUNCTION2(Add, a + b)
PTX_FUNCTION2(Subtract, a - b)
PTX_FUNCTION2(Multiply, a* b)
PTX_FUNCTION2(DivideFloat, a / b)
PTX_FUNCTION2(And, a& b)
PTX_FUNCTION2(Or, a | b)
PTX_FUNCTION2(Xor, a ^ b)
PTX_FUNCTION2(Smaller, std::min(a, b))
PTX_FUNCTION2(Larger, std::max(a, b))
PTX_FUNCTION2(SmallerFloat, a != a ? b : b != b || a < b || (a == b && std::signbit(a)) ? a : b)
PTX_FUNCTION2(LargerFloat, a != a ? b : b != b || a > b || (a == b && std::signbit(b)) ? a : b)
PTX_FUNCTION2(SmallerOrNan, a != a ? a : b != b ? b : SmallerFloat()(a, b))
PTX_FUNCTION2(LargerOrNan, a != a ? a : b != b ? b : LargerFloat()(a, b))
PTX_FUNCTION2(ShiftLeft, b >= 8 * sizeof(A) ? A(0) : static_cast<A>(a << b))
PTX_FUNCTION2(ShiftRight, a >> std::min<uint32_t>(b, 8 * sizeof(A) - 1))
PTX_FUNCTION2(Equal, a == b)
PTX_FUNCTION2(Unequal, a != b)
PTX_FUNCTION2(Less, a < b)
PTX_FUNCTION2(LessOrEqual, a <= b)
PTX_FUNCTION2(Greater, a > b)
PTX_FUNCTION2(GreaterOrEqual, a >= b)
PTX_FUNCTION2(Numbers, a == a && b == b)
PTX_FUNCTION2(SomeNan, a != a || b != b)
PTX_FUNCTION2(UnequalNumbers, a<b || a> b)
PTX_FUNCTION2(EqualOrNan, !(a < b || a > b))
PTX_FUNCTION2(LessOrNan, !(a >= b))
PTX_FUNCTION2(LessOrEqualOrNan, !(a > b))
PTX_FUNCTION2(GreaterOrNan, !(a <= b))
PTX_FUNCTION2(GreaterOrEqualOrNan, !(a < b))
PTX_FUNCTION2(AndNot, a & ~b)
PTX_FUNCTION2(AddHalves, ((a + b) & 0xffffu) | (((a >> 16) + (b >> 16)) << 16))
#undef PTX_FUNCTION
#undef PTX_FUNCTION2

// Division by zero is no fault on a GPU, nor is the one quotient that does not fit.
struct Divide {
  template <typename A>
  A operator()(A a, A b) const {
    if (b == 0) return static_cast<A>(-1);
    if (std::is_signed<A>::value && b == static_cast<A>(-1)) return static_cast<A>(0 - uint64_t(a));
    return a / b;
  }
};
struct Remainder {
  template <typename A>
  A operator()(A a, A b) const {
    if (b == 0) return a;
    if (std::is_signed<A>::value && b == static_cast<A>(-1)) return 0;
    return a % b;
  }
};

struct ShiftRightUnsigned {
  template <typename A>
  A operator()(A a, uint32_t b) const {
    return b >= 8 * sizeof(A) ? A(0) : static_cast<A>(a >> b);
  }
};

template <typename Wide>
struct MultiplyHigh {
  template <typename A>
  A operator()(A a, A b) const {
    return static_cast<A>((static_cast<Wide>(a) * static_cast<Wide>(b)) >> (8 * sizeof(A)));
  }
};

template <typename Wide>
struct MultiplyWide {
  template <typename A>
  Wide operator()(A a, A b) const {
    return static_cast<Wide>(a) * static_cast<Wide>(b);
  }
};

struct MultiplyAdd {
  template <typename A>
  A operator()(A a, A b, A c) const {
    return a * b + c;
  }
};

template <typename Wide>
struct MultiplyWideAdd {
  template <typename A>
  Wide operator()(A a, A b, Wide c) const {
    using Bits = std::make_unsigned_t<Wide>;
    return static_cast<Wide>(static_cast<Bits>(static_cast<Wide>(a) * static_cast<Wide>(b)) +
                             static_cast<Bits>(c));
  }
};

template <typename To, typename Wide>
struct Pack {
  template <typename A>
  To operator()(A low, A high) const {
    return static_cast<To>(static_cast<Wide>(low) | static_cast<Wide>(high) << (8 * sizeof(A)));
  }
};

struct PermuteBytes {
  uint32_t operator()(uint32_t a, uint32_t b, uint32_t selector) const {
    const uint64_t both = a | static_cast<uint64_t>(b) << 32;
    uint32_t result = 0;
    for (int i = 0; i < 4; ++i) {
      const uint32_t choice = selector >> (4 * i) & 0xf;
      uint32_t byte = both >> (8 * (choice & 7)) & 0xff;
      if (choice & 8) byte = byte & 0x80 ? 0xff : 0;
      result |= byte << (8 * i);
    }
    return result;
  }
};

template <typename T>
struct ExtractBits {
  T operator()(T a, uint32_t first, uint32_t length) const {
    first &= 0xff;
    length &= 0xff;
    if (length == 0) return 0;
    const bool is_signed = T(-1) < T(0);
    const uint32_t last = std::min(first + length - 1, 31u);
    const auto bits = static_cast<uint32_t>(a);
    uint32_t found = first > 31 ? 0 : bits >> first;
    if (length < 32) found &= (1u << length) - 1;
    if (is_signed && (bits >> last & 1) && length < 32) found |= ~0u << std::min(length, 31u);
    return static_cast<T>(found);
  }
};

// cvt: the value of a row's low bits as one type, in another, extended to its row.
template <typename ToRow, typename To, typename From>
struct Convert {
  template <typename A>
  ToRow operator()(A a) const {
    return static_cast<ToRow>(static_cast<To>(static_cast<From>(a)));
  }
};

struct TruncateToInt {  // beyond the range: its end; NaN: 0
  int32_t operator()(float x) const {
    if (x != x) return 0;
    if (x >= 2147483648.0f) return INT32_MAX;
    if (x <= -2147483648.0f) return INT32_MIN;
    return static_cast<int32_t>(x);
  }
};

inline uint16_t HalfBits(float x) {
  return x == x ? static_cast<uint16_t>(fused_optim::FloatToHalfBits(x)) : uint16_t{0x7fff};
}
struct HalfToFloat {
  float operator()(uint16_t x) const { return fused_optim::HalfBitsToFloat(x); }
};
struct FloatToHalf {
  uint16_t operator()(float x) const { return HalfBits(x); }
};
struct FloatsToHalves {  // the first operand is the upper half
  uint32_t operator()(float high, float low) const {
    return HalfBits(low) | static_cast<uint32_t>(HalfBits(high)) << 16;
  }
};

}  // namespace ptx
