// Adafactor's F6 for tiles.
#include "adafactor/update_sums.cuh"

namespace fused_optim {
namespace {

// note: [back and forth] The statistics pass ends with the last tiles and, in each, with the last
// rows: they are what a cache still holds of a bucket larger than it. This pass walks tiles and
// rows the other way round, and the apply pass, which comes next, forwards again.
__global__ void __launch_bounds__(kThreads, kTileBlocks)
    UpdateSumsKernel(const LaunchArguments launch, float* scratch) {
  __shared__ TensorTask task;
  __shared__ bool is_last;
  if (*launch.found_inf != 0.0f) return;
  ForItems(
      launch, launch.num_items, scratch, &task,
      [&](int64_t i) { return launch.items[launch.num_items - 1 - i]; },
      [&](const WorkItem& work, int64_t) {
        SumUpdatesOfTile(task, work.part);
        if (ThreadIndex() == 0) {
          auto* arrived = reinterpret_cast<uint32_t*>(task.Scratch() + kArrived);
          is_last = Arrive(arrived) == task.shape.tiles - 1;
        }
        Barrier();
        if (is_last) FoldUpdateSums(task);  // in one order, whichever tile came last
        Barrier();
      });
}

}  // namespace

void AdafactorUpdateSums(const LaunchTarget& target, const LaunchArguments& launch,
                         float* scratch) {
  const LaunchSite site = {"adafactor_update_sums", target.device, target.tensors,
                           launch.num_items};
  Launch(site, target.stream, UpdateSumsKernel, launch, scratch);
}

}  // namespace fused_optim
