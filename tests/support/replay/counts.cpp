#ifdef FUSED_OPTIM_COUNTS

#include "counts.h"

#include <cstdint>
#include <vector>

namespace counts {
namespace {

uintptr_t begin = 0;
std::vector<uint16_t> loads, stores;

void Add(std::vector<uint16_t>* to, const void* address, size_t bytes) {
  const uintptr_t at = reinterpret_cast<uintptr_t>(address) - begin;
  if (at >= to->size()) return;
  for (size_t i = 0; i < bytes; ++i) ++(*to)[at + i];
}

}  // namespace

void Begin(const void* first, size_t bytes) {
  begin = reinterpret_cast<uintptr_t>(first);
  loads.assign(bytes, 0);
  stores.assign(bytes, 0);
}

void Write(std::FILE* file) {
  std::fwrite(loads.data(), 2, loads.size(), file);
  std::fwrite(stores.data(), 2, stores.size(), file);
  loads.clear();
  stores.clear();
}

}  // namespace counts

// What compilers call for each access.
#define COUNT(bytes)                                                                      \
  void __tsan_read##bytes(void* at) { counts::Add(&counts::loads, at, bytes); }           \
  void __tsan_write##bytes(void* at) { counts::Add(&counts::stores, at, bytes); }         \
  void __tsan_unaligned_read##bytes(void* at) { counts::Add(&counts::loads, at, bytes); } \
  void __tsan_unaligned_write##bytes(void* at) { counts::Add(&counts::stores, at, bytes); }

extern "C" {
COUNT(1)
COUNT(2)
COUNT(4)
COUNT(8)
COUNT(16)
void __tsan_read_range(void* at, size_t bytes) { counts::Add(&counts::loads, at, bytes); }
void __tsan_write_range(void* at, size_t bytes) { counts::Add(&counts::stores, at, bytes); }
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}

// The linker has calls of memcpy come here: --wrap.
void* __real_memcpy(void* to, const void* from, size_t bytes);
void* __wrap_memcpy(void* to, const void* from, size_t bytes) {
  counts::Add(&counts::loads, from, bytes);
  counts::Add(&counts::stores, to, bytes);
  return __real_memcpy(to, from, bytes);
}
}

#endif
