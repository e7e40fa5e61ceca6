// Adafactor's F1 and F2 in two launches, and how much there is to do for a tensor.
#include "adafactor/fold.cuh"
#include "adafactor/statistics.cuh"
#include "common/dispatch.cuh"

namespace fused_optim {
namespace {

template <int64_t kDtype, Mode kMode>
__global__ void __launch_bounds__(kThreads, kTileBlocks)
    StatisticsKernel(const LaunchArguments launch, float* scratch) {
  __shared__ TensorTask task;
  __shared__ ColumnSums columns;
  ForItems(
      launch, launch.num_items, scratch, &task, [&](int64_t i) { return launch.items[i]; },
      [&](const WorkItem& work, int64_t) {
        SumTile(FixedParams<kDtype, kMode>(), task, work.part, columns);
      });
}

__global__ void __launch_bounds__(kThreads, 2)
    FoldKernel(const LaunchArguments launch, const WorkItem* lines, int64_t num_lines,
               float* scratch, float* sums) {
  __shared__ TensorTask task;
  ForItems(
      launch, num_lines, scratch, &task, [&](int64_t i) { return lines[i]; },
      [&](const WorkItem& work, int64_t) {
        Fold(task, work.part, sums == nullptr ? nullptr : sums + work.tensor);
      });
}

}  // namespace

const int kAdafactorMostCut = kMostCut;

int64_t AdafactorTiles(int64_t batch, int64_t rows, int64_t cols, int cut) {
  return GeometryOf(batch, rows, cols, cut).tiles;
}

std::vector<int64_t> AdafactorTileSizes(int64_t batch, int64_t rows, int64_t cols, int cut) {
  const Geometry shape = GeometryOf(batch, rows, cols, cut);
  std::vector<int64_t> sizes;
  for (int64_t tile = 0; tile < shape.tiles; ++tile) sizes.push_back(SizeOfTile(shape, tile));
  return sizes;
}

int64_t AdafactorBlocks(int device) { return kTileBlocks * Processors(device); }

int64_t AdafactorLines(int64_t batch, int64_t rows, int64_t cols, int cut) {
  return PartsOf(GeometryOf(batch, rows, cols, cut));
}

std::string AdafactorShape(int64_t batch, int64_t rows, int64_t cols, int cut) {
  ShapeTables tables = {};
  tables.shape = GeometryOf(batch, rows, cols, cut);
  tables.map = ScratchMapOf(tables.shape);
  return std::string(reinterpret_cast<const char*>(&tables), sizeof(tables));
}

int64_t AdafactorScratch(int64_t batch, int64_t rows, int64_t cols, int cut) {
  return ScratchMapOf(GeometryOf(batch, rows, cols, cut)).size;
}

AdafactorSumPlaces AdafactorSums(int64_t batch, int64_t rows, int64_t cols, int cut) {
  const Geometry shape = GeometryOf(batch, rows, cols, cut);
  return SumPlacesOf(ScratchMapOf(shape), shape.linear ? 0 : shape.row_jobs);
}

bool AdafactorVisited(int64_t batch, int64_t rows, int64_t cols, int cut) {
  return IsVisited(GeometryOf(batch, rows, cols, cut));
}

void AdafactorStatistics(const LaunchTarget& target, const LaunchArguments& launch,
                         const WorkItem* lines, int64_t num_lines, float* scratch, float* sums) {
  const char* op = "adafactor_statistics";
  const LaunchSite tiles = {op, target.device, target.tensors, launch.num_items};
  const LaunchSite folds = {op, target.device, target.tensors, num_lines};
  Dispatch(target, op, [&](auto dtype, auto mode) {
    Launch(tiles, target.stream, StatisticsKernel<decltype(dtype)::value, decltype(mode)::value>,
           launch, scratch);
  });
  Launch(folds, target.stream, FoldKernel, launch, lines, num_lines, scratch, sums);
}

}  // namespace fused_optim
