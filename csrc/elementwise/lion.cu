// Lion on any number of tensors in one launch.
#include "elementwise/elementwise.cuh"
#include "elementwise/lion.cuh"

namespace fused_optim {
namespace {

template <int64_t kDtype, Mode kMode>
__global__ void __launch_bounds__(kThreads, kElementwiseBlocks)
    LionKernel(const LaunchArguments launch) {
  StepChunks<LionUpdate, kDtype, kMode>(launch);
}

}  // namespace

void Lion(const LaunchTarget& target, const LaunchArguments& launch) {
  const LaunchSite site = {"lion_", target.device, target.tensors, launch.num_items};
  Dispatch(target, site.op, [&](auto dtype, auto mode) {
    Launch(site, target.stream, LionKernel<decltype(dtype)::value, decltype(mode)::value>, launch);
  });
}

}  // namespace fused_optim
