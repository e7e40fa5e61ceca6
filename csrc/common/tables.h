// The packed tables that the launch plan uploads: docs/internals/kernel_contract.md, 3 to 5 and 7.
// Written by tools/tables_header.py from fused_optim/ops.py; change that, and write this again.
#pragma once

#include <cstdint>

namespace fused_optim {

enum DtypeTag : int64_t { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2, kFloat64 = 3, kEightBit = 4 };

enum RecordFlags : int64_t { kAligned = 1 };

enum AdafactorRowFlags : uint32_t { kScaleParameter = 1, kHoldIfZero = 2, kClipIgnoresNan = 4 };

// One parameter of a bucket. Addresses are of global memory, 0 where absent.
struct TensorRecord {
  int64_t param;
  int64_t grad;
  int64_t exp_avg;
  int64_t exp_avg_sq;      // Adafactor: row statistics, or the unfactored second moment
  int64_t max_exp_avg_sq;  // Adafactor: column statistics
  int64_t extra;           // master, remainder or compensation, by the bucket's mode
  int64_t rms;
  int64_t layout;  // 0, or the address of a Layout
  int64_t numel;
  int64_t first_element;
  int64_t row;
  int64_t number;
  int64_t grad_dtype;
  int64_t exp_avg_dtype;
  int64_t exp_avg_sq_dtype;
  int64_t flags;
  int64_t batch;
  int64_t rows;
  int64_t cols;
  int64_t scratch;
  int64_t global_numel;  // of the unsharded tensor, as are the next two
  int64_t global_rows;
  int64_t global_cols;
  int64_t cut;  // Adafactor: how often the backend's largest tiles were halved
};
static_assert(sizeof(TensorRecord) == 24 * sizeof(int64_t), "24 int64 per tensor record");

// The scalars of one (group, step count, variant) of adamw.
struct AdamWRow {
  float grad_mul;
  float clip_value;
  float l2;
  float decay_before;
  float omb1;
  float b2;
  float omb2;
  float step_size;
  float denom_scale;
  float eps;
  float decay_after;
  uint32_t step;
  float reserved[4];
};
static_assert(sizeof(AdamWRow) == 16 * sizeof(float), "16 words per row");

// The scalars of one (group, step count, variant) of adafactor.
struct AdafactorRow {
  float grad_mul;
  float rho;
  float eps_grad;
  float eps_rms;
  float clip_threshold;
  float b2;
  float omb2;
  float b1;
  float omb1;
  float decay_alpha;
  float decay_before;
  float mean_floor;
  float update_cap;
  uint32_t step;
  uint32_t flags;
  float reserved[1];
};
static_assert(sizeof(AdafactorRow) == 16 * sizeof(float), "16 words per row");

// The scalars of one (group, step count, variant) of lion.
struct LionRow {
  float grad_mul;
  float clip_value;
  float decay_before;
  float b1;
  float omb1;
  float b2;
  float omb2;
  float step_size;
  uint32_t step;
  float reserved[7];
};
static_assert(sizeof(LionRow) == 16 * sizeof(float), "16 words per row");

constexpr int kMaxLayoutDims = 8;

// Sizes and per-tensor strides, in elements, of a record whose tensors do not share one dense
// memory order.
struct Layout {
  int64_t ndim;
  int64_t sizes[kMaxLayoutDims];
  int64_t strides[7][kMaxLayoutDims];  // param, grad, exp_avg, exp_avg_sq, max_exp_avg_sq, extra,
                                       // element
};
static_assert(sizeof(Layout) == 65 * sizeof(int64_t), "65 int64 per layout block");

}  // namespace fused_optim
