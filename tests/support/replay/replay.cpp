// Runs the calls that tests/support/cpu_replay.py has written to a file, without Python or torch,
// and compares what they leave in memory with what is written there, bit for bit.
//
//     replay FILE THREADS TEAM [COUNTS]
//
// TEAM is the library of team.cpp, COUNTS a file for the counts of counts.h.
#include <dlfcn.h>
#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <vector>

#include "counts.h"
#include "cpu/kernels.h"
#include "cpu/threads.h"
#include "ops.h"

namespace {

using namespace fused_optim;

// One call, and after it `bytes` of memory before and as many after it. Addresses are those of the
// memory from kArena on. Its fields are cpu_replay.CALL.
struct Call {
  char name[64];
  int64_t op, flag, bytes;
  int64_t tensors, dtype, mode, records, rows, items, num_items, grad_scale, found_inf, clip,
      clip_stride, seed_low, seed_high;
  int64_t more, num_more, scratch, partials, sums;
};

// Low, where ThreadSanitizer lets a program have memory.
constexpr uintptr_t kArena = uintptr_t{1} << 36;

[[noreturn]] void Fail(const char* what) {
  std::fprintf(stderr, "replay: %s\n", what);
  std::exit(2);
}

template <typename T>
T* At(int64_t address) {
  return reinterpret_cast<T*>(address);
}

void Run(const Call& call, int threads) {
  const LaunchTarget target = {
      0, nullptr, call.tensors, call.dtype, static_cast<Mode>(call.mode), threads};
  const LaunchArguments launch = {At<const TensorRecord>(call.records),
                                  At<const void>(call.rows),
                                  At<const WorkItem>(call.items),
                                  call.num_items,
                                  At<const float>(call.grad_scale),
                                  At<const float>(call.found_inf),
                                  At<const float>(call.clip),
                                  call.clip_stride,
                                  static_cast<uint32_t>(call.seed_low),
                                  static_cast<uint32_t>(call.seed_high),
                                  nullptr};
  const auto* more = At<const WorkItem>(call.more);
  auto* scratch = At<float>(call.scratch);
  const bool flag = call.flag != 0;
  switch (call.op) {
    case 0:
      return AdamW(target, launch, flag);
    case 1:
      return Lion(target, launch);
    case 2:
      return GradSquareSums(target, launch, flag, At<float>(call.partials), At<float>(call.sums));
    case 3:
      return AdafactorStatistics(target, launch, more, call.num_more, scratch,
                                 At<float>(call.sums));
    case 4:
      return AdafactorFinalise(target, launch,
                               {more, call.num_more, flag, target.dtype, target.mode}, scratch);
    case 5:
      return AdafactorUpdateSums(target, launch, scratch);
    case 6:
      return AdafactorApply(target, launch, scratch);
    default:
      Fail("an op without a number");
  }
}

// Fills memory from kArena on with what comes next in a file.
char* ReadArena(std::FILE* file, size_t bytes) {
  void* place = mmap(reinterpret_cast<void*>(kArena), bytes, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
  if (place != reinterpret_cast<void*>(kArena)) Fail("the memory's place is taken");
  if (std::fread(place, 1, bytes, file) != bytes) Fail("the file ends too early");
  return static_cast<char*>(place);
}

bool Same(const Call& call, const char* found, const std::vector<char>& wanted) {
  if (std::memcmp(found, wanted.data(), wanted.size()) == 0) return true;
  size_t differ = 0;
  size_t first = 0;
  for (size_t i = wanted.size(); i-- > 0;) {
    if (found[i] == wanted[i]) continue;
    ++differ;
    first = i;
  }
  uint32_t words[2];
  std::memcpy(&words[0], found + first / 4 * 4, 4);
  std::memcpy(&words[1], wanted.data() + first / 4 * 4, 4);
  std::printf("%s: %zu bytes differ, the first at %zu: %08x instead of %08x\n", call.name, differ,
              first, words[0], words[1]);
  return false;
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 4 || count > 5) Fail("usage: replay FILE THREADS TEAM [COUNTS]");
  std::FILE* file = std::fopen(arguments[1], "rb");
  const int threads = std::atoi(arguments[2]);
  std::FILE* counted = count == 5 ? std::fopen(arguments[4], "wb") : nullptr;
  if (file == nullptr || threads < 1) Fail("no such file, or no threads");
  if (dlopen(arguments[3], RTLD_NOW) == nullptr) Fail(dlerror());
  if (!fused_optim_cpu::UseRuntime(arguments[3])) Fail("the team has no GOMP_parallel");
  int calls = 0;
  int wrong = 0;
  Call call;
  while (std::fread(&call, sizeof(call), 1, file) == 1) {
    const auto bytes = static_cast<size_t>(call.bytes);
    char* arena = ReadArena(file, bytes);
    std::vector<char> wanted(bytes);
    if (std::fread(wanted.data(), 1, bytes, file) != bytes) Fail("the file ends too early");
    counts::Begin(arena, bytes);
    Run(call, threads);
    if (counted != nullptr) counts::Write(counted);
    ++calls;
    wrong += Same(call, arena, wanted) ? 0 : 1;
    munmap(arena, bytes);
  }
  if (counted != nullptr) std::fclose(counted);
  std::printf("%s: %d calls, %d differ\n", fused_optim_cpu::Chosen().name, calls, wrong);
  return wrong == 0 && calls > 0 ? 0 : 1;
}
