// Adafactor's line jobs: what a block finishes of a matrix's rows or columns once all tiles are
// done.
#pragma once

#include "tiles.cuh"

namespace fused_optim {

// Up to 256 rows, or columns, of one matrix.
struct LineJob {
  bool is_row;
  int64_t batch;
  int64_t job;   // among the matrix's row or column jobs
  int64_t line;  // of this thread
  bool valid;
};

// Part 0 of a tensor is not a line job: it is the tensor's totals.
FUSED_DEVICE LineJob LineJobOf(const Geometry& shape, int64_t part) {
  const int64_t per_batch = shape.row_jobs + shape.col_jobs;
  LineJob job;
  job.batch = (part - 1) / per_batch;
  job.job = (part - 1) % per_batch;
  job.is_row = job.job < shape.row_jobs;
  if (!job.is_row) job.job -= shape.row_jobs;
  job.line = job.job * kLineJob + ThreadIndex();
  job.valid = job.line < (job.is_row ? shape.rows : shape.cols);
  return job;
}

}  // namespace fused_optim
