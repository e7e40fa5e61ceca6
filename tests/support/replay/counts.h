// Counts loads and stores of the memory of a call, byte by byte, where FUSED_OPTIM_COUNTS is
// defined. counts.cpp takes the place of ThreadSanitizer's runtime: kernels that are compiled for
// that report every access.
#pragma once

#include <cstddef>
#include <cstdio>

namespace counts {

#ifdef FUSED_OPTIM_COUNTS
// Counts what is done to memory until Write.
void Begin(const void* first, size_t bytes);
// Appends the numbers of loads, then of stores, of each byte to a file: 16-bit words.
void Write(std::FILE* file);
#else
inline void Begin(const void*, size_t) {}
inline void Write(std::FILE*) {}
#endif

}  // namespace counts
