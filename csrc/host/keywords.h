// Force-included (-include) when the .cu files are compiled as C++: CUDA's keywords. Tests only.
#pragma once

#define FUSED_OPTIM_HOST 1

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
// Blocks run one after another, so one copy serves them all.
#define __shared__ static
