// Switching stacks: a few instructions where they are known, ucontext (and its system calls)
// elsewhere.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__x86_64__) && defined(__linux__)

// Saves the registers that a function call must keep, and the stack pointer; then restores others.
asm(R"(
.text
.type fused_optim_switch, @function
fused_optim_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq (%rsi), %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size fused_optim_switch, .-fused_optim_switch
)");
extern "C" void fused_optim_switch(void* from, void* to);

namespace fused_optim::host {

struct Context {
  uintptr_t* top = nullptr;
};

inline void SwitchContext(Context* from, Context* to) { fused_optim_switch(from, to); }

inline void PrepareContext(Context* context, char* stack, size_t bytes, void (*main)()) {
  constexpr int kSavedRegisters = 6;
  const auto end = reinterpret_cast<uintptr_t>(stack + bytes) / 16 * 16;
  auto* top = reinterpret_cast<uintptr_t*>(end);
  *--top = 0;  // where `main` would return to
  *--top = reinterpret_cast<uintptr_t>(main);
  for (int i = 0; i < kSavedRegisters; ++i) *--top = 0;
  context->top = top;
}

}  // namespace fused_optim::host

#else

#include <ucontext.h>

namespace fused_optim::host {

using Context = ucontext_t;

inline void SwitchContext(Context* from, Context* to) { swapcontext(from, to); }

inline void PrepareContext(Context* context, char* stack, size_t bytes, void (*main)()) {
  getcontext(context);
  context->uc_stack.ss_sp = stack;
  context->uc_stack.ss_size = bytes;
  context->uc_link = nullptr;
  makecontext(context, main, 0);
}

}  // namespace fused_optim::host

#endif
