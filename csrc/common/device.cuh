// The sole home of CUDA intrinsics, PTX, barriers, shuffles, memory accesses of tensors, and
// launches. Two headers have its names for a C++ compiler: cpu/device.h for the CPU backend, and
// host/device_twin.h, which runs the CUDA kernels on a CPU, in tests.
#pragma once

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>

#if !defined(FUSED_OPTIM_HOST) && !defined(FUSED_OPTIM_CPU)
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <map>
#include <mutex>
#include <utility>
#endif

#ifdef FUSED_OPTIM_CPU
#define FUSED_DEVICE inline __attribute__((always_inline))
#define FUSED_MATH FUSED_DEVICE
#else
#define FUSED_DEVICE __device__ __forceinline__
#define FUSED_MATH __host__ __device__ __forceinline__
#endif
// A function that is called on the device, so that its body is not copied to every caller.
#if defined(FUSED_OPTIM_HOST) || defined(FUSED_OPTIM_CPU)
#define FUSED_SLOW_PATH inline
#else
#define FUSED_SLOW_PATH inline __device__ __noinline__
#endif

namespace fused_optim {

constexpr int kThreads = 256;  // threads of every block of every kernel
constexpr int kLanes = 32;
constexpr int kLaneBits = 5;
constexpr int kWarps = kThreads / kLanes;

// The names by which an error message calls a launch.
struct LaunchSite {
  const char* op;
  int device;
  int64_t tensors;
  int64_t blocks_of_work;

  std::string Describe() const {
    return std::string("fused_optim.") + op + " on cuda:" + std::to_string(device) + " (" +
           std::to_string(tensors) + " tensors, " + std::to_string(blocks_of_work) +
           " blocks of work)";
  }
};

}  // namespace fused_optim

#if defined(FUSED_OPTIM_CPU)
#include "cpu/device.h"
#elif defined(FUSED_OPTIM_HOST)
#include "host/device_twin.h"
#else

namespace fused_optim {

// Throws std::runtime_error with CUDA's name for the error, which fused_optim/backends/cuda.py
// looks for.
inline void Check(cudaError_t status, const std::string& what) {
  if (status == cudaSuccess) return;
  static_cast<void>(
      cudaGetLastError());  // the error is reported here, and not again to the next caller
  throw std::runtime_error(what + ": " + cudaGetErrorName(status) + ": " +
                           cudaGetErrorString(status));
}

// Makes a device current for as long as it lives.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    Check(cudaGetDevice(&previous_), "fused_optim: cudaGetDevice");
    changed_ = previous_ != device;
    if (changed_) {
      Check(cudaSetDevice(device), "fused_optim: cudaSetDevice(" + std::to_string(device) + ")");
    }
  }
  ~DeviceGuard() {
    if (changed_) static_cast<void>(cudaSetDevice(previous_));
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int previous_ = 0;
  bool changed_ = false;
};

// The multiprocessors of a device.
inline int Processors(int device) {
  int processors = 0;
  Check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device),
        "fused_optim: processors of cuda:" + std::to_string(device));
  return processors;
}

// Blocks of `kernel` that the site's device runs at once. Asked once, which loads the kernel.
inline int ResidentBlocks(const void* kernel, const LaunchSite& site) {
  const DeviceGuard guard(site.device);
  static std::mutex mutex;
  static std::map<std::pair<const void*, int>, int> known;
  const std::lock_guard<std::mutex> lock(mutex);
  int& resident = known[{kernel, site.device}];
  if (resident == 0) {
    int blocks = 0;
    cudaFuncAttributes loaded;  // to ask for them loads a kernel, as CUDA's lazy loading has it
    Check(cudaFuncGetAttributes(&loaded, kernel), site.Describe());
    Check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, kThreads, 0),
          site.Describe());
    resident = Processors(site.device) * (blocks > 0 ? blocks : 1);
  }
  return resident;
}

template <typename... Parameters>
void RunBlocks(const LaunchSite& site, void* stream, int64_t blocks, void (*kernel)(Parameters...),
               Parameters... parameters) {
  const DeviceGuard guard(site.device);
  void* pointers[] = {&parameters...};
  Check(cudaLaunchKernel(reinterpret_cast<const void*>(kernel), dim3(static_cast<unsigned>(blocks)),
                         dim3(kThreads), pointers, 0, static_cast<cudaStream_t>(stream)),
        site.Describe());
}

// Throws the error that a launch of `kernel` on `device` would meet: no kernel image, an old
// driver, ...
template <typename Kernel>
void CheckLoads(Kernel kernel, int device) {
  const auto version = [](int number) {
    return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10);
  };
  int driver = 0;
  static_cast<void>(cudaDriverGetVersion(&driver));
  cudaFuncAttributes attributes;
  int previous = 0;
  cudaError_t status = cudaGetDevice(&previous);
  if (status == cudaSuccess) status = cudaSetDevice(device);
  if (status == cudaSuccess) {
    status = cudaFuncGetAttributes(&attributes, kernel);
    static_cast<void>(cudaSetDevice(previous));
  }
  static_cast<void>(cudaGetLastError());  // the error is reported here, not by the next launch
  Check(status, "fused_optim on cuda:" + std::to_string(device) + " (driver for CUDA " +
                    version(driver) + ", kernels built with " + version(CUDART_VERSION) + ")");
}

FUSED_DEVICE int ThreadIndex() { return static_cast<int>(threadIdx.x); }
FUSED_DEVICE int64_t BlockIndex() { return blockIdx.x; }
FUSED_DEVICE int64_t BlockCount() { return gridDim.x; }

FUSED_DEVICE void Barrier() { __syncthreads(); }

// Every lane of the warp must call it.
FUSED_DEVICE float ShuffleXor(float value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}

// Orders what the lanes of a warp did in memory before it and after. Every lane must call it.
FUSED_DEVICE void WarpBarrier() { __syncwarp(); }

// An address out of a table, as a pointer that the compiler knows to be of global memory.
template <typename T>
FUSED_DEVICE T* GlobalPointer(int64_t address) {
  T* pointer = reinterpret_cast<T*>(address);
  __builtin_assume(__isGlobal(pointer));
  return pointer;
}

// Loads and stores of tensors: `kWords` 32-bit words at an address that is a multiple of their
// size.
template <int kWords>
FUSED_DEVICE void LoadWords(const char* __restrict__ from, uint32_t* words) {
  static_assert(kWords == 1 || kWords == 2 || kWords == 4, "4, 8 or 16 bytes");
  if constexpr (kWords == 4) {
    const uint4 loaded = *reinterpret_cast<const uint4*>(from);
    words[0] = loaded.x;
    words[1] = loaded.y;
    words[2] = loaded.z;
    words[3] = loaded.w;
  } else if constexpr (kWords == 2) {
    const uint2 loaded = *reinterpret_cast<const uint2*>(from);
    words[0] = loaded.x;
    words[1] = loaded.y;
  } else {
    words[0] = *reinterpret_cast<const uint32_t*>(from);
  }
}

template <int kWords>
FUSED_DEVICE void StoreWords(char* __restrict__ to, const uint32_t* words) {
  static_assert(kWords == 1 || kWords == 2 || kWords == 4, "4, 8 or 16 bytes");
  if constexpr (kWords == 4) {
    *reinterpret_cast<uint4*>(to) = make_uint4(words[0], words[1], words[2], words[3]);
  } else if constexpr (kWords == 2) {
    *reinterpret_cast<uint2*>(to) = make_uint2(words[0], words[1]);
  } else {
    *reinterpret_cast<uint32_t*>(to) = words[0];
  }
}

// Prefetches memory that is loaded soon. Unlike a load, a prefetch takes no register.
FUSED_DEVICE void Prefetch(const char* from) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(from));
}

FUSED_DEVICE uint32_t LoadHalfWord(const char* from) {
  return *reinterpret_cast<const uint16_t*>(from);
}
FUSED_DEVICE void StoreHalfWord(char* to, uint32_t bits) {
  *reinterpret_cast<uint16_t*>(to) = static_cast<uint16_t>(bits);
}
FUSED_DEVICE double LoadDouble(const char* from) { return *reinterpret_cast<const double*>(from); }

// An entry of a table or of scratch in global memory, which is said at each access: the compiler
// forgets it in loops, and of an address that was in shared memory.
template <typename T>
FUSED_DEVICE T LoadEntry(const T* from) {
  __builtin_assume(__isGlobal(from));
  return *from;
}

template <typename T>
FUSED_DEVICE void StoreEntry(T* to, T value) {
  __builtin_assume(__isGlobal(to));
  *to = value;
}

// An entry that no kernel writes.
FUSED_DEVICE int64_t LoadConstant(const int64_t* from) { return __ldg(from); }

FUSED_DEVICE float LoadStatistic(const float* from) { return LoadEntry(from); }
FUSED_DEVICE void StoreStatistic(float* to, float x) { StoreEntry(to, x); }

// Loads a value that another block stored before it arrived at a counter, past this processor's own
// cache.
FUSED_DEVICE float LoadFresh(const float* from) { return __ldcg(from); }

// Adds 1 to a counter in global memory and returns its old value. What the calling thread stored
// before is seen by whoever finds a later value here, and what it loads afterwards is as others
// stored it before they arrived: release and acquire, instead of two fences of the whole device.
FUSED_DEVICE uint32_t Arrive(uint32_t* counter) {
  uint32_t before;
  asm volatile("atom.add.acq_rel.gpu.global.u32 %0, [%1], 1;"
               : "=r"(before)
               : "l"(__cvta_generic_to_global(counter))
               : "memory");
  return before;
}

FUSED_DEVICE uint32_t FloatBits(float x) { return __float_as_uint(x); }
FUSED_DEVICE float BitsFloat(uint32_t bits) { return __uint_as_float(bits); }
FUSED_DEVICE float HalfBitsToFloat(uint32_t bits) {
  return __half2float(__ushort_as_half(static_cast<unsigned short>(bits)));
}
// Rounds to nearest even; overflow becomes infinity. The argument is no NaN.
FUSED_DEVICE uint32_t FloatToHalfBits(float x) { return __half_as_ushort(__float2half_rn(x)); }
FUSED_DEVICE uint32_t MultiplyHigh(uint32_t a, uint32_t b) { return __umulhi(a, b); }
FUSED_DEVICE float Divide(float a, float b) { return __fdiv_rn(a, b); }
FUSED_DEVICE float SquareRoot(float x) { return __fsqrt_rn(x); }

}  // namespace fused_optim

#endif  // FUSED_OPTIM_CPU, FUSED_OPTIM_HOST

#ifndef FUSED_OPTIM_CPU
namespace fused_optim {

// Runs `kernel` on at most as many blocks as the device holds; its blocks walk the work themselves.
//
// note: [loading] A kernel is loaded even if there is no work for it. A CUDA graph's capture is no
// place to load one, and a step before it may have had other tensors: all of them small, say.
template <typename... Parameters, typename... Arguments>
void Launch(const LaunchSite& site, void* stream, void (*kernel)(Parameters...),
            const Arguments&... arguments) {
  const int64_t resident = ResidentBlocks(reinterpret_cast<const void*>(kernel), site);
  const int64_t blocks = site.blocks_of_work < resident ? site.blocks_of_work : resident;
  if (blocks == 0) return;
  RunBlocks<Parameters...>(site, stream, blocks, kernel, Parameters(arguments)...);
}

}  // namespace fused_optim
#endif  // FUSED_OPTIM_CPU
