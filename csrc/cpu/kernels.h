// The kernels that are compiled once for each instruction set, as plain pointers: a translation
// unit of one instruction set shares no inline function with another, lest the linker keep the
// wrong one.
#pragma once

#include <cstdint>

namespace fused_optim_cpu {

enum Update : int { kAdamW, kAdamWAmsgrad, kLion };

struct Kernels {
  const char* name;
  // Runs an update on work items [first, last) of a launch, a fused_optim::LaunchArguments. Returns
  // false where there is no kernel for the dtype and mode.
  bool (*step)(Update update, int64_t dtype, int mode, const void* launch, int64_t first,
               int64_t last);
  // Writes the sum of squares of the prepared gradients of work items [first, last) to partials.
  void (*square_sums)(const void* launch, bool clamps, double* partials, int64_t first,
                      int64_t last);
};

// The kernels for the machine at hand.
const Kernels& Chosen();

}  // namespace fused_optim_cpu
