// device.cuh's names for a C++ compiler. Included by device.cuh alone.
#pragma once

#include "common/host_math.h"
#include "host/fibers.h"

namespace fused_optim {

inline int64_t ResidentBlocks(const void* kernel, const LaunchSite&) {
  host::counters().loaded.insert(kernel);
  return host::resident_blocks();
}

template <typename... Parameters>
void RunBlocks(const LaunchSite&, void*, int64_t blocks, void (*kernel)(Parameters...),
               Parameters... parameters) {
  ++host::counters().launches;
  host::RunGrid(blocks, kThreads, [&] { kernel(parameters...); });
}

// Tiles are those of a device with as many processors as an H100, not the few that the host plays:
// small tensors then have several.
inline int Processors(int) { return 132; }

template <typename Kernel>
void CheckLoads(Kernel, int) {}

inline int ThreadIndex() { return host::ThreadIndex(); }
inline int64_t BlockIndex() { return host::BlockIndex(); }
inline int64_t BlockCount() { return host::BlockCount(); }
inline void Barrier() { host::Barrier(); }
inline void WarpBarrier() { host::ShuffleXor(0.0f, 1); }
inline float ShuffleXor(float value, int mask) { return host::ShuffleXor(value, mask); }

template <typename T>
T* GlobalPointer(int64_t address) {
  return reinterpret_cast<T*>(address);
}

// A GPU traps where an access is not aligned to its size; here it throws.
inline void CheckAligned(const void* address, int64_t bytes) {
  if (reinterpret_cast<uintptr_t>(address) % bytes != 0) {
    throw std::runtime_error("an access of " + std::to_string(bytes) + " bytes is not aligned");
  }
}

template <typename T>
T LoadAs(const void* from) {
  CheckAligned(from, sizeof(T));
  host::CountLoad(from, sizeof(T));
  T value;
  std::memcpy(&value, from, sizeof(T));
  return value;
}

template <int kWords>
void LoadWords(const char* from, uint32_t* words) {
  CheckAligned(from, 4 * kWords);
  host::CountLoad(from, 4 * kWords);
  std::memcpy(words, from, 4 * kWords);
}

template <int kWords>
void StoreWords(char* to, const uint32_t* words) {
  CheckAligned(to, 4 * kWords);
  host::CountStore(to, 4 * kWords);
  std::memcpy(to, words, 4 * kWords);
}

inline void Prefetch(const char*) {}  // it is no access: what is loaded later counts

inline uint32_t LoadHalfWord(const char* from) { return LoadAs<uint16_t>(from); }
inline double LoadDouble(const char* from) { return LoadAs<double>(from); }
template <typename T>
T LoadEntry(const T* from) {
  return *from;
}

template <typename T>
void StoreEntry(T* to, T value) {
  *to = value;
}

inline int64_t LoadConstant(const int64_t* from) { return *from; }

inline float LoadStatistic(const float* from) { return LoadAs<float>(from); }
inline float LoadFresh(const float* from) { return *from; }

inline void StoreStatistic(float* to, float x) {
  host::CountStore(to, 4);
  *to = x;
}

inline void StoreHalfWord(char* to, uint32_t bits) {
  CheckAligned(to, 2);
  host::CountStore(to, 2);
  const auto half = static_cast<uint16_t>(bits);
  std::memcpy(to, &half, 2);
}

inline uint32_t Arrive(uint32_t* counter) { return (*counter)++; }

}  // namespace fused_optim
