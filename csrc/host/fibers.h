// Runs a grid of CUDA threads on one CPU thread: each is a fiber, blocks come one after another.
//
// A fiber runs until it meets a barrier or a shuffle, and goes on once all threads of its block or
// warp have arrived at the same one. Which thread runs first is shuffled by a seed, and so is which
// warps run ahead of the others from one barrier to the next: code which misses a barrier gives
// other results for other seeds.
#pragma once

#include <cstdint>
#include <functional>
#include <set>
#include <vector>

namespace fused_optim::host {

constexpr int kProcessors = 2;  // that the "device" reports

struct Counters {
  int64_t launches = 0;
  std::set<const void*> loaded;  // kernels
  int64_t bytes_loaded = 0;      // of tensors and scratch: tables and scalars do not count
  int64_t bytes_stored = 0;
};

// One load or store that counts, in the order in which its thread made it.
struct Access {
  int64_t address;
  int32_t launch;  // since the counters were last taken
  int32_t block;
  int32_t thread;
  int32_t turn;  // how many accesses its thread made before
  int32_t bytes;
  int32_t stores;  // 0 or 1
};

Counters& counters();
// Blocks that the "device" runs at once, whatever the kernel.
int64_t& resident_blocks();
// Where accesses are noted while it is not null.
std::vector<Access>*& trace();
void CountLoad(const void* from, int bytes);
void CountStore(const void* to, int bytes);
void SetThreadOrder(uint64_t seed);

// Runs `blocks` blocks of `kernel`; throws std::runtime_error where its threads don't all arrive.
void RunGrid(int64_t blocks, int threads, const std::function<void()>& kernel);

// Of the running fiber.
int ThreadIndex();
int64_t BlockIndex();
int64_t BlockCount();
void Barrier();
float ShuffleXor(float value, int mask);

}  // namespace fused_optim::host
