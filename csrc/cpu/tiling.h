// How the CPU backend cuts a tensor of Adafactor into tiles, and a tile into segments.
//
// note: [kinds] A matrix is cut into tiles of up to 8,192 columns. A tile sums its own part of each
// row and column, and line jobs add up what the tiles have. Two kinds of tensors keep no sums of
// lines. A *linear* tensor is a single row; its column statistics, if it has any, are one number
// for each element. The matrices of a *packed* tensor are so small that a tile holds many of them,
// and each stage adds up the lines that it needs.
#pragma once

#include <cstdint>

#include "adafactor/scratch.h"

namespace fused_optim {

constexpr int kSegment = 1024;       // elements that are in the nearest cache together
constexpr int64_t kTileCols = 8192;  // at most
constexpr int kWide = 128;           // columns of a tile whose rows are worth a loop of their own
constexpr int64_t kTileElements = 1 << 16;  // of a tile, or more
constexpr int64_t kFewRows = 32;            // of a tile, at least
constexpr int64_t kManyElements = 1 << 22;  // from here on, more rows keep scratch small
constexpr int64_t kTileRows = 1 << 14;      // at most: three levels of chains
constexpr int64_t kRowStep = 32;
constexpr int64_t kLineJob = 1024;           // rows or columns that are finished together
constexpr int64_t kVisitElements = 1 << 17;  // one thread takes such a tensor through all stages

struct Tiling {
  int64_t batch, rows, cols, numel;
  bool linear, packed;
  int64_t per_tile;              // elements of a linear tensor, matrices of a packed one
  int64_t tile_rows, tile_cols;  // of others
  int64_t row_tiles, col_tiles;  // per batch index
  int64_t tiles;                 // of all batch indices together
  int64_t row_jobs, col_jobs;    // per batch index

  bool KeepsLines() const { return !linear && !packed; }
  int64_t LineJobs() const { return batch * (row_jobs + col_jobs); }
};

inline int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline Tiling TilingOf(int64_t batch, int64_t rows, int64_t cols) {
  Tiling shape = {};
  shape.batch = batch;
  shape.rows = rows;
  shape.cols = cols;
  shape.numel = batch * rows * cols;
  shape.linear = batch * rows == 1;
  shape.packed = !shape.linear && rows * cols <= kSegment;
  if (shape.linear || shape.packed) {
    shape.per_tile = shape.linear ? kTileElements : kTileElements / (rows * cols);
    shape.tiles = CeilDiv(shape.linear ? cols : batch, shape.per_tile);
    return shape;
  }
  shape.col_tiles = CeilDiv(cols, kTileCols);
  shape.tile_cols = CeilDiv(CeilDiv(cols, shape.col_tiles), kRowStep) * kRowStep;
  if (shape.col_tiles == 1) shape.tile_cols = cols;
  shape.col_tiles = CeilDiv(cols, shape.tile_cols);
  const int64_t fewest = shape.numel < kManyElements ? kFewRows : 4 * kFewRows;
  shape.tile_rows = CeilDiv(kTileElements, shape.tile_cols * kRowStep) * kRowStep;
  if (shape.tile_rows < fewest) shape.tile_rows = fewest;
  if (shape.tile_rows > kTileRows) shape.tile_rows = kTileRows;
  shape.row_tiles = CeilDiv(rows, shape.tile_rows);
  shape.tiles = batch * shape.row_tiles * shape.col_tiles;
  shape.row_jobs = CeilDiv(rows, kLineJob);
  shape.col_jobs = CeilDiv(cols, kLineJob);
  return shape;
}

inline ScratchMap ScratchMapOf(const Tiling& shape) {
  return LaidOut(shape.col_tiles * shape.batch * shape.rows,
                 shape.row_tiles * shape.batch * shape.cols, shape.tiles,
                 shape.batch * shape.row_jobs);
}

// Consecutive elements of a tile: a part of a linear tensor or of one row, or some whole rows or
// whole packed matrices.
struct Segment {
  int64_t index;  // of the first element
  int64_t row;    // its row, counted over the whole batch; its matrix in a packed tensor
  int64_t col;    // its place in the column statistics
  int rows;       // matrices of a packed tensor
  int width;      // elements of a row
  int offset;     // of the first column in the tile

  int Count() const { return rows * width; }
};

// Calls run(segment) for every segment of a tile.
template <typename Function>
inline void ForSegments(const Tiling& shape, int64_t tile, const Function& run) {
  if (shape.linear || shape.packed) {
    const int64_t matrix = shape.linear ? 1 : shape.rows * shape.cols;
    const int64_t all = shape.linear ? shape.cols : shape.batch;
    const int64_t at_once = kSegment / matrix;
    const int64_t end = (tile + 1) * shape.per_tile < all ? (tile + 1) * shape.per_tile : all;
    for (int64_t first = tile * shape.per_tile; first < end; first += at_once) {
      const int64_t some = end - first < at_once ? end - first : at_once;
      const int rows = shape.linear ? 1 : static_cast<int>(some);
      const int64_t width = shape.linear ? some : matrix;
      run(Segment{first * matrix, first, first, rows, static_cast<int>(width), 0});
    }
    return;
  }
  const int64_t below = tile / shape.col_tiles;
  const int64_t batch = below / shape.row_tiles;
  const int64_t first_col = tile % shape.col_tiles * shape.tile_cols;
  const int64_t left = shape.cols - first_col;
  const int64_t width = left < shape.tile_cols ? left : shape.tile_cols;
  const int64_t first_row = below % shape.row_tiles * shape.tile_rows;
  const int64_t end =
      first_row + shape.tile_rows < shape.rows ? first_row + shape.tile_rows : shape.rows;
  const int64_t at_once = width == shape.cols && width <= kSegment ? kSegment / width : 1;
  for (int64_t row = first_row; row < end; row += at_once) {
    const int64_t rows = end - row < at_once ? end - row : at_once;
    const int64_t whole_row = batch * shape.rows + row;
    for (int64_t offset = 0; offset < width; offset += kSegment) {
      const int64_t some = width - offset < kSegment ? width - offset : kSegment;
      const int64_t col = first_col + offset;
      run(Segment{whole_row * shape.cols + col, whole_row, batch * shape.cols + col,
                  static_cast<int>(rows), static_cast<int>(some), static_cast<int>(offset)});
    }
  }
}

}  // namespace fused_optim
