#include "host/fibers.h"

#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#include "host/switch.h"

namespace fused_optim::host {
namespace {

constexpr int kLanes = 32;
constexpr size_t kStackBytes = 256 * 1024;

struct Fiber {
  Context context;
  std::unique_ptr<char[]> stack;
  void* fake_stack = nullptr;
  bool done = false;
  const int64_t* waits_for = nullptr;  // the count that must pass `waits_beyond`, if any
  int64_t waits_beyond = 0;
  int32_t accesses = 0;
};

struct Warp {
  float arriving[kLanes];
  float published[kLanes];
  int arrived = 0;
  int mask = 0;
  int64_t round = 0;
  bool late = false;  // until the next barrier it runs when no other can
};

struct Block {
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  std::vector<int> order;
  Context scheduler;
  const void* scheduler_stack = nullptr;
  size_t scheduler_stack_bytes = 0;
  const std::function<void()>* kernel = nullptr;
  int64_t index = 0;
  int64_t count = 0;
  int running = 0;
  int unfinished = 0;
  int at_barrier = 0;
  int64_t barrier_round = 0;
  std::string error;
};

Block block;
Counters totals;
int64_t blocks_at_once = 2 * kProcessors;
std::vector<Access>* noted = nullptr;
std::mt19937_64 random_order;

// Switches, and tells AddressSanitizer which stack is left and which is entered.
void SwitchStacks(Context* from, Context* to, void** fake_stack, const void* stack, size_t bytes) {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(fake_stack, stack, bytes);
  SwitchContext(from, to);
  __sanitizer_finish_switch_fiber(fake_stack ? *fake_stack : nullptr, nullptr, nullptr);
#else
  static_cast<void>(fake_stack), static_cast<void>(stack), static_cast<void>(bytes);
  SwitchContext(from, to);
#endif
}

void BackToScheduler(bool for_good) {
  Fiber& fiber = block.fibers[block.running];
  SwitchStacks(&fiber.context, &block.scheduler, for_good ? nullptr : &fiber.fake_stack,
               block.scheduler_stack, block.scheduler_stack_bytes);
}

void FiberMain() {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(nullptr, &block.scheduler_stack, &block.scheduler_stack_bytes);
#endif
  try {
    (*block.kernel)();
  } catch (const std::exception& error) {
    if (block.error.empty()) block.error = error.what();
  }
  block.fibers[block.running].done = true;
  --block.unfinished;
  BackToScheduler(true);
}

void Resume(int thread) {
  block.running = thread;
  void* fake_stack = nullptr;
  SwitchStacks(&block.scheduler, &block.fibers[thread].context, &fake_stack,
               block.fibers[thread].stack.get(), kStackBytes);
}

void WaitBeyond(const int64_t* count, int64_t value) {
  Fiber& fiber = block.fibers[block.running];
  fiber.waits_for = count;
  fiber.waits_beyond = value;
  BackToScheduler(false);
  fiber.waits_for = nullptr;
}

void Start(Fiber* fiber) {
  if (!fiber->stack) fiber->stack.reset(new char[kStackBytes]);
#ifdef __SANITIZE_ADDRESS__
  __asan_unpoison_memory_region(fiber->stack.get(), kStackBytes);
#endif
  PrepareContext(&fiber->context, fiber->stack.get(), kStackBytes, FiberMain);
  fiber->done = false;
  fiber->waits_for = nullptr;
  fiber->accesses = 0;
}

// Draws the warps that are late. The others run ahead of them as far as barriers let them, past any
// number of shuffles.
void DrawLateWarps() {
  const uint64_t bits = random_order();
  for (size_t i = 0; i < block.warps.size(); ++i) block.warps[i].late = bits >> i % 64 & 1;
}

// Lets every fiber of the late warps, or of the others, run once if it can. Returns how many did.
int RunRound(bool late) {
  int ran = 0;
  for (const int thread : block.order) {
    const Fiber& fiber = block.fibers[thread];
    if (fiber.done || block.warps[thread / kLanes].late != late) continue;
    if (fiber.waits_for && *fiber.waits_for <= fiber.waits_beyond) continue;
    ++ran;
    Resume(thread);
    if (!block.error.empty()) throw std::runtime_error(block.error);
  }
  return ran;
}

void RunBlock(int threads) {
  block.fibers.resize(threads);
  block.warps.assign((threads + kLanes - 1) / kLanes, Warp());
  block.at_barrier = 0;
  block.barrier_round = 0;
  block.error.clear();
  block.order.resize(threads);
  for (int i = 0; i < threads; ++i) block.order[i] = i;
  for (int i = threads - 1; i > 0; --i)
    std::swap(block.order[i], block.order[random_order() % (i + 1)]);
  DrawLateWarps();
  for (Fiber& fiber : block.fibers) Start(&fiber);
  block.unfinished = threads;
  while (block.unfinished > 0) {
    if (RunRound(false) == 0 && RunRound(true) == 0) {
      throw std::runtime_error("block " + std::to_string(block.index) + ": " +
                               std::to_string(block.unfinished) +
                               " threads wait at a barrier or shuffle that the others don't reach");
    }
  }
}

void Note(const void* address, int bytes, bool stores) {
  if (noted == nullptr) return;
  noted->push_back({reinterpret_cast<int64_t>(address), static_cast<int32_t>(totals.launches - 1),
                    static_cast<int32_t>(block.index), block.running,
                    block.fibers[block.running].accesses++, bytes, stores});
}

}  // namespace

Counters& counters() { return totals; }
int64_t& resident_blocks() { return blocks_at_once; }
std::vector<Access>*& trace() { return noted; }

void CountLoad(const void* from, int bytes) {
  totals.bytes_loaded += bytes;
  Note(from, bytes, false);
}

void CountStore(const void* to, int bytes) {
  totals.bytes_stored += bytes;
  Note(to, bytes, true);
}

void SetThreadOrder(uint64_t seed) { random_order.seed(seed); }

void RunGrid(int64_t blocks, int threads, const std::function<void()>& kernel) {
  block.kernel = &kernel;
  block.count = blocks;
  for (block.index = 0; block.index < blocks; ++block.index) RunBlock(threads);
}

int ThreadIndex() { return block.running; }
int64_t BlockIndex() { return block.index; }
int64_t BlockCount() { return block.count; }

void Barrier() {
  const int64_t round = block.barrier_round;
  if (++block.at_barrier == static_cast<int>(block.fibers.size())) {
    block.at_barrier = 0;
    ++block.barrier_round;
    DrawLateWarps();
    return;
  }
  WaitBeyond(&block.barrier_round, round);
}

float ShuffleXor(float value, int mask) {
  Warp& warp = block.warps[block.running / kLanes];
  const int lane = block.running % kLanes;
  if (warp.arrived == 0) warp.mask = mask;
  if (warp.mask != mask) throw std::runtime_error("lanes of a warp meet in different shuffles");
  warp.arriving[lane] = value;
  const int64_t round = warp.round;
  if (++warp.arrived == kLanes) {
    warp.arrived = 0;
    ++warp.round;
    for (int i = 0; i < kLanes; ++i) warp.published[i] = warp.arriving[i];
  } else {
    WaitBeyond(&warp.round, round);
  }
  return warp.published[lane ^ mask];
}

}  // namespace fused_optim::host
