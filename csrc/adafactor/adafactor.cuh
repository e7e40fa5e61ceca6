// Adafactor: how a tensor is cut into tiles, and where its sums live in scratch.
//
// note: [tiles] A warp reads runs of 8 elements, `lanes` of them side by side in a row (a power of
// two, so that narrow matrices keep all 32 lanes busy): a strip of columns. It walks down its strip
// in chains of 32 steps, or in a part of one. A block's warps lie below each other, or side by side
// where the rows are too few for that. The largest tiles have 128 steps; `cut` says how often they
// have been halved, for all tensors of a bucket alike: backends/cuts.py chooses it. Sums along rows
// are of a strip; sums down columns are of the block, and what either lacks is added by the next
// launch. A tensor of one row is linear: it is walked as if it had 256 columns, and its column
// statistics, if factored, are element by element.
//
// note: [packed] A batch of small matrices is walked as a linear tensor too, so that a tile holds
// many of them. No sums of lines are kept of it: the third launch adds them up, a thread for each
// tiny matrix and a warp for any other, and of the latter it keeps the mean of R.
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
constexpr int kWarpBits = 3;
constexpr int kTileBlocks = 2;  // of the kernels that walk tiles, on a processor
constexpr int kMostStepBits = 7;
constexpr int kMostCut = 5;  // a smaller tile would take less time than its beginning does
constexpr int kLineBits = 8;
constexpr int64_t kLineJob = kThreads;  // rows or columns that a block finishes at once
constexpr int64_t kTinyMatrix = 64;
constexpr int64_t kPackedMatrix = 4096;  // a larger one would be a long way for a warp
constexpr int64_t kVisitElements = 1 << 16;
constexpr int64_t kVisitTiles = 8;
static_assert(kLineJob == 1 << kLineBits && kWarps == 1 << kWarpBits && kChain == 1 << kChainBits,
              "powers of two, as divisions by others take long");

// How a kernel walks a tensor. Fields that end in `bits` are binary logarithms.
struct Geometry {
  int64_t batch, rows, cols, numel;
  int64_t means;  // of R: one for each packed matrix
  bool linear;
  bool tiny, packed;                    // batches of matrices, walked as linear tensors
  int lane_bits;                        // lanes side by side in a row
  int across_bits;                      // warps side by side
  int step_bits;                        // steps of a warp in a tile
  int64_t strips;                       // columns' worth of a warp
  int64_t row_tiles, col_tiles, tiles;  // tiles: of all batch indices together
  int64_t row_jobs, col_jobs;           // per batch index

  FUSED_MATH int RowsPerStepBits() const { return kLaneBits - lane_bits; }
  FUSED_MATH int StripBits() const { return lane_bits + kRunBits; }
  FUSED_MATH int Steps() const { return 1 << step_bits; }
  FUSED_MATH int WarpRowBits() const { return step_bits + RowsPerStepBits(); }
  FUSED_MATH int TileRowBits() const { return WarpRowBits() + kWarpBits - across_bits; }
};

FUSED_MATH int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }
FUSED_MATH int64_t CeilShift(int64_t a, int bits) { return (a + (int64_t{1} << bits) - 1) >> bits; }

FUSED_MATH Geometry GeometryOf(int64_t batch, int64_t rows, int64_t cols, int cut) {
  Geometry g;
  g.numel = batch * rows * cols;
  g.tiny = batch * rows != 1 && rows * cols <= kTinyMatrix;
  g.packed = batch > 1 && rows * cols > kTinyMatrix && rows * cols <= kPackedMatrix &&
             g.numel <= UINT32_MAX;  // so that places in it are found in 32 bits
  g.means = g.packed ? batch : 0;
  g.linear = batch * rows == 1 || g.tiny || g.packed;
  g.batch = g.linear ? 1 : batch;
  g.cols = g.linear ? kLanes * kRun : cols;
  g.rows = g.linear ? CeilShift(g.numel, kLaneBits + kRunBits) : rows;
  g.lane_bits = 0;
  while (g.lane_bits < kLaneBits && int64_t{1} << g.StripBits() < g.cols) ++g.lane_bits;
  g.step_bits = kMostStepBits - cut;
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

// Elements of a tile that the tensor's edges do not cut short.
FUSED_MATH int64_t TileElements(const Geometry& g) {
  return int64_t{1} << (g.step_bits + kLaneBits + kRunBits + kWarpBits);
}

// Whether one block takes a tensor through all stages: note: [visits].
FUSED_MATH bool IsVisited(const Geometry& g) {
  const int64_t most = TileElements(g) < kVisitElements ? TileElements(g) : kVisitElements;
  return g.numel <= most && g.tiles <= kVisitTiles;
}

// The place of a tile. Columns vary fastest, so that consecutive tiles share memory pages.
struct TilePlace {
  int64_t batch, row_tile, col_tile;
};

FUSED_MATH TilePlace PlaceOfTile(const Geometry& shape, int32_t tile) {
  // There are fewer tiles than 2^31, and 32-bit divisions are much shorter.
  const auto cols = static_cast<uint32_t>(shape.col_tiles);
  const auto rows = static_cast<uint32_t>(shape.row_tiles);
  const uint32_t above = static_cast<uint32_t>(tile) / cols;
  return {above / rows, above % rows, static_cast<uint32_t>(tile) % cols};
}

// The elements of a tile.
inline int64_t SizeOfTile(const Geometry& g, int64_t tile) {
  const auto least = [](int64_t a, int64_t b) { return a < b ? a : b; };
  if (g.linear) return least(TileElements(g), g.numel - tile * TileElements(g));
  const TilePlace place = PlaceOfTile(g, static_cast<int32_t>(tile));
  const int col_bits = g.StripBits() + g.across_bits;
  const int64_t rows = g.rows - (place.row_tile << g.TileRowBits());
  const int64_t cols = g.cols - (place.col_tile << col_bits);
  return least(rows, int64_t{1} << g.TileRowBits()) * least(cols, int64_t{1} << col_bits);
}

// What kernels read of a tensor's shape. The host finds it, once for a plan: on a device, one
// thread would, while the others of its block wait for each tile.
struct ShapeTables {
  Geometry shape;
  ScratchMap map;
};
static_assert(sizeof(ShapeTables) % sizeof(int64_t) == 0, "copied in words of 8 bytes");

FUSED_MATH ScratchMap ScratchMapOf(const Geometry& g) {
  const int64_t lines = g.linear ? 0 : 1;
  return LaidOut(lines * g.strips * g.batch * g.rows + g.means,
                 lines * g.row_tiles * g.batch * g.cols, g.tiles, lines * g.batch * g.row_jobs);
}

}  // namespace fused_optim
