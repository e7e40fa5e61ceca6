// Which pairs of parameter dtype and mode have kernels.
#pragma once

#include <type_traits>

#include "ops.h"
#include "precision.cuh"

namespace fused_optim {

template <int64_t kDtype, Mode kMode, typename Function>
bool RunIf(const LaunchTarget& target, const Function& run) {
  if (target.dtype != kDtype || target.mode != kMode) return false;
  run(std::integral_constant<int64_t, kDtype>(), std::integral_constant<Mode, kMode>());
  return true;
}

// Calls run(dtype, mode) with the target's as std::integral_constant; what run names is compiled.
template <typename Function>
void Dispatch(const LaunchTarget& target, const char* op, const Function& run) {
  const bool found =
      RunIf<kFloat32, kNone>(target, run) || RunIf<kBFloat16, kNearest>(target, run) ||
      RunIf<kBFloat16, kStochastic>(target, run) || RunIf<kBFloat16, kKahan>(target, run) ||
      RunIf<kBFloat16, kSplit>(target, run) || RunIf<kBFloat16, kMaster>(target, run) ||
      RunIf<kFloat16, kNearest>(target, run) || RunIf<kFloat16, kStochastic>(target, run) ||
      RunIf<kFloat16, kKahan>(target, run) || RunIf<kFloat16, kMaster>(target, run);
  if (found) return;
  throw std::invalid_argument(std::string("fused_optim.") + op + ": no kernel for dtype " +
                              std::to_string(target.dtype) + " in mode " +
                              std::to_string(target.mode));
}

}  // namespace fused_optim
