// AdamW on any number of tensors in one launch.
#include "elementwise/adamw.cuh"
#include "elementwise/elementwise.cuh"

namespace fused_optim {
namespace {

template <int64_t kDtype, Mode kMode, bool kAmsgrad>
__global__ void __launch_bounds__(kThreads, kElementwiseBlocks)
    AdamWKernel(const LaunchArguments launch) {
  StepChunks<AdamWUpdate<kAmsgrad>, kDtype, kMode>(launch);
}

}  // namespace

void CheckDevice(int device) { CheckLoads(AdamWKernel<kFloat32, kNone, false>, device); }

void AdamW(const LaunchTarget& target, const LaunchArguments& launch, bool amsgrad) {
  const LaunchSite site = {"adamw_", target.device, target.tensors, launch.num_items};
  Dispatch(target, site.op, [&](auto dtype, auto mode) {
    constexpr int64_t kDtype = decltype(dtype)::value;
    constexpr Mode kMode = decltype(mode)::value;
    if (amsgrad) {
      Launch(site, target.stream, AdamWKernel<kDtype, kMode, true>, launch);
    } else {
      Launch(site, target.stream, AdamWKernel<kDtype, kMode, false>, launch);
    }
  });
}

}  // namespace fused_optim
