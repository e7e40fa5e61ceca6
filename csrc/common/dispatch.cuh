// The valid pairs of parameter dtype and mode.
#pragma once

#include <type_traits>

#include "common/device.cuh"
#include "ops.h"

namespace fused_optim {

// `run` may be a function of the host alone, or of the device, as its caller is. nvcc can't tell
// which, so its warnings are off for these two functions.
#pragma nv_exec_check_disable
template <int64_t kDtype, Mode kMode, typename Function>
FUSED_MATH bool RunIf(int64_t dtype, Mode mode, const Function& run) {
  if (dtype != kDtype || mode != kMode) return false;
  run(std::integral_constant<int64_t, kDtype>(), std::integral_constant<Mode, kMode>());
  return true;
}

// Calls run(dtype, mode) with both as std::integral_constant, so that the body of `run` is compiled
// for every pair. Returns whether the pair exists.
#pragma nv_exec_check_disable
template <typename Function>
FUSED_MATH bool RunVariant(int64_t dtype, Mode mode, const Function& run) {
  return RunIf<kFloat32, kNone>(dtype, mode, run) || RunIf<kBFloat16, kNearest>(dtype, mode, run) ||
         RunIf<kBFloat16, kStochastic>(dtype, mode, run) ||
         RunIf<kBFloat16, kKahan>(dtype, mode, run) || RunIf<kBFloat16, kSplit>(dtype, mode, run) ||
         RunIf<kBFloat16, kMaster>(dtype, mode, run) ||
         RunIf<kFloat16, kNearest>(dtype, mode, run) ||
         RunIf<kFloat16, kStochastic>(dtype, mode, run) ||
         RunIf<kFloat16, kKahan>(dtype, mode, run) || RunIf<kFloat16, kMaster>(dtype, mode, run);
}

// RunVariant on the host, for the kernels of a launch; a pair that has no kernel is an error.
template <typename Function>
void Dispatch(const LaunchTarget& target, const char* op, const Function& run) {
  if (RunVariant(target.dtype, target.mode, run)) return;
  throw std::invalid_argument(std::string("fused_optim.") + op + ": no kernel for dtype " +
                              std::to_string(target.dtype) + " in mode " +
                              std::to_string(target.mode));
}

}  // namespace fused_optim
