// Adafactor's ops of ops.h on CPU threads. Items are whole tensors.
//
// A small tensor goes through all stages on one thread. A larger one goes stage by stage on all
// threads before the next tensor begins, so that a tensor that fits a cache is read from memory
// once. Only shards take the stages in separate ops, because processes exchange sums in between.
//
// note: [back and forth] Of a tensor larger than the cache, the cache still holds the last tiles
// when its gradients have been summed. So the sums of updates begin at the last tile and go
// backwards, and the apply stage goes forwards again.
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/threads.h"
#include "cpu/tiling.h"
#include "ops.h"

namespace fused_optim {
namespace {

using fused_optim_cpu::AdafactorWork;
using fused_optim_cpu::Stage;

// The tensors of a launch, and the threads that take them.
struct Batch {
  const LaunchArguments& launch;
  const LaunchTarget& target;
  float* scratch;
  float* sums;

  AdafactorWork WorkOn(int32_t tensor) const {
    return {&launch, target.dtype, target.mode, tensor, scratch, sums};
  }
  Tiling ShapeOf(int32_t tensor) const {
    const TensorRecord& t = launch.records[tensor];
    return TilingOf(t.batch, t.rows, t.cols);
  }
};

template <typename Run>
void Sum(const Tiling& shape, const Run& run) {
  run(fused_optim_cpu::kSumTiles, shape.tiles);
  run(fused_optim_cpu::kFoldTotals, 1);
  run(fused_optim_cpu::kFoldLines, shape.LineJobs());
}

template <typename Run>
void Finalise(const Tiling& shape, const Run& run) {
  run(fused_optim_cpu::kFinaliseTotals, 1);
  run(fused_optim_cpu::kFinaliseLines, shape.LineJobs());
}

template <typename Run>
void SumUpdates(const Tiling& shape, const Run& run) {
  run(fused_optim_cpu::kSumUpdates, shape.tiles);
  run(fused_optim_cpu::kFoldUpdates, 1);
}

template <typename Run>
void Apply(const Tiling& shape, const Run& run) {
  run(fused_optim_cpu::kApply, shape.tiles);
}

// Calls stages(shape, run) for tensors; `run` runs one stage on the tensor. Small tensors have a
// thread each.
template <typename Stages>
void ForTensors(const Batch& batch, const WorkItem* items, int64_t count, const Stages& stages) {
  const auto& kernels = fused_optim_cpu::Chosen();
  std::vector<int32_t> small;
  for (int64_t i = 0; i < count; ++i) {
    const int32_t tensor = items[i].tensor;
    const Tiling shape = batch.ShapeOf(tensor);
    if (shape.numel <= kVisitElements) {
      small.push_back(tensor);
      continue;
    }
    const AdafactorWork work = batch.WorkOn(tensor);
    stages(shape, [&](Stage stage, int64_t parts) {
      fused_optim_cpu::ForRanges(parts, batch.target.threads, [&](int64_t first, int64_t last) {
        kernels.adafactor(work, stage, first, last);
      });
    });
  }
  const auto visit = [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int32_t tensor = small[static_cast<size_t>(i)];
      const AdafactorWork work = batch.WorkOn(tensor);
      stages(batch.ShapeOf(tensor), [&](Stage stage, int64_t parts) {
        if (parts > 0) kernels.adafactor(work, stage, 0, parts);
      });
    }
  };
  fused_optim_cpu::ForRanges(static_cast<int64_t>(small.size()), batch.target.threads, visit);
}

}  // namespace

const int kAdafactorMostCut = 0;
int64_t AdafactorTiles(int64_t, int64_t, int64_t, int) { return 1; }
int64_t AdafactorLines(int64_t, int64_t, int64_t, int) { return 1; }
bool AdafactorVisited(int64_t, int64_t, int64_t, int) { return true; }
int64_t AdafactorBlocks(int) { return 1; }
std::string AdafactorShape(int64_t, int64_t, int64_t, int) { return ""; }

std::vector<int64_t> AdafactorTileSizes(int64_t batch, int64_t rows, int64_t cols, int) {
  return {batch * rows * cols};
}

int64_t AdafactorScratch(int64_t batch, int64_t rows, int64_t cols, int) {
  return ScratchMapOf(TilingOf(batch, rows, cols)).size;
}

AdafactorSumPlaces AdafactorSums(int64_t batch, int64_t rows, int64_t cols, int) {
  const Tiling shape = TilingOf(batch, rows, cols);
  return SumPlacesOf(ScratchMapOf(shape), shape.row_jobs);
}

void AdafactorStatistics(const LaunchTarget& target, const LaunchArguments& launch,
                         const WorkItem* lines, int64_t num_lines, float* scratch, float* sums) {
  static_cast<void>(lines);
  static_cast<void>(num_lines);
  ForTensors({launch, target, scratch, sums}, launch.items, launch.num_items,
             [](const Tiling& shape, const auto& run) { Sum(shape, run); });
}

void AdafactorFinalise(const LaunchTarget& target, const LaunchArguments& lines,
                       const VisitArguments& visits, float* scratch) {
  if (*lines.found_inf != 0.0f) return;
  const Batch batch = {lines, target, scratch, nullptr};
  ForTensors(batch, lines.items, lines.num_items,
             [](const Tiling& shape, const auto& run) { Finalise(shape, run); });
  ForTensors(batch, visits.tensors, visits.num_tensors, [&](const Tiling& shape, const auto& run) {
    if (!visits.have_statistics) Sum(shape, run);
    Finalise(shape, run);
    SumUpdates(shape, run);
    Apply(shape, run);
  });
}

void AdafactorUpdateSums(const LaunchTarget& target, const LaunchArguments& launch,
                         float* scratch) {
  if (*launch.found_inf != 0.0f) return;
  ForTensors({launch, target, scratch, nullptr}, launch.items, launch.num_items,
             [](const Tiling& shape, const auto& run) { SumUpdates(shape, run); });
}

void AdafactorApply(const LaunchTarget& target, const LaunchArguments& launch, float* scratch) {
  if (*launch.found_inf != 0.0f) return;
  ForTensors({launch, target, scratch, nullptr}, launch.items, launch.num_items,
             [](const Tiling& shape, const auto& run) { Apply(shape, run); });
}

}  // namespace fused_optim
