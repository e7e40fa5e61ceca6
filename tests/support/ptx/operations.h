// All instructions, by the names that program.py gives them.
#pragma once

#include "transfers.h"

namespace ptx {

using i16 = int16_t;
using i32 = int32_t;
using i64 = int64_t;
using u16 = uint16_t;
using u32 = uint32_t;
using u64 = uint64_t;
using i128 = __int128;
using u128 = unsigned __int128;

enum Control { kBranch, kReturn, kBarrier };  // the first operations, in this order

#define BITS(OP, FUNCTION)                                      \
  {OP ".b16", kInteger, Binary<u16, u16, u16, FUNCTION>},       \
      {OP ".b32", kInteger, Binary<u32, u32, u32, FUNCTION>}, { \
    OP ".b64", kInteger, Binary<u64, u64, u64, FUNCTION>        \
  }
#define SIGNS(OP, FUNCTION)                                     \
  {OP ".u16", kInteger, Binary<u16, u16, u16, FUNCTION>},       \
      {OP ".s16", kInteger, Binary<i16, i16, i16, FUNCTION>},   \
      {OP ".u32", kInteger, Binary<u32, u32, u32, FUNCTION>},   \
      {OP ".s32", kInteger, Binary<i32, i32, i32, FUNCTION>},   \
      {OP ".u64", kInteger, Binary<u64, u64, u64, FUNCTION>}, { \
    OP ".s64", kInteger, Binary<i64, i64, i64, FUNCTION>        \
  }
#define ORDER(OP, FUNCTION)                                    \
  {"setp." OP ".u16", kInteger, Compare<u16, FUNCTION>},       \
      {"setp." OP ".s16", kInteger, Compare<i16, FUNCTION>},   \
      {"setp." OP ".u32", kInteger, Compare<u32, FUNCTION>},   \
      {"setp." OP ".s32", kInteger, Compare<i32, FUNCTION>},   \
      {"setp." OP ".u64", kInteger, Compare<u64, FUNCTION>},   \
      {"setp." OP ".s64", kInteger, Compare<i64, FUNCTION>}, { \
    "setp." OP ".f32", kFloat, Compare<float, FUNCTION>        \
  }
#define EQUALITY(OP, FUNCTION)                                 \
  {"setp." OP ".b16", kInteger, Compare<u16, FUNCTION>},       \
      {"setp." OP ".b32", kInteger, Compare<u32, FUNCTION>}, { \
    "setp." OP ".b64", kInteger, Compare<u64, FUNCTION>        \
  }

const Operation kOperations[] = {
    {"bra", kControl, nullptr},
    {"ret", kControl, nullptr},
    {"bar.sync", kControl, nullptr},
    BITS("add", Add),
    {"add.s16x2", kInteger, Binary<u32, u32, u32, AddHalves>},
    BITS("sub", Subtract),
    BITS("and", And),
    BITS("or", Or),
    BITS("xor", Xor),
    {"mul.lo.b32", kInteger, Binary<u32, u32, u32, Multiply>},
    {"mul.lo.b64", kInteger, Binary<u64, u64, u64, Multiply>},
    {"mul.hi.u32", kInteger, Binary<u32, u32, u32, MultiplyHigh<u64>>},
    {"mul.hi.s32", kInteger, Binary<i32, i32, i32, MultiplyHigh<i64>>},
    {"mul.hi.u64", kInteger, Binary<u64, u64, u64, MultiplyHigh<u128>>},
    {"mul.hi.s64", kInteger, Binary<i64, i64, i64, MultiplyHigh<i128>>},
    {"mul.wide.u16", kInteger, Binary<u32, u16, u16, MultiplyWide<u32>>},
    {"mul.wide.s16", kInteger, Binary<i32, i16, i16, MultiplyWide<i32>>},
    {"mul.wide.u32", kInteger, Binary<u64, u32, u32, MultiplyWide<u64>>},
    {"mul.wide.s32", kInteger, Binary<i64, i32, i32, MultiplyWide<i64>>},
    {"mad.lo.b32", kInteger, Ternary<u32, u32, u32, u32, MultiplyAdd>},
    {"mad.lo.b64", kInteger, Ternary<u64, u64, u64, u64, MultiplyAdd>},
    {"mad.wide.u32", kInteger, Ternary<u64, u32, u32, u64, MultiplyWideAdd<u64>>},
    {"mad.wide.s32", kInteger, Ternary<i64, i32, i32, i64, MultiplyWideAdd<i64>>},
    SIGNS("div", Divide),
    SIGNS("rem", Remainder),
    SIGNS("min", Smaller),
    SIGNS("max", Larger),
    {"not.b16", kInteger, Unary<u16, u16, Not>},
    {"not.b32", kInteger, Unary<u32, u32, Not>},
    {"not.b64", kInteger, Unary<u64, u64, Not>},
    {"neg.b16", kInteger, Unary<u16, u16, Negate>},
    {"neg.b32", kInteger, Unary<u32, u32, Negate>},
    {"neg.b64", kInteger, Unary<u64, u64, Negate>},
    {"shl.b16", kInteger, Binary<u16, u16, u32, ShiftLeft>},
    {"shl.b32", kInteger, Binary<u32, u32, u32, ShiftLeft>},
    {"shl.b64", kInteger, Binary<u64, u64, u32, ShiftLeft>},
    {"shr.u16", kInteger, Binary<u16, u16, u32, ShiftRightUnsigned>},
    {"shr.u32", kInteger, Binary<u32, u32, u32, ShiftRightUnsigned>},
    {"shr.u64", kInteger, Binary<u64, u64, u32, ShiftRightUnsigned>},
    {"shr.s16", kInteger, Binary<i16, i16, u32, ShiftRight>},
    {"shr.s32", kInteger, Binary<i32, i32, u32, ShiftRight>},
    {"shr.s64", kInteger, Binary<i64, i64, u32, ShiftRight>},
    {"prmt.b32", kInteger, Ternary<u32, u32, u32, u32, PermuteBytes>},
    {"bfe.u32", kInteger, Ternary<u32, u32, u32, u32, ExtractBits<u32>>},
    {"bfe.s32", kInteger, Ternary<i32, i32, u32, u32, ExtractBits<i32>>},
    EQUALITY("eq", Equal),
    EQUALITY("ne", Unequal),
    ORDER("lt", Less),
    ORDER("le", LessOrEqual),
    ORDER("gt", Greater),
    ORDER("ge", GreaterOrEqual),
    {"setp.eq.f32", kFloat, Compare<float, Equal>},
    {"setp.ne.f32", kFloat, Compare<float, UnequalNumbers>},
    {"setp.neu.f32", kFloat, Compare<float, Unequal>},
    {"setp.equ.f32", kFloat, Compare<float, EqualOrNan>},
    {"setp.ltu.f32", kFloat, Compare<float, LessOrNan>},
    {"setp.leu.f32", kFloat, Compare<float, LessOrEqualOrNan>},
    {"setp.gtu.f32", kFloat, Compare<float, GreaterOrNan>},
    {"setp.geu.f32", kFloat, Compare<float, GreaterOrEqualOrNan>},
    {"setp.num.f32", kFloat, Compare<float, Numbers>},
    {"setp.nan.f32", kFloat, Compare<float, SomeNan>},
    {"and.pred", kInteger, Logic<And>},
    {"or.pred", kInteger, Logic<Or>},
    {"xor.pred", kInteger, Logic<Xor>},
    {"andnot.pred", kInteger, Logic<AndNot>},  // not.pred, of all lanes and its operand
    {"selp.b16", kInteger, Select<u16>},
    {"selp.b32", kInteger, Select<u32>},
    {"selp.b64", kInteger, Select<u64>},
    {"add.f32", kFloat, Binary<float, float, float, Add>},
    {"sub.f32", kFloat, Binary<float, float, float, Subtract>},
    {"mul.f32", kFloat, Binary<float, float, float, Multiply>},
    {"div.f32", kSpecial, Binary<float, float, float, DivideFloat>},
    {"sqrt.f32", kSpecial, Unary<float, float, SquareRoot>},
    {"neg.f32", kFloat, Unary<float, float, NegateFloat>},
    {"abs.f32", kFloat, Unary<float, float, AbsoluteFloat>},
    {"min.f32", kFloat, Binary<float, float, float, SmallerFloat>},
    {"max.f32", kFloat, Binary<float, float, float, LargerFloat>},
    {"min.NaN.f32", kFloat, Binary<float, float, float, SmallerOrNan>},
    {"max.NaN.f32", kFloat, Binary<float, float, float, LargerOrNan>},
    {"cvt.u16.u32", kMove, Unary<u16, u32, Copy>},
    {"cvt.u16.u64", kMove, Unary<u16, u64, Copy>},
    {"cvt.u32.u16", kMove, Unary<u32, u16, Copy>},
    {"cvt.u32.u64", kMove, Unary<u32, u64, Copy>},
    {"cvt.u64.u16", kMove, Unary<u64, u16, Copy>},
    {"cvt.u64.u32", kMove, Unary<u64, u32, Copy>},
    {"cvt.s32.s16", kMove, Unary<i32, i16, Copy>},
    {"cvt.s64.s16", kMove, Unary<i64, i16, Copy>},
    {"cvt.s64.s32", kMove, Unary<i64, i32, Copy>},
    {"cvt.u16.u8", kMove, Unary<u16, u16, Convert<u16, u16, uint8_t>>},
    {"cvt.s16.s8", kMove, Unary<i16, i16, Convert<i16, i16, int8_t>>},
    {"cvt.u32.u8", kMove, Unary<u32, u16, Convert<u32, u32, uint8_t>>},
    {"cvt.s32.s8", kMove, Unary<i32, i16, Convert<i32, i32, int8_t>>},
    {"cvt.f32.f64", kFloat, Unary<float, double, Copy>},
    {"cvt.f32.u16", kFloat, Unary<float, u16, Copy>},
    {"cvt.f32.s16", kFloat, Unary<float, i16, Copy>},
    {"cvt.f32.u32", kFloat, Unary<float, u32, Copy>},
    {"cvt.f32.s32", kFloat, Unary<float, i32, Copy>},
    {"cvt.f32.u64", kFloat, Unary<float, u64, Copy>},
    {"cvt.f32.s64", kFloat, Unary<float, i64, Copy>},
    {"cvt.rzi.s32.f32", kFloat, Unary<i32, float, TruncateToInt>},
    {"cvt.f32.f16", kFloat, Unary<float, u16, HalfToFloat>},
    {"cvt.f16.f32", kFloat, Unary<u16, float, FloatToHalf>},
    {"cvt.f16x2.f32", kFloat, Binary<u32, float, float, FloatsToHalves>},
    {"mov.b16", kMove, Unary<u16, u16, Copy>},
    {"mov.b32", kMove, Unary<u32, u32, Copy>},
    {"mov.b64", kMove, Unary<u64, u64, Copy>},
    {"pack.b32", kMove, Binary<u32, u16, u16, Pack<u32, u32>>},
    {"pack.b64", kMove, Binary<u64, u32, u32, Pack<u64, u64>>},
    {"unpack.b32", kMove, Unpack<u16, u32>},
    {"unpack.b64", kMove, Unpack<u32, u64>},
    {"ld", kMemory, Load},
    {"st", kMemory, Store},
    {"prefetch", kMemory, Prefetch},
    {"atom.add", kMemory, AtomicAdd},
    {"shfl.bfly", kExchange, ShuffleButterfly},
    {"bar.warp.sync", kExchange, WarpBarrier},
    {"redux.max.s32", kExchange, Reduce<Larger>},
    {"redux.min.s32", kExchange, Reduce<Smaller>},
    {"ldmatrix", kExchange, Matrices<false, false>},
    {"ldmatrix.trans", kExchange, Matrices<false, true>},
    {"stmatrix", kExchange, Matrices<true, false>},
    {"stmatrix.trans", kExchange, Matrices<true, true>},
};
#undef BITS
#undef SIGNS
#undef ORDER
#undef EQUALITY

}  // namespace ptx
