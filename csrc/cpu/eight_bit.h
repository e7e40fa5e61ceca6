// Elementwise steps of tensors whose moments are kept in 8 bits, block by block: eight_bit.cuh.
#pragma once

#include "common/eight_bit.cuh"
#include "cpu/runs.h"
#include "elementwise/run.cuh"

namespace fused_optim {

inline uint8_t* RecordAt(int64_t records, int64_t index) {
  return reinterpret_cast<uint8_t*>(records) + index / kBlockSize * kRecordBytes;
}

FUSED_DEVICE void DecodeSecondBlock(const uint8_t* record, float* values) {
  const auto scale = LoadAs<uint32_t>(record + kBlockSize);
  for (int i = 0; i < kBlockSize; ++i) values[i] = DecodeSecond(record[i], scale);
}

FUSED_DEVICE void EncodeSecondBlock(const float* values, const uint16_t* random, uint8_t* record) {
  uint32_t top = 0;
  uint32_t least = 0xffffffffu;
  for (int i = 0; i < kBlockSize; ++i) {
    const uint32_t bits = MagnitudeBits(values[i]);
    top = bits > top ? bits : top;
    least = bits - 1 < least ? bits - 1 : least;  // zero becomes the largest word
  }
  const uint32_t scale = SecondScale(top, top == 0 ? 0 : least + 1);
  for (int i = 0; i < kBlockSize; ++i) {
    record[i] = static_cast<uint8_t>(EncodeSecond(values[i], scale, random[i]));
  }
  std::memcpy(record + kBlockSize, &scale, 4);
}

FUSED_DEVICE void DecodeFirstBlock(const uint8_t* record, const float* second, float* values) {
  const auto scale = LoadAs<float>(record + kBlockSize);
  for (int i = 0; i < kBlockSize; ++i) {
    values[i] = DecodeFirst(record[i], scale, FirstUnit(second[i], 1));
  }
}

// `second` is what the second moments' record stands for.
FUSED_DEVICE void EncodeFirstBlock(float* values, const float* second, const uint16_t* random,
                                   uint8_t* record) {
  uint32_t top = 0;
  for (int i = 0; i < kBlockSize; ++i) {
    values[i] = values[i] * FirstUnit(second[i], -1);
    const uint32_t bits = MagnitudeBits(values[i]);
    top = bits > top ? bits : top;
  }
  const float scale = FirstScale(BitsFloat(top));
  const float inverse = FirstInverse(scale);
  for (int i = 0; i < kBlockSize; ++i) {
    record[i] = static_cast<uint8_t>(EncodeFirst(values[i], inverse, random[i]));
  }
  std::memcpy(record + kBlockSize, &scale, 4);
}

// Up to 256 elements of a dense tensor, from `index` on, a multiple of 256: one block. They follow
// each other in the whole tensor too, where a layout says from which element on.
template <typename Update, int64_t kDtype, Mode kMode>
void StepBlock(const TensorRecord& t, const Scalars<typename Update::Row>& scalars,
               const RoundKeys& keys, int64_t index, int count) {
  float m[kBlockSize], v[kBlockSize], h[kBlockSize];
  uint16_t random[kBlockSize];
  const auto draw = [&](uint32_t stream) {
    RandomRun(scalars.draw, keys, stream, PlaceOf(t, index).element, kBlockSize, random);
  };
  DecodeSecondBlock(RecordAt(t.exp_avg_sq, index), v);
  DecodeFirstBlock(RecordAt(t.exp_avg, index), v, m);
  if constexpr (Update::kMoments > 2) DecodeSecondBlock(RecordAt(t.max_exp_avg_sq, index), h);
  if constexpr (kMode == kStochastic) draw(kOfParam);
  InRuns(count, [&](auto n, int at) {
    float g[n], p[n];
    LoadFloats(t.grad, t.grad_dtype, index + at, g);
    LoadParams<kDtype, kMode>(t, index + at, p);
    for (int i = 0; i < n; ++i) g[i] = scalars.prepare(g[i]);
    Update::Step(scalars.row, g, p, RunAt<n>(m + at), RunAt<n>(v + at), RunAt<n>(h + at));
    StoreParams<kDtype, kMode>(t, index + at, random + at, p);
  });
  draw(kOfExpAvgSq);
  EncodeSecondBlock(v, random, RecordAt(t.exp_avg_sq, index));
  if constexpr (Update::kMoments > 2) {
    draw(kOfMax);
    EncodeSecondBlock(h, random, RecordAt(t.max_exp_avg_sq, index));
  }
  DecodeSecondBlock(RecordAt(t.exp_avg_sq, index), v);
  draw(kOfExpAvg);
  EncodeFirstBlock(m, v, random, RecordAt(t.exp_avg, index));
}

}  // namespace fused_optim
