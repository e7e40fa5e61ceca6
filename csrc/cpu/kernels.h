// The kernels that are compiled once for each instruction set, as plain pointers: a translation
// unit of one instruction set shares no inline function with another, lest the linker keep the
// wrong one.
#pragma once

#include <cstdint>

namespace fused_optim_cpu {

enum Update : int { kAdamW, kAdamWAmsgrad, kLion };

// The stages of an Adafactor step, each over parts of one tensor: tiles, line jobs, or the whole.
enum Stage : int {
  kSumTiles,        // F1 and F2; parts are tiles, as they are of kSumUpdates and kApply
  kFoldTotals,      // one part
  kFoldLines,       // parts are line jobs
  kFinaliseTotals,  // F3 to F5; one part
  kFinaliseLines,   // F3 and F4; parts are line jobs
  kSumUpdates,      // F6, and F3 of tensors without lines
  kFoldUpdates,     // one part
  kApply,           // F7 to F10
};

// One tensor of an Adafactor step.
struct AdafactorWork {
  const void* launch;  // a fused_optim::LaunchArguments
  int64_t dtype;
  int mode;
  int32_t tensor;
  float* scratch;  // of all tensors
  float* sums;     // of the squares of each tensor's gradient, or null
};

struct Kernels {
  const char* name;
  // Runs an update on work items [first, last) of a launch, a fused_optim::LaunchArguments. Returns
  // false where there is no kernel for the dtype and mode.
  bool (*step)(Update update, int64_t dtype, int mode, const void* launch, int64_t first,
               int64_t last);
  // Writes the sum of squares of the prepared gradients of work items [first, last) to partials.
  void (*square_sums)(const void* launch, bool clamps, double* partials, int64_t first,
                      int64_t last);
  // Runs one stage on parts [first, last) of a tensor.
  void (*adafactor)(const AdafactorWork& work, Stage stage, int64_t first, int64_t last);
};

// The kernels for the machine at hand.
const Kernels& Chosen();

}  // namespace fused_optim_cpu
