// Every kernel of the CPU backend, for the instruction set that the compiler's flags name.
#define FUSED_OPTIM_CPU 1
#define fused_optim FUSED_OPTIM_NAMESPACE  // one for each instruction set: see kernels.h

#include "cpu/kernels.h"

#include "common/dispatch.cuh"
#include "cpu/adafactor_update.h"
#include "cpu/elementwise.h"
#include "cpu/squares.h"
#include "elementwise/adamw.cuh"
#include "elementwise/lion.cuh"

namespace fused_optim {
namespace {

template <typename Update>
bool StepItems(int64_t dtype, Mode mode, const LaunchArguments& launch, int64_t first,
               int64_t last) {
  return RunVariant(dtype, mode, [&](auto known_dtype, auto known_mode) {
    for (int64_t item = first; item < last; ++item) {
      StepChunk<Update, decltype(known_dtype)::value, decltype(known_mode)::value>(
          launch, launch.items[item]);
    }
  });
}

bool Step(fused_optim_cpu::Update update, int64_t dtype, int mode, const void* arguments,
          int64_t first, int64_t last) {
  const auto& launch = *static_cast<const LaunchArguments*>(arguments);
  const auto known = static_cast<Mode>(mode);
  switch (update) {
    case fused_optim_cpu::kAdamW:
      return StepItems<AdamWUpdate<false>>(dtype, known, launch, first, last);
    case fused_optim_cpu::kAdamWAmsgrad:
      return StepItems<AdamWUpdate<true>>(dtype, known, launch, first, last);
    case fused_optim_cpu::kLion:
      return StepItems<LionUpdate>(dtype, known, launch, first, last);
  }
  return false;
}

void SquareSums(const void* arguments, bool clamps, double* partials, int64_t first, int64_t last) {
  const auto& launch = *static_cast<const LaunchArguments*>(arguments);
  for (int64_t item = first; item < last; ++item) {
    partials[item] = ChunkSquares(launch, launch.items[item], clamps);
  }
}

}  // namespace

extern const fused_optim_cpu::Kernels kernels = {FUSED_OPTIM_ISA, Step, SquareSums, RunStage};

}  // namespace fused_optim
