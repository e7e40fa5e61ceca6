// The ops as the host calls them: plain structs and raw pointers (contract, sections 1 and 5).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/tables.h"

namespace fused_optim {

enum Mode : int { kNone = 0, kNearest, kStochastic, kKahan, kSplit, kMaster };

constexpr int64_t kChunkSize = 8192;  // elements per chunk of the elementwise ops

// One chunk of the elementwise ops, or one tile or line job of Adafactor.
struct WorkItem {
  int32_t tensor;
  int32_t part;
};

// The arguments of every kernel.
struct LaunchArguments {
  const TensorRecord* records;
  const void* rows;  // of the op's own row
  const WorkItem* items;
  int64_t num_items;
  const float* grad_scale;
  const float* found_inf;
  const float* clip;
  int64_t clip_stride;
  uint32_t seed_low;
  uint32_t seed_high;
  const void* shapes;  // AdafactorShape of each tensor, for that op on a GPU
};

// The device and stream of a launch, and the kernel among those of an op.
struct LaunchTarget {
  int device;
  void* stream;
  int64_t tensors;
  int64_t dtype;
  Mode mode;
  int threads;  // of a CPU; a GPU does not read it
};

// One AdamW step. Items are chunks.
void AdamW(const LaunchTarget& target, const LaunchArguments& launch, bool amsgrad);

// One Lion step. Items are chunks.
void Lion(const LaunchTarget& target, const LaunchArguments& launch);

// sums[tensor] = the sum of squares of its prepared gradient; partials has one float per item.
void GradSquareSums(const LaunchTarget& target, const LaunchArguments& launch, bool clamps,
                    float* partials, float* sums);

// How many items and how much scratch a tensor of Adafactor takes. `cut` is how often the largest
// tiles have been halved: from 0 to kAdafactorMostCut, which is 0 where tiles have one size.
extern const int kAdafactorMostCut;
int64_t AdafactorTiles(int64_t batch, int64_t rows, int64_t cols, int cut);
int64_t AdafactorLines(int64_t batch, int64_t rows, int64_t cols, int cut);
int64_t AdafactorScratch(int64_t batch, int64_t rows, int64_t cols, int cut);

// The bytes that kernels on a GPU read of a tensor's shape, from LaunchArguments::shapes; empty for
// kernels that find all of it themselves.
std::string AdafactorShape(int64_t batch, int64_t rows, int64_t cols, int cut);

// The elements of each tile.
std::vector<int64_t> AdafactorTileSizes(int64_t batch, int64_t rows, int64_t cols, int cut);

// How many blocks of the kernels that walk tiles a device runs at once.
int64_t AdafactorBlocks(int device);

// Where in a tensor's scratch the sums lie that its parts on several processes add up. Those of a
// matrix's lines begin at these places; `row_jobs` for each batch index add up to a mean of rows.
struct AdafactorSumPlaces {
  int64_t grads, params, updates;
  int64_t rows, cols, means, olds;
  int64_t row_jobs;  // 0 where no sums of lines are kept
};
AdafactorSumPlaces AdafactorSums(int64_t batch, int64_t rows, int64_t cols, int cut);

// Whether a tensor is small enough for AdafactorFinalise to do all four stages of it.
bool AdafactorVisited(int64_t batch, int64_t rows, int64_t cols, int cut);

// The tensors for which it does so. The items of the other stages, its own lines included, leave
// them out; but for those of AdafactorStatistics where `have_statistics`.
struct VisitArguments {
  const WorkItem* tensors;
  int64_t num_tensors;
  bool have_statistics;
  int64_t dtype;  // of the parameters
  Mode mode;
};

// The four stages of an Adafactor step. Items are tiles, but for those called lines. `sums` may be
// null.
void AdafactorStatistics(const LaunchTarget& target, const LaunchArguments& launch,
                         const WorkItem* lines, int64_t num_lines, float* scratch, float* sums);
void AdafactorFinalise(const LaunchTarget& target, const LaunchArguments& lines,
                       const VisitArguments& visits, float* scratch);
void AdafactorUpdateSums(const LaunchTarget& target, const LaunchArguments& launch, float* scratch);
void AdafactorApply(const LaunchTarget& target, const LaunchArguments& launch, float* scratch);

// Throws the error that a launch on `device` would meet: no kernel image, an old driver, ...
void CheckDevice(int device);

}  // namespace fused_optim
