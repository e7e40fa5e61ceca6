#include "cpu/threads.h"

#include <dlfcn.h>

#include <algorithm>
#include <atomic>

namespace fused_optim_cpu {
namespace {

// libgomp's entry for a parallel region, which LLVM's and Intel's runtimes have too.
using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);
std::atomic<Parallel> parallel{nullptr};

struct Team {
  std::atomic<int64_t> next{0};
  int64_t count;
  int64_t batch;
  void (*run)(void*, int64_t, int64_t);
  void* context;

  // Takes ranges until there are none. Threads that are late or slow take fewer.
  void Work() {
    for (;;) {
      const int64_t first = next.fetch_add(batch, std::memory_order_relaxed);
      if (first >= count) return;
      run(context, first, std::min(first + batch, count));
    }
  }
};

}  // namespace

bool UseRuntime(const char* path) {
  void* runtime = *path == '\0' ? nullptr : dlopen(path, RTLD_NOW | RTLD_NOLOAD);
  void* entry = runtime == nullptr ? nullptr : dlsym(runtime, "GOMP_parallel");
  parallel = reinterpret_cast<Parallel>(entry);
  return entry != nullptr;
}

void ForRanges(int64_t count, int threads, void (*run)(void*, int64_t, int64_t), void* context) {
  const auto team_of = parallel.load();
  if (threads <= 1 || count <= 1 || team_of == nullptr) {
    if (count > 0) run(context, 0, count);
    return;
  }
  Team team;
  team.count = count;
  team.batch = std::clamp<int64_t>(count / (8 * static_cast<int64_t>(threads)), 1, 16);
  team.run = run;
  team.context = context;
  team_of([](void* data) { static_cast<Team*>(data)->Work(); }, &team,
          static_cast<unsigned>(std::min<int64_t>(threads, count)), 0);
}

}  // namespace fused_optim_cpu
