// Runs work on the OpenMP threads that torch has, so that no second pool competes with them.
#pragma once

#include <cstdint>

namespace fused_optim_cpu {

// Takes the OpenMP runtime that is loaded from `path`; an empty one stands for none. Without a
// runtime all work runs on the calling thread. Returns whether there is a runtime now.
bool UseRuntime(const char* path);

// Calls run(context, first, last) for ranges that together are [0, count), on up to `threads`
// threads. An exception of `run` ends the process, so `run` throws none.
void ForRanges(int64_t count, int threads, void (*run)(void*, int64_t, int64_t), void* context);

template <typename Function>
void ForRanges(int64_t count, int threads, const Function& function) {
  ForRanges(
      count, threads,
      [](void* context, int64_t first, int64_t last) {
        (*static_cast<const Function*>(context))(first, last);
      },
      const_cast<Function*>(&function));
}

}  // namespace fused_optim_cpu
