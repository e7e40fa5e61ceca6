// Faults on purpose: tests/backends/test_cuda_sanitizers.py expects each of them to be caught.
#include <cstdio>
#include <string>
#include <vector>

#include "common/reduce.cuh"
#include "host/fibers.h"

namespace fused_optim {
namespace {

// Stores one element per thread, `beyond` of them past the end.
__global__ void StoreKernel(char* to, int64_t count, int64_t beyond) {
  for (int64_t i = ThreadIndex(); i < count + beyond; i += kThreads) {
    const uint32_t word = static_cast<uint32_t>(i);
    StoreWords<1>(to + 4 * i, &word);
  }
}

// Every thread reads what its neighbour stored; without the barrier, or a barrier for half of them.
__global__ void NeighbourKernel(float* to, bool waits, bool half) {
  __shared__ float values[kThreads];
  values[ThreadIndex()] = static_cast<float>(ThreadIndex());
  if (waits || (half && ThreadIndex() < kThreads / 2)) Barrier();
  to[ThreadIndex()] = values[(ThreadIndex() + 1) % kThreads];
  if (waits) Barrier();
  values[ThreadIndex()] = -1.0f;
}

// Warps hand numbers on through the same memory twice. Without a barrier after they are read, a
// warp that runs ahead overwrites what others have yet to read; that it shuffles before is no
// protection.
__global__ void AheadKernel(float* to, bool waits) {
  __shared__ float values[kWarps];
  float sum = 0.0f;
  for (int turn = 0; turn < 2; ++turn) {
    const float mine = ShuffleXor(ShuffleXor(static_cast<float>(ThreadIndex() + turn), 1), 2);
    if (ThreadIndex() % kLanes == 0) values[ThreadIndex() / kLanes] = mine;
    Barrier();
    for (int i = 0; i < kWarps; ++i) sum += values[i];
    if (waits) Barrier();
  }
  to[ThreadIndex()] = sum;
}

// The lanes of a warp meet in different shuffles.
__global__ void ShuffleKernel(float* to) {
  to[ThreadIndex()] = ShuffleXor(1.0f, ThreadIndex() % 2 == 0 ? 1 : 2);
}

// A load of 16 bytes at an address that is a multiple of 4 only.
__global__ void AlignmentKernel(const char* from, char* to) {
  uint32_t words[4];
  LoadWords<4>(from + 4, words);
  StoreWords<4>(to, words);
}

int Run(const std::string& fault) {
  const LaunchSite site = {"planted", 0, 1, 1};
  std::vector<float> values(kThreads);
  std::vector<float> first;
  for (uint64_t seed = 0; seed < 8; ++seed) {
    host::SetThreadOrder(seed);
    auto* bytes = reinterpret_cast<char*>(values.data());
    if (fault == "bounds" || fault == "none") {
      Launch(site, nullptr, StoreKernel, bytes, int64_t{kThreads}, int64_t{fault == "bounds"});
    } else if (fault == "shuffle") {
      Launch(site, nullptr, ShuffleKernel, values.data());
    } else if (fault == "alignment") {
      Launch(site, nullptr, AlignmentKernel, bytes, bytes);
    } else if (fault == "ahead" || fault == "not ahead") {
      Launch(site, nullptr, AheadKernel, values.data(), fault == "not ahead");
    } else {
      Launch(site, nullptr, NeighbourKernel, values.data(), fault == "barrier", fault == "half");
    }
    if (first.empty()) first = values;
    if (values != first) {
      std::puts("results depend on the order of threads");
      return 1;
    }
  }
  return 0;
}

}  // namespace
}  // namespace fused_optim

int main(int argc, char** argv) {
  try {
    return argc == 2 ? fused_optim::Run(argv[1]) : 2;
  } catch (const std::exception& error) {
    std::puts(error.what());
    return 1;
  }
}
