// Chooses the kernels of the best instruction set that the machine has.
#include <cstdlib>
#include <cstring>

#include "cpu/kernels.h"

#define FUSED_OPTIM_DECLARE(name)                  \
  namespace fused_optim_##name {                   \
    extern const fused_optim_cpu::Kernels kernels; \
  }
#if defined(__x86_64__)
FUSED_OPTIM_DECLARE(v2)
FUSED_OPTIM_DECLARE(v3)
FUSED_OPTIM_DECLARE(v4)
#else
FUSED_OPTIM_DECLARE(base)
#endif

namespace fused_optim_cpu {
namespace {

struct Choice {
  const Kernels* kernels;
  bool runs;
};

const Kernels& Choose() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const Choice choices[] = {
      {&fused_optim_v4::kernels, __builtin_cpu_supports("x86-64-v4") != 0},
      {&fused_optim_v3::kernels, __builtin_cpu_supports("x86-64-v3") != 0},
      {&fused_optim_v2::kernels, true},
  };
#else
  const Choice choices[] = {{&fused_optim_base::kernels, true}};
#endif
  const char* most = std::getenv("FUSED_OPTIM_CPU_ISA");
  bool allowed = most == nullptr || *most == '\0';
  const Kernels* last = nullptr;
  for (const Choice& choice : choices) {
    last = choice.kernels;
    allowed = allowed || std::strcmp(most, choice.kernels->name) == 0;
    if (allowed && choice.runs) return *choice.kernels;
  }
  return *last;
}

}  // namespace

const Kernels& Chosen() {
  static const Kernels& chosen = Choose();
  return chosen;
}

}  // namespace fused_optim_cpu
