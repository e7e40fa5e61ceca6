// Sums of squared gradients.
#include "common/prepare.cuh"
#include "common/reduce.cuh"

namespace fused_optim {
namespace {

// The prepared gradients of a run; without the clip coefficient.
template <int N>
FUSED_DEVICE float SquareSum(const TensorRecord& t, const Preparation& prepare, const Raw<N>& raw) {
  float g[N];
  Unpack(raw, t.grad_dtype, g);
#pragma unroll
  for (int i = 0; i < N; ++i) {
    g[i] = prepare(g[i]);
    g[i] = g[i] * g[i];
  }
  return TreeSum(g);
}

// A thread's part of the sum of a chunk's squares: at most 32 terms, or 4 runs of 8.
FUSED_DEVICE float ChunkSquares(const TensorRecord& t, const Preparation& prepare, int64_t first,
                                int64_t last) {
  constexpr int N = 8;
  float sum = 0.0f;
  if (TakesVectors(t)) {
    const int runs = static_cast<int>((last - first) / N);
    constexpr int kRuns = kChunkSize / N / kThreads;
    Raw<N> raw[kRuns];
#pragma unroll
    for (int k = 0; k < kRuns; ++k) {
      const int run = ThreadIndex() + k * kThreads;
      if (run < runs) raw[k] = LoadGradient<N>(t, first + N * run);
    }
#pragma unroll
    for (int k = 0; k < kRuns; ++k) {
      if (ThreadIndex() + k * kThreads < runs) sum += SquareSum(t, prepare, raw[k]);
    }
    first += N * runs;
  }
  for (int64_t i = first + ThreadIndex(); i < last; i += kThreads) {
    const int64_t at = PlaceOf(t, i).Offset(kGradSlot);
    sum += SquareSum(t, prepare, LoadGradient<1>(t, at));
  }
  return sum;
}

__global__ void __launch_bounds__(kThreads, 2)
    SquarePartialsKernel(const LaunchArguments launch, bool clamps, float* partials) {
  for (int64_t item = BlockIndex(); item < launch.num_items; item += BlockCount()) {
    const WorkItem chunk = launch.items[item];
    const TensorRecord t = launch.records[chunk.tensor];
    const AdamWRow* row = static_cast<const AdamWRow*>(launch.rows) + t.row;
    Preparation prepare =
        Prepare(launch, chunk.tensor, row->grad_mul, clamps ? row->clip_value : Infinity());
    prepare.clip = 1.0f;
    const int64_t first = chunk.part * kChunkSize;
    const int64_t last = first + kChunkSize < t.numel ? first + kChunkSize : t.numel;
    const float sum = BlockSum(ChunkSquares(t, prepare, first, last));
    if (ThreadIndex() == 0) partials[item] = sum;
  }
}

// The first item of a tensor: items are in the order of tensors.
FUSED_DEVICE int64_t FirstItem(const LaunchArguments& launch, int64_t tensor) {
  int64_t low = 0;
  int64_t high = launch.num_items;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (launch.items[middle].tensor < tensor) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

__global__ void __launch_bounds__(kThreads, 2)
    SquareSumsKernel(const LaunchArguments launch, int64_t tensors, const float* partials,
                     float* sums) {
  for (int64_t tensor = BlockIndex(); tensor < tensors; tensor += BlockCount()) {
    const int64_t first = FirstItem(launch, tensor);
    const int64_t count = FirstItem(launch, tensor + 1) - first;
    const float sum = BlockSum(StridedSum(partials + first, count));
    if (ThreadIndex() == 0) sums[tensor] = sum;
  }
}

}  // namespace

void GradSquareSums(const LaunchTarget& target, const LaunchArguments& launch, bool clamps,
                    float* partials, float* sums) {
  const LaunchSite chunks = {"grad_square_sums", target.device, target.tensors, launch.num_items};
  const LaunchSite tensors = {"grad_square_sums", target.device, target.tensors, target.tensors};
  Launch(chunks, target.stream, SquarePartialsKernel, launch, clamps, partials);
  Launch(tensors, target.stream, SquareSumsKernel, launch, target.tensors, partials, sums);
}

}  // namespace fused_optim
