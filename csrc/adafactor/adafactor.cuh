// Adafactor: how a tensor is cut into tiles, and where its sums live in scratch.
//
// note: [tiles] A warp reads runs of 8 elements, `lanes` of them side by side in a row (a power of
// two, so that narrow matrices keep all 32 lanes busy): a strip of columns. It walks down its strip
// 32 steps at a time: a chain. A block's warps lie below each other, or side by side where the rows
// are too few for that. Sums along rows are of a strip; sums down columns are of the block, and
// what either lacks is added by the next launch. A tensor of one row is linear: it is walked as if
// it had 256 columns, and its column statistics, if factored, are element by element. So is a batch
// of tiny matrices, which a tile may then hold many of: no sums of lines are kept of it, and
// whoever needs one adds it up.
//
// note: [visits] A tensor of a tile's size is not cut up: one block does all its stages in the last
// launch, with barriers between them where other tensors have launches, so that what the stages
// hand on and read again is in the nearest cache.
#pragma once

#include "adafactor/math.cuh"
#include "adafactor/scratch.h"
#include "common/reduce.cuh"

namespace fused_optim {

constexpr int kRun = 8;
constexpr int kRunBits = 3;
constexpr int kChainBits = 5;
constexpr int kLaneBits = 5;
constexpr int kWarpBits = 3;
constexpr int kManyChainBits = 2;
constexpr int64_t kManyElements = 1 << 22;  // above, tiles of four chains keep scratch small
constexpr int kLineBits = 8;
constexpr int64_t kLineJob = kThreads;  // rows or columns that a block finishes at once
constexpr int64_t kTinyMatrix = 64;
constexpr int64_t kVisitElements = 1 << 16;
constexpr int64_t kVisitTiles = 8;
static_assert(kLineJob == 1 << kLineBits && kWarps == 1 << kWarpBits && kChain == 1 << kChainBits,
              "powers of two, as divisions by others take long");

// How a kernel walks a tensor. Fields that end in `bits` are binary logarithms.
struct Geometry {
  int64_t batch, rows, cols, numel;
  bool linear;
  bool tiny;                            // a batch of tiny matrices, walked as a linear tensor
  int lane_bits;                        // lanes side by side in a row
  int across_bits;                      // warps side by side
  int chain_bits;                       // chains of a warp in a tile
  int64_t strips;                       // columns' worth of a warp
  int64_t row_tiles, col_tiles, tiles;  // tiles: of all batch indices together
  int64_t row_jobs, col_jobs;           // per batch index

  FUSED_MATH int RowsPerStepBits() const { return kLaneBits - lane_bits; }
  FUSED_MATH int StripBits() const { return lane_bits + kRunBits; }
  FUSED_MATH int Steps() const { return kChain << chain_bits; }
  FUSED_MATH int WarpRowBits() const { return chain_bits + kChainBits + RowsPerStepBits(); }
  FUSED_MATH int TileRowBits() const { return WarpRowBits() + kWarpBits - across_bits; }
};

FUSED_MATH int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }
FUSED_MATH int64_t CeilShift(int64_t a, int bits) { return (a + (int64_t{1} << bits) - 1) >> bits; }

FUSED_MATH Geometry GeometryOf(int64_t batch, int64_t rows, int64_t cols) {
  Geometry g;
  g.numel = batch * rows * cols;
  g.tiny = batch * rows != 1 && rows * cols <= kTinyMatrix;
  g.linear = batch * rows == 1 || g.tiny;
  g.batch = g.linear ? 1 : batch;
  g.cols = g.linear ? kLanes * kRun : cols;
  g.rows = g.linear ? CeilShift(g.numel, kLaneBits + kRunBits) : rows;
  g.lane_bits = 0;
  while (g.lane_bits < kLaneBits && int64_t{1} << g.StripBits() < g.cols) ++g.lane_bits;
  g.chain_bits = g.numel >= kManyElements ? kManyChainBits : 0;
  g.strips = CeilShift(g.cols, g.StripBits());
  g.across_bits = 0;
  while (g.across_bits < kWarpBits && int64_t{1} << g.across_bits < g.strips &&
         int64_t{1} << (g.TileRowBits() - 1) >= g.rows) {
    ++g.across_bits;
  }
  g.row_tiles = CeilShift(g.rows, g.TileRowBits());
  g.col_tiles = CeilShift(g.strips, g.across_bits);
  g.tiles = g.batch * g.row_tiles * g.col_tiles;
  g.row_jobs = g.linear ? g.tiles : CeilShift(rows, kLineBits);
  g.col_jobs = g.linear ? 0 : CeilShift(cols, kLineBits);
  return g;
}

// Whether one block takes a tensor through all stages: note: [visits].
FUSED_MATH bool IsVisited(const Geometry& g) {
  return g.numel <= kVisitElements && g.tiles <= kVisitTiles;
}

FUSED_MATH ScratchMap ScratchMapOf(const Geometry& g) {
  const int64_t lines = g.linear ? 0 : 1;
  return LaidOut(lines * g.strips * g.batch * g.rows, lines * g.row_tiles * g.batch * g.cols,
                 g.tiles, lines * g.batch * g.row_jobs);
}

}  // namespace fused_optim
