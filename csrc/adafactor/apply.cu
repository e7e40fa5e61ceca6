// Adafactor's F7 to F10 for tiles.
#include "adafactor/apply.cuh"

namespace fused_optim {
namespace {

template <int64_t kDtype, Mode kMode>
__global__ void __launch_bounds__(kThreads, kTileBlocks)
    ApplyKernel(const LaunchArguments launch, float* scratch) {
  __shared__ TensorTask task;
  if (*launch.found_inf != 0.0f) return;
  ForItems(
      launch, launch.num_items, scratch, &task, [&](int64_t i) { return launch.items[i]; },
      [&](const WorkItem& work, int64_t) {
        ApplyTile(FixedParams<kDtype, kMode>(), task, work.part);
      });
}

}  // namespace

void AdafactorApply(const LaunchTarget& target, const LaunchArguments& launch, float* scratch) {
  const LaunchSite site = {"adafactor_apply_", target.device, target.tensors, launch.num_items};
  Dispatch(target, site.op, [&](auto dtype, auto mode) {
    Launch(site, target.stream, ApplyKernel<decltype(dtype)::value, decltype(mode)::value>, launch,
           scratch);
  });
}

}  // namespace fused_optim
