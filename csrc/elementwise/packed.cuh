// The steps of tensors whose moments are kept in 8 bits: a warp to a block of 256 elements, of
// which each lane has 8 that follow each other. See eight_bit.cuh.
#pragma once

#include "common/eight_bit.cuh"
#include "common/reduce.cuh"
#include "elementwise/run.cuh"

namespace fused_optim {

constexpr int kLaneRun = kBlockSize / kLanes;
constexpr int kQuad = kLaneRun / 2;

// The values of a lane's elements in two parts, which are stepped one after the other: the
// gradients and parameters of all eight would take too many registers beside their moments.
using LaneValues = float[2][kQuad];

// A warp's place in a block, and what one lane has of it.
struct LaneRun {
  int64_t block;    // which block of the tensor
  int64_t index;    // of the lane's first element
  int64_t element;  // the same in the full tensor, a multiple of 8; the others follow it
  int lane;
  int count;    // elements that the lane has; less than 8 where the tensor ends
  bool vector;  // whether they are loaded and stored together

  FUSED_DEVICE DensePlace At(int i) const { return {index + i, element + i}; }
};

struct Codes {
  uint32_t codes[kLaneRun];
  uint32_t scale;
};

FUSED_DEVICE char* RecordOf(int64_t records, const LaneRun& run) {
  return GlobalPointer<char>(records) + run.block * kRecordBytes;
}

FUSED_DEVICE Codes LoadCodes(int64_t records, const LaneRun& run) {
  const char* record = RecordOf(records, run);
  uint32_t words[2];
  Codes found;
  LoadWords<1>(record + kLaneRun * run.lane, words);
  LoadWords<1>(record + kLaneRun * run.lane + 4, words + 1);
  LoadWords<1>(record + kBlockSize, &found.scale);
#pragma unroll
  for (int i = 0; i < kLaneRun; ++i) found.codes[i] = words[i / 4] >> (8 * (i % 4)) & 0xffu;
  return found;
}

FUSED_DEVICE void StoreCodes(int64_t records, const LaneRun& run, const Codes& made) {
  char* record = RecordOf(records, run);
  uint32_t words[2] = {0, 0};
#pragma unroll
  for (int i = 0; i < kLaneRun; ++i) words[i / 4] |= made.codes[i] << (8 * (i % 4));
  StoreWords<1>(record + kLaneRun * run.lane, words);
  StoreWords<1>(record + kLaneRun * run.lane + 4, words + 1);
  WarpBarrier();  // all lanes have read the scale that one of them replaces
  if (run.lane == 0) StoreWords<1>(record + kBlockSize, &made.scale);
}

FUSED_DEVICE void LoadSecond(int64_t records, const LaneRun& run, LaneValues& values) {
  const Codes found = LoadCodes(records, run);
#pragma unroll
  for (int i = 0; i < kLaneRun; ++i)
    values[i / kQuad][i % kQuad] = DecodeSecond(found.codes[i], found.scale);
}

// Leaves in `values` what the codes stand for.
FUSED_DEVICE void StoreSecond(int64_t records, const LaneRun& run, const Draw& draw,
                              RandomStream stream, LaneValues& values) {
  uint32_t top = 0;
  uint32_t least = 0xffffffffu;
#pragma unroll
  for (int i = 0; i < kLaneRun; ++i) {
    const uint32_t bits = MagnitudeBits(values[i / kQuad][i % kQuad]);
    top = bits > top ? bits : top;
    least = bits - 1 < least ? bits - 1 : least;  // zero becomes the largest word
  }
  top = WarpMax(top);
  least = ~WarpMax(~least);
  uint32_t random[kLaneRun];
  RandomHalves(draw, stream, run.element, random);
  Codes made;
  made.scale = SecondScale(top, top == 0 ? 0 : least + 1);
#pragma unroll
  for (int i = 0; i < kLaneRun; ++i) {
    made.codes[i] = EncodeSecond(values[i / kQuad][i % kQuad], made.scale, random[i]);
    values[i / kQuad][i % kQuad] = DecodeSecond(made.codes[i], made.scale);
  }
  StoreCodes(records, run, made);
}

FUSED_DEVICE void LoadFirst(int64_t records, const LaneRun& run, const LaneValues& second,
                            LaneValues& values) {
  const Codes found = LoadCodes(records, run);
  const float scale = BitsFloat(found.scale);
#pragma unroll
  for (int i = 0; i < kLaneRun; ++i) {
    values[i / kQuad][i % kQuad] =
        DecodeFirst(found.codes[i], scale, FirstUnit(second[i / kQuad][i % kQuad], 1));
  }
}

// `second` is what the codes of the second moments stand for.
FUSED_DEVICE void StoreFirst(int64_t records, const LaneRun& run, const Draw& draw,
                             const LaneValues& second, LaneValues& values) {
  uint32_t top = 0;
#pragma unroll
  for (int i = 0; i < kLaneRun; ++i) {
    values[i / kQuad][i % kQuad] =
        values[i / kQuad][i % kQuad] * FirstUnit(second[i / kQuad][i % kQuad], -1);
    const uint32_t bits = MagnitudeBits(values[i / kQuad][i % kQuad]);
    top = bits > top ? bits : top;
  }
  const float scale = FirstScale(BitsFloat(WarpMax(top)));
  const float inverse = FirstInverse(scale);
  uint32_t random[kLaneRun];
  RandomHalves(draw, kOfExpAvg, run.element, random);
  Codes made;
  made.scale = FloatBits(scale);
#pragma unroll
  for (int i = 0; i < kLaneRun; ++i)
    made.codes[i] = EncodeFirst(values[i / kQuad][i % kQuad], inverse, random[i]);
  StoreCodes(records, run, made);
}

template <int64_t kDtype, Mode kMode>
FUSED_DEVICE void LoadElements(const TensorRecord& t, const LaneRun& run, int first,
                               float (&g)[kQuad], float (&p)[kQuad]) {
  if (run.vector) {
    RawParam<kQuad> raw;
    const Raw<kQuad> gradient = LoadGradient<kQuad>(t, run.index + first);
    LoadParam<kDtype, kMode, kQuad>(t, run.At(first), &raw);
    Unpack(gradient, t.grad_dtype, g);
    DecodeParam<kDtype, kMode>(raw, p);
    return;
  }
#pragma unroll
  for (int i = 0; i < kQuad; ++i) {
    float one_g[1] = {0.0f};
    float one_p[1] = {0.0f};
    if (first + i < run.count) {
      RawParam<1> raw;
      LoadParam<kDtype, kMode, 1>(t, run.At(first + i), &raw);
      DecodeParam<kDtype, kMode>(raw, one_p);
      Unpack(LoadGradient<1>(t, run.index + first + i), t.grad_dtype, one_g);
    }
    g[i] = one_g[0];
    p[i] = one_p[0];
  }
}

template <int64_t kDtype, Mode kMode>
FUSED_DEVICE void StoreElements(const TensorRecord& t, const LaneRun& run, int first,
                                const Draw& draw, const float (&p)[kQuad]) {
  if (run.vector) {
    StoreParam<kDtype, kMode>(t, run.At(first), p, draw);
    return;
  }
#pragma unroll
  for (int i = 0; i < kQuad; ++i) {
    const float one[1] = {p[i]};
    if (first + i < run.count) StoreParam<kDtype, kMode>(t, run.At(first + i), one, draw);
  }
}

// Steps a chunk of a tensor that lies densely in memory. The record and the row are read where they
// are used: kept, they would take registers from a block's values.
template <typename Update, int64_t kDtype, Mode kMode>
FUSED_DEVICE void StepBlocks(const LaunchArguments& launch, const WorkItem& chunk) {
  const TensorRecord& t = launch.records[chunk.tensor];
  const auto& row = static_cast<const typename Update::Row*>(launch.rows)[t.row];
  const Preparation prepare = Prepare(launch, chunk.tensor, row.grad_mul, row.clip_value);
  const Draw draw = DrawOf(launch, t.number, row.step);
  const int64_t first = chunk.part * kChunkSize;
  const int64_t last = first + kChunkSize < t.numel ? first + kChunkSize : t.numel;
  const int lane = ThreadIndex() % kLanes;
  const int64_t end = (last + kBlockSize - 1) / kBlockSize;
  for (int64_t block = first / kBlockSize + ThreadIndex() / kLanes; block < end; block += kWarps) {
    const int64_t index = block * kBlockSize + kLaneRun * lane;
    const int64_t left = last - index;
    const int count = static_cast<int>(left < 0 ? 0 : left < kLaneRun ? left : kLaneRun);
    const int64_t element = count > 0 ? PlaceOf(t, index).element : 0;
    const LaneRun run = {block, index, element, lane, count, count == kLaneRun && TakesVectors(t)};
    LaneValues m, v, h;
    LoadSecond(t.exp_avg_sq, run, v);
    LoadFirst(t.exp_avg, run, v, m);
    if constexpr (Update::kMoments > 2) LoadSecond(t.max_exp_avg_sq, run, h);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float g[kQuad], p[kQuad];
      LoadElements<kDtype, kMode>(t, run, kQuad * half, g, p);
#pragma unroll
      for (int i = 0; i < kQuad; ++i) g[i] = prepare(g[i]);
      Update::Step(row, g, p, m[half], v[half], h[half]);
      StoreElements<kDtype, kMode>(t, run, kQuad * half, draw, p);
    }
    StoreSecond(t.exp_avg_sq, run, draw, kOfExpAvgSq, v);
    StoreFirst(t.exp_avg, run, draw, v, m);
    if constexpr (Update::kMoments > 2) {
      StoreSecond(t.max_exp_avg_sq, run, draw, kOfMax, h);
    }
  }
}

}  // namespace fused_optim
