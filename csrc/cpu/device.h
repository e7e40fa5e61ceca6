// device.cuh's names for the CPU backend: plain loads and stores. Included by device.cuh alone.
//
// A thread of the CPU takes chunks as a whole block of a GPU does, so that there are no barriers,
// shuffles or thread indices here.
#pragma once

#include "common/host_math.h"

namespace fused_optim {

template <typename T>
T* GlobalPointer(int64_t address) {
  return reinterpret_cast<T*>(address);
}

template <typename T>
T LoadAs(const void* from) {
  T value;
  std::memcpy(&value, from, sizeof(T));
  return value;
}

template <int kWords>
void LoadWords(const char* from, uint32_t* words) {
  std::memcpy(words, from, 4 * kWords);
}

template <int kWords>
void StoreWords(char* to, const uint32_t* words) {
  std::memcpy(to, words, 4 * kWords);
}

inline void Prefetch(const char*) {}  // a CPU prefetches by itself

inline uint32_t LoadHalfWord(const char* from) { return LoadAs<uint16_t>(from); }
inline double LoadDouble(const char* from) { return LoadAs<double>(from); }
inline int64_t LoadConstant(const int64_t* from) { return *from; }

inline void StoreHalfWord(char* to, uint32_t bits) {
  const auto half = static_cast<uint16_t>(bits);
  std::memcpy(to, &half, 2);
}

}  // namespace fused_optim
