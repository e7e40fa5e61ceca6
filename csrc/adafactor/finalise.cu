// Adafactor's F3 to F5; and all of F1 to F10 for tensors that one block finishes.
#include "adafactor/apply.cuh"
#include "adafactor/finalise.cuh"
#include "adafactor/fold.cuh"
#include "adafactor/statistics.cuh"
#include "adafactor/update_sums.cuh"

namespace fused_optim {
namespace {

// All stages of one tensor: note: [visits]. The first may have been done before.
FUSED_DEVICE void Visit(const AnyParams& params, const TensorTask& task, bool has_statistics,
                        ColumnSums& columns) {
  const auto tiles = static_cast<int32_t>(task.shape.tiles);
  const auto parts = static_cast<int32_t>(PartsOf(task.shape));
  if (!has_statistics) {
#pragma unroll 1
    for (int32_t tile = 0; tile < tiles; ++tile) SumTile(params, task, tile, columns);
#pragma unroll 1
    for (int32_t part = 0; part < parts; ++part) Fold(task, part, nullptr);
    Barrier();
  }
#pragma unroll 1
  for (int32_t part = 0; part < parts; ++part) Finalise(task, part);
  Barrier();
#pragma unroll 1
  for (int32_t tile = tiles - 1; tile >= 0; --tile) SumUpdatesOfTile(task, tile);
  Barrier();
  FoldUpdateSums(task);
  Barrier();
#pragma unroll 1
  for (int32_t tile = 0; tile < tiles; ++tile) ApplyTile(params, task, tile);
}

// One block per processor has the registers for all stages; loads in flight make up for it.
__global__ void __launch_bounds__(kThreads, 1)
    FinaliseKernel(const LaunchArguments lines, const VisitArguments visits, float* scratch) {
  __shared__ TensorTask task;
  __shared__ ColumnSums columns;
  if (*lines.found_inf != 0.0f) return;
  const int64_t num_items = visits.num_tensors + lines.num_items;
  for (int64_t item = BlockIndex(); item < num_items; item += BlockCount()) {
    const bool visited = item < visits.num_tensors;
    const WorkItem work = visited ? visits.tensors[item] : lines.items[item - visits.num_tensors];
    BeginTask(lines, work.tensor, scratch, &task);
    if (visited) {
      Visit({visits.dtype, visits.mode}, task, visits.have_statistics, columns);
    } else {
      Finalise(task, work.part);
    }
  }
}

}  // namespace

void AdafactorFinalise(const LaunchTarget& target, const LaunchArguments& lines,
                       const VisitArguments& visits, float* scratch) {
  const LaunchSite site = {"adafactor_finalise_", target.device, target.tensors,
                           visits.num_tensors + lines.num_items};
  Launch(site, target.stream, FinaliseKernel, lines, visits, scratch);
}

}  // namespace fused_optim
