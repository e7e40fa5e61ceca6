// Adafactor's line jobs. In one, a block finishes rows or columns of a matrix, once all tiles are
// done.
#pragma once

#include "adafactor/tiles.cuh"

namespace fused_optim {

// Up to 256 rows, or columns, of one matrix.
struct LineJob {
  bool is_row;
  int64_t batch;
  int64_t job;   // among the matrix's row or column jobs
  int64_t line;  // of this thread
  bool valid;
};

// Part 0 of a tensor is not a line job: it is the tensor's totals. The parts of a linear tensor are
// its tiles.
FUSED_MATH int64_t PartsOf(const Geometry& shape) {
  return 1 + shape.batch * (shape.row_jobs + shape.col_jobs);
}

FUSED_DEVICE LineJob LineJobOf(const Geometry& shape, int32_t part) {
  const auto per_batch = static_cast<uint32_t>(shape.row_jobs + shape.col_jobs);
  const auto before = static_cast<uint32_t>(part - 1);
  LineJob job;
  job.batch = before / per_batch;
  job.job = before % per_batch;
  job.is_row = job.job < shape.row_jobs;
  if (!job.is_row) job.job -= shape.row_jobs;
  job.line = job.job * kLineJob + ThreadIndex();
  job.valid = job.line < (job.is_row ? shape.rows : shape.cols);
  return job;
}

}  // namespace fused_optim
