// A parallel region on std::thread, under the name by which csrc/cpu/threads.cpp finds OpenMP's.
// ThreadSanitizer understands it, as the threads' beginnings and ends are seen; of libgomp it sees
// neither.
#include <atomic>
#include <thread>
#include <vector>

extern "C" __attribute__((visibility("default"))) void GOMP_parallel(void (*work)(void*),
                                                                     void* data, unsigned threads,
                                                                     unsigned) {
  std::atomic<unsigned> waiting{threads};
  const auto begin = [&] {
    // All begin together, lest the first have done everything before the last is there. The count
    // is relaxed: it orders nothing but their beginnings.
    waiting.fetch_sub(1, std::memory_order_relaxed);
    while (waiting.load(std::memory_order_relaxed) > 0) std::this_thread::yield();
    work(data);
  };
  std::vector<std::thread> others;
  for (unsigned i = 1; i < threads; ++i) others.emplace_back(begin);
  begin();
  for (std::thread& other : others) other.join();
}
