// F3 of tensors without lines, and F6 to F10, on segments of tiles.
#pragma once

#include "cpu/adafactor.h"

namespace fused_optim {

// F1 and F3 of the matrices of a packed segment.
inline void FinaliseMatrices(const TensorTask& task, const Segment& at) {
  const AdafactorRow row = task.row;
  const int rows = static_cast<int>(task.shape.rows);
  const int cols = static_cast<int>(task.shape.cols);
  float squares[kSegment], row_sums[kSegment], col_sums[kSegment];
  const float k2 = task.prepare.clip * task.prepare.clip;
  Preparation prepare = task.prepare;
  prepare.clip = 1.0f;
  Squares(task, prepare, at.index, at.Count(), squares);
  for (int matrix = 0; matrix < at.rows; ++matrix) {
    const float* mine = squares + matrix * rows * cols;
    for (int i = 0; i < rows; ++i) {
      row_sums[matrix * rows + i] = LineSumOf(mine + i * cols, cols);
    }
    for (int j = 0; j < cols; ++j) {
      col_sums[matrix * cols + j] = LineSumOf(mine + j, rows, cols);
    }
  }
  const auto global_rows = static_cast<float>(task.t.global_rows);
  const auto global_cols = static_cast<float>(task.t.global_cols);
  float* __restrict__ r = task.RowState() + at.row * rows;
  for (int i = 0; i < at.rows * rows; ++i) {
    r[i] = AdvanceMean(row, r[i], row_sums[i], k2, global_cols);
  }
  float* __restrict__ c = task.ColumnState() + at.row * cols;
  for (int j = 0; j < at.rows * cols; ++j) {
    c[j] = AdvanceMean(row, c[j], col_sums[j], k2, global_rows);
  }
}

// F3 of a linear segment, element by element.
inline void FinaliseElements(const TensorTask& task, const Segment& at) {
  const AdafactorRow row = task.row;
  float squares[kSegment];
  Squares(task, task.prepare, at.index, at.Count(), squares);
  float* __restrict__ state = task.ColumnState() + at.col;
  for (int i = 0; i < at.width; ++i) {
    state[i] = AdvanceMean(row, state[i], squares[i], 1.0f, 1.0f);
  }
}

// [F4] r*c of the elements of a packed segment, from the statistics themselves.
inline void MatrixMultipliers(const TensorTask& task, const Segment& at, float* multipliers) {
  const int rows = static_cast<int>(task.shape.rows);
  const int cols = static_cast<int>(task.shape.cols);
  const auto global_rows = static_cast<float>(task.t.global_rows);
  const float* state = task.RowState() + at.row * rows;
  const float* columns = task.ColumnState() + at.row * cols;
  float r[kSegment], c[kSegment];
  for (int matrix = 0; matrix < at.rows; ++matrix) {
    const float mean = Divide(LineSumOf(state + matrix * rows, rows), global_rows);
    for (int i = 0; i < rows; ++i) r[matrix * rows + i] = NanMax(mean, task.row.mean_floor);
  }
  for (int i = 0; i < at.rows * rows; ++i) r[i] = InverseRoot(Divide(state[i], r[i]));
  for (int j = 0; j < at.rows * cols; ++j) c[j] = InverseRoot(columns[j]);
  for (int i = 0; i < at.rows * rows; ++i) {
    for (int j = 0; j < cols; ++j) multipliers[i * cols + j] = r[i] * c[i / rows * cols + j];
  }
}

// Consecutive elements, with the factors of F6: `r` times each of `c`.
struct Piece {
  int64_t index;
  int count;
  float r;
  const float* c;
};

// Calls run(piece) for the pieces of a segment.
template <typename Function>
FUSED_DEVICE void ForPieces(const TensorTask& task, const Segment& at, const Function& run) {
  if (task.shape.KeepsLines()) {
    const float* r = task.scratch + task.map.row_sums + at.row;
    const float* c = task.scratch + task.map.col_sums + at.col;
    if (at.width >= kWide) {
      for (int i = 0; i < at.rows; ++i) {
        run(Piece{at.index + i * at.width, at.width, r[i], c});
      }
      return;
    }
    float multipliers[kSegment];
    for (int i = 0; i < at.rows; ++i) {
      for (int j = 0; j < at.width; ++j) multipliers[i * at.width + j] = r[i] * c[j];
    }
    return run(Piece{at.index, at.Count(), 1.0f, multipliers});
  }
  float multipliers[kSegment];
  if (task.shape.packed) {
    MatrixMultipliers(task, at, multipliers);
  } else {
    const float* state = task.ColumnState() + at.col;
    for (int i = 0; i < at.width; ++i) multipliers[i] = InverseRoot(state[i]);
  }
  run(Piece{at.index, at.Count(), task.shape.packed ? 1.0f : task.scratch[kRowFactor],
            multipliers});
}

// F6 of a tile, and before it F3 of tensors without lines.
inline void SumUpdatesOfTile(const TensorTask& task, int64_t tile) {
  const AdafactorRow row = task.row;
  const Preparation prepare = task.prepare;
  ChainSum sum;
  ForSegments(task.shape, tile, [&](const Segment& at) {
    if (task.shape.linear) FinaliseElements(task, at);
    if (task.shape.packed) FinaliseMatrices(task, at);
    ForPieces(task, at, [&](const Piece& piece) {
      WithGradients(task.t, piece.index, piece.count, [&](auto g) {
        float sums[kSums] = {};
        const float r = piece.r;
        const float* c = piece.c;
        InChains(piece.count, [&](int i, int k) {
          const float u = Unscaled(prepare(g[i]), r * c[i], row.update_cap);
          sums[k] += u * u;
        });
        sum.Add(TreeSum(sums));
      });
    });
  });
  task.scratch[task.map.tile_sums + tile] = sum.Total();
}

inline void FoldUpdateSums(const TensorTask& task) {
  task.scratch[kUpdateSum] = ChainSumOf(task.scratch + task.map.tile_sums, task.shape.tiles);
}

// F7 to F10 of a piece.
template <bool kHasM>
FUSED_DEVICE void ApplyPiece(const TensorTask& task, const Scaling& scaling, const Piece& piece) {
  const AdafactorRow row = task.row;
  const Preparation prepare = task.prepare;
  const TensorRecord& t = task.t;
  float p[kSegment], m[kSegment];
  task.params.load(t, piece.index, piece.count, p);
  if constexpr (kHasM) {
    LoadSegment(t, kExpAvgSlot, t.exp_avg, t.exp_avg_dtype, piece.index, piece.count, m);
  }
  WithGradients(t, piece.index, piece.count, [&](auto g) {
    const float r = piece.r;
    const float* __restrict__ c = piece.c;
    for (int i = 0; i < piece.count; ++i) {
      const float u = Unscaled(prepare(g[i]), r * c[i], row.update_cap);
      ApplyUpdate(row, scaling, kHasM, u, &m[i], &p[i]);
    }
  });
  if constexpr (kHasM) StoreMomentSegment(t, task.source, piece.index, piece.count, m);
  task.params.store(t, task.source, piece.index, piece.count, p);
}

// F7 to F10 of a tile.
inline void ApplyTile(const TensorTask& task, int64_t tile) {
  const Scaling scaling = ScalingOf(task.row, task.scratch[kAlpha], task.scratch[kUpdateSum],
                                    static_cast<float>(task.t.global_numel));
  ForSegments(task.shape, tile, [&](const Segment& at) {
    ForPieces(task, at, [&](const Piece& piece) {
      if (task.t.exp_avg != 0) {
        ApplyPiece<true>(task, scaling, piece);
      } else {
        ApplyPiece<false>(task, scaling, piece);
      }
    });
  });
}

// Runs one stage on parts [first, last) of one tensor.
inline void RunStage(const fused_optim_cpu::AdafactorWork& work, fused_optim_cpu::Stage stage,
                     int64_t first, int64_t last) {
  const TensorTask task = TaskOf(work);
  for (int64_t part = first; part < last; ++part) {
    switch (stage) {
      case fused_optim_cpu::kSumTiles:
        SumTile(task, part);
        break;
      case fused_optim_cpu::kFoldTotals:
        FoldTotals(task);
        if (work.sums != nullptr) work.sums[work.tensor] = task.scratch[kGradSum];
        break;
      case fused_optim_cpu::kFoldLines:
        FoldLines(task, part);
        break;
      case fused_optim_cpu::kFinaliseTotals:
        FinaliseTotals(task);
        break;
      case fused_optim_cpu::kFinaliseLines:
        FinaliseLines(task, part);
        break;
      case fused_optim_cpu::kSumUpdates:  // note: [back and forth]
        SumUpdatesOfTile(task, task.shape.tiles - 1 - part);
        break;
      case fused_optim_cpu::kFoldUpdates:
        FoldUpdateSums(task);
        break;
      case fused_optim_cpu::kApply:
        ApplyTile(task, part);
        break;
    }
  }
}

}  // namespace fused_optim
