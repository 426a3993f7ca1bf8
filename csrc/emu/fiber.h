// Stacks that take turns on one thread, and what the sanitizers must be told about it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#define AV_TSAN 1
#else
#define AV_TSAN 0
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define AV_ASAN 1
#else
#define AV_ASAN 0
#endif

// The emulator's own bookkeeping is no part of what is tested for races.
#define AV_UNWATCHED __attribute__((no_sanitize("thread"), noinline))

namespace emu {

constexpr std::size_t kStack = 128 * 1024;

struct Fiber {
#if defined(__x86_64__)
  void* stack_pointer = nullptr;
#else
  ucontext_t context;
#endif
  std::unique_ptr<char[]> stack;
  void* tsan = nullptr;
  void* fake_stack = nullptr;        // AddressSanitizer's, while another fiber runs
  const void* own_bottom = nullptr;  // of the stack of a thread that was adopted
  std::size_t own_size = 0;
};

inline void acquire([[maybe_unused]] void* address) {
#if AV_TSAN
  __tsan_acquire(address);
#endif
}
inline void release([[maybe_unused]] void* address) {
#if AV_TSAN
  __tsan_release(address);
#endif
}

#if defined(__x86_64__)
// Saves what a called function must keep, changes stacks, and takes the same from the other one. ucontext would make
// system calls for the signal mask and be 18 times slower.
__attribute__((naked, noinline)) inline void swap_stacks(void** /*from*/, void* /*to*/) {
  __asm__ volatile(
      "pushq %rbp\n pushq %rbx\n pushq %r12\n pushq %r13\n pushq %r14\n pushq %r15\n"
      "movq %rsp, (%rdi)\n movq %rsi, %rsp\n"
      "popq %r15\n popq %r14\n popq %r13\n popq %r12\n popq %rbx\n popq %rbp\n ret");
}
#endif

// Makes a fiber of the thread that calls.
AV_UNWATCHED inline void adopt_fiber([[maybe_unused]] Fiber* fiber) {
#if AV_TSAN
  fiber->tsan = __tsan_get_current_fiber();
#endif
}

// Next time it is switched to, the fiber begins with `main`, on a clean stack.
AV_UNWATCHED inline void prepare_fiber(Fiber* fiber, void (*main)()) {
  if (!fiber->stack) fiber->stack.reset(new char[kStack]);
#if AV_ASAN
  __asan_unpoison_memory_region(fiber->stack.get(), kStack);
#endif
#if AV_TSAN
  if (fiber->tsan == nullptr) fiber->tsan = __tsan_create_fiber(0);
#endif
#if defined(__x86_64__)
  auto** top = reinterpret_cast<void**>(reinterpret_cast<std::uintptr_t>(fiber->stack.get() + kStack) & ~63ul);
  *--top = nullptr;  // `main` has no caller, but a stack aligned as if it had
  *--top = reinterpret_cast<void*>(main);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  fiber->stack_pointer = top;
#else
  getcontext(&fiber->context);
  fiber->context.uc_stack.ss_sp = fiber->stack.get();
  fiber->context.uc_stack.ss_size = kStack;
  fiber->context.uc_link = nullptr;
  makecontext(&fiber->context, main, 0);
#endif
}

// The first thing a fiber does: AddressSanitizer tells which stack the thread came from.
AV_UNWATCHED inline void entered_fiber([[maybe_unused]] Fiber* from) {
#if AV_ASAN
  __sanitizer_finish_switch_fiber(nullptr, &from->own_bottom, &from->own_size);
#endif
}

AV_UNWATCHED inline void switch_fiber(Fiber* from, Fiber* to, [[maybe_unused]] bool forever) {
#if AV_TSAN
  __tsan_switch_to_fiber(to->tsan, 1);  // 1: switching orders nothing
#endif
#if AV_ASAN
  const void* bottom = to->stack ? to->stack.get() : to->own_bottom;
  __sanitizer_start_switch_fiber(forever ? nullptr : &from->fake_stack, bottom, to->stack ? kStack : to->own_size);
#endif
#if defined(__x86_64__)
  swap_stacks(&from->stack_pointer, to->stack_pointer);
#else
  swapcontext(&from->context, &to->context);
#endif
#if AV_ASAN
  __sanitizer_finish_switch_fiber(from->fake_stack, nullptr, nullptr);
#endif
}

inline void release_fiber([[maybe_unused]] Fiber* fiber) {
#if AV_TSAN
  if (fiber->tsan != nullptr) __tsan_destroy_fiber(fiber->tsan);
#endif
}

}  // namespace emu
