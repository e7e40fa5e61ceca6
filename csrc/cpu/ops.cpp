// The ops of ops.h on CPU threads.
#include "ops.h"

#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/threads.h"

namespace fused_optim {
namespace {

void Step(const LaunchTarget& target, const LaunchArguments& launch, const char* op,
          fused_optim_cpu::Update update) {
  const auto& kernels = fused_optim_cpu::Chosen();
  const auto step = [&](int64_t first, int64_t last) {
    return kernels.step(update, target.dtype, target.mode, &launch, first, last);
  };
  if (!step(0, 0)) {
    throw std::invalid_argument(std::string("fused_optim.") + op + ": no kernel for dtype " +
                                std::to_string(target.dtype) + " in mode " +
                                std::to_string(target.mode));
  }
  if (*launch.found_inf != 0.0f) return;
  fused_optim_cpu::ForRanges(launch.num_items, target.threads,
                             [&](int64_t first, int64_t last) { step(first, last); });
}

}  // namespace

void AdamW(const LaunchTarget& target, const LaunchArguments& launch, bool amsgrad) {
  Step(target, launch, "adamw_",
       amsgrad ? fused_optim_cpu::kAdamWAmsgrad : fused_optim_cpu::kAdamW);
}

void Lion(const LaunchTarget& target, const LaunchArguments& launch) {
  Step(target, launch, "lion_", fused_optim_cpu::kLion);
}

void GradSquareSums(const LaunchTarget& target, const LaunchArguments& launch, bool clamps,
                    float* partials, float* sums) {
  static_cast<void>(partials);  // the sums of items are float64 here
  std::vector<double> squares(static_cast<size_t>(launch.num_items));
  const auto& kernels = fused_optim_cpu::Chosen();
  fused_optim_cpu::ForRanges(launch.num_items, target.threads, [&](int64_t first, int64_t last) {
    kernels.square_sums(&launch, clamps, squares.data(), first, last);
  });
  std::vector<double> totals(static_cast<size_t>(target.tensors));
  for (int64_t item = 0; item < launch.num_items; ++item) {
    totals[static_cast<size_t>(launch.items[item].tensor)] += squares[static_cast<size_t>(item)];
  }
  for (int64_t tensor = 0; tensor < target.tensors; ++tensor) {
    sums[tensor] = static_cast<float>(totals[static_cast<size_t>(tensor)]);
  }
}

}  // namespace fused_optim
