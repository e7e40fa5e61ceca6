// Which pairs of parameter dtype and mode there are.
#pragma once

#include <type_traits>

#include "device.cuh"
#include "ops.h"

namespace fused_optim {

// What is run may be for the host alone, or for the device, as its caller is: nvcc need not warn.
#pragma nv_exec_check_disable
template <int64_t kDtype, Mode kMode, typename Function>
FUSED_MATH bool RunIf(int64_t dtype, Mode mode, const Function& run) {
  if (dtype != kDtype || mode != kMode) return false;
  run(std::integral_constant<int64_t, kDtype>(), std::integral_constant<Mode, kMode>());
  return true;
}

// Calls run(dtype, mode) with the two as std::integral_constant; what run names is compiled for
// all. Returns whether there is such a pair.
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

// The same on the host, for the kernels of a launch.
template <typename Function>
void Dispatch(const LaunchTarget& target, const char* op, const Function& run) {
  if (RunVariant(target.dtype, target.mode, run)) return;
  throw std::invalid_argument(std::string("fused_optim.") + op + ": no kernel for dtype " +
                              std::to_string(target.dtype) + " in mode " +
                              std::to_string(target.mode));
}

}  // namespace fused_optim
