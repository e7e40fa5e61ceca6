// Where the sums of one tensor's step lie in its part of scratch, on a GPU as on a CPU.
#pragma once

#include "common/device.cuh"
#include "ops.h"

namespace fused_optim {

// The first floats of a tensor's part. GPUs alone count arrived blocks.
enum Scalar : int { kGradSum, kParamSum, kUpdateSum, kAlpha, kRowFactor, kArrived, kScalars = 8 };

// Offsets into a tensor's part, in floats. Totals over tiles replace the first tile's part, and
// F4's factors r and c replace sums of lines.
struct ScratchMap {
  int64_t row_sums;     // [strips of columns, batch * rows]; a GPU's packed tensor: means of R
  int64_t col_sums;     // [row_tiles, batch * cols]
  int64_t tile_sums;    // [tiles]: g^2, later u^2
  int64_t tile_params;  // [tiles]: p^2
  int64_t line_means;   // [batch, row_jobs]: sums of the row means of g^2
  int64_t line_old;     // [batch, row_jobs]: sums of R before the step
  int64_t size;
};

// Lays the arrays out one after the other. The arguments are their lengths; line_means and line_old
// have `jobs` each.
FUSED_MATH ScratchMap LaidOut(int64_t row_sums, int64_t col_sums, int64_t tiles, int64_t jobs) {
  ScratchMap map;
  map.row_sums = kScalars;
  map.col_sums = map.row_sums + (row_sums + 3) / 4 * 4;  // whole vectors of 16 bytes
  map.tile_sums = map.col_sums + col_sums;
  map.tile_params = map.tile_sums + tiles;
  map.line_means = map.tile_params + tiles;
  map.line_old = map.line_means + jobs;
  map.size = map.line_old + jobs;
  return map;
}

// The sums that processes exchange; `row_jobs` is 0 where no sums of lines are kept.
inline AdafactorSumPlaces SumPlacesOf(const ScratchMap& map, int64_t row_jobs) {
  return {kGradSum,     kParamSum,      kUpdateSum,   map.row_sums,
          map.col_sums, map.line_means, map.line_old, row_jobs};
}

}  // namespace fused_optim
