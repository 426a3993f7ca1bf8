// Runs CUDA kernels on the CPU, for tests: one fiber per CUDA thread, one block at a time per thread of the machine.
//
// Kernels are compiled by g++ as they are. What the emulator makes of their errors:
//
//   wrong results            visible, as everywhere
//   memory overruns          AddressSanitizer: shared memory is allocated to the byte
//   missing barriers         ThreadSanitizer: only __syncthreads and __syncwarp order memory, shuffles do not
//   uninitialised shared     filled with NaN
//   divergent barriers       an error: some threads wait, others have ended
//   absent lanes             an error: a shuffle or warp barrier waits for a lane that never comes
//   reliance on lane order   `emu_seed` runs the threads of a block in another order
//
// It knows nothing of speed, of memory caches, of how lanes of a warp really interleave, or of registers.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <functional>
#include <limits>
#include <memory>
#include <numeric>
#include <random>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <type_traits>
#include <vector>

#include "fiber.h"

using std::max;
using std::min;

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
using cudaStream_t = void*;

namespace emu {

enum class State : std::uint8_t { kReady, kAtBlockBarrier, kAtWarpBarrier, kDone };

struct Thread {
  Fiber fiber;
  State state = State::kReady;
  unsigned index = 0;  // in the block
  dim3 place;
};

// Lanes meet here to exchange a number or to wait for each other. Two sets of slots: who is late may still read the
// last exchange while others write the next.
struct Warp {
  std::uint64_t slots[2][32] = {};
  std::uint32_t arrived = 0;
  unsigned phase = 0;
};

struct SharedArray {
  const void* key;
  void* data;
};
constexpr unsigned kSharedArrays = 16;  // in one kernel

struct Block {
  dim3 grid, size, place;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  SharedArray shared[kSharedArrays];
  unsigned shared_count = 0;
  std::vector<unsigned> order;
  std::function<void()> kernel;
  Fiber scheduler;
  Thread* running = nullptr;
  char* dynamic = nullptr;
  std::exception_ptr failure;
  char barrier = 0, shared_ready = 0, end = 0;  // addresses that ThreadSanitizer orders by
};

inline thread_local Block* block = nullptr;

struct Settings {
  unsigned seed = 0, threads = 1;
  bool recording = false;
  std::vector<std::function<void()>> graph;
  std::set<std::string> launched;  // names of kernels, for tests that must have run all of them
  std::string error;
};
inline Settings& settings() {
  static Settings all;
  return all;
}
inline const char* last_error() { return settings().error.c_str(); }

AV_UNWATCHED inline Thread& self() { return *block->running; }

// Hands control to the scheduler until that makes the thread ready again.
AV_UNWATCHED inline void wait(State state) {
  Thread& thread = self();
  thread.state = state;
  switch_fiber(&thread.fiber, &block->scheduler, false);
}

AV_UNWATCHED inline void thread_main() {
  Block* own = block;
  Thread& thread = *own->running;
  entered_fiber(&own->scheduler);
  acquire(&own->barrier);
  try {
    own->kernel();
  } catch (...) {
    if (!own->failure) own->failure = std::current_exception();
  }
  thread.state = State::kDone;
  release(&own->end);
  switch_fiber(&thread.fiber, &own->scheduler, true);
  std::abort();
}

// Wakes all threads that wait at the block's barrier; false if none do. An error if some have ended instead.
AV_UNWATCHED inline bool open_barrier(Block* b) {
  std::size_t waiting = 0, done = 0;
  for (const Thread& thread : b->threads) {
    waiting += thread.state == State::kAtBlockBarrier;
    done += thread.state == State::kDone;
  }
  const std::size_t all = b->threads.size();
  if (done == all) return false;
  if (waiting + done < all) throw std::runtime_error("a warp waits for a lane that never comes");
  if (done > 0)
    throw std::runtime_error("__syncthreads() reached by " + std::to_string(waiting) + " of " + std::to_string(all) +
                             " threads");
  for (Thread& thread : b->threads) thread.state = State::kReady;
  return true;
}

AV_UNWATCHED inline void run_block(Block* b) {
  block = b;
  release(&b->barrier);
  for (unsigned i = 0; i < b->threads.size(); ++i) {
    Thread& thread = b->threads[i];
    thread.state = State::kReady;
    thread.index = i;
    thread.place = dim3(i % b->size.x, i / b->size.x % b->size.y, i / (b->size.x * b->size.y));
    prepare_fiber(&thread.fiber, thread_main);
  }
  do {
    for (bool ran = true; ran && !b->failure;) {
      ran = false;
      for (const unsigned i : b->order) {
        if (b->threads[i].state != State::kReady) continue;
        b->running = &b->threads[i];
        switch_fiber(&b->scheduler, &b->running->fiber, false);
        ran = true;
      }
    }
    if (b->failure) std::rethrow_exception(b->failure);
  } while (open_barrier(b));
  acquire(&b->end);
  block = nullptr;
}

// Memory to the byte, filled with the bits of a NaN.
inline void* poisoned(std::size_t bytes) {
  void* data = nullptr;
  if (posix_memalign(&data, 128, bytes) != 0) throw std::bad_alloc();
  std::memset(data, 0xff, bytes);
  return data;
}

// All blocks of one kernel, shared out over `settings().threads` threads.
inline void run_grid(dim3 grid, dim3 size, std::size_t shared_bytes, const std::function<void()>& kernel) {
  const std::size_t count = std::size_t{grid.x} * grid.y * grid.z, threads = std::size_t{size.x} * size.y * size.z;
  if (threads == 0 || threads > 1024) throw std::invalid_argument("a block has 1 to 1024 threads");
  std::atomic<std::size_t> next{0};
  std::atomic<bool> failed{false};
  std::exception_ptr failure;
  const auto work = [&] {
    Block b;
    b.grid = grid;
    b.size = size;
    b.kernel = kernel;
    b.threads = std::vector<Thread>(threads);
    b.order.resize(threads);
    adopt_fiber(&b.scheduler);
    for (std::size_t i; !failed && (i = next++) < count;) {
      b.place = dim3(i % grid.x, i / grid.x % grid.y, i / (std::size_t{grid.x} * grid.y));
      b.warps.assign((threads + 31) / 32, Warp{});
      std::iota(b.order.begin(), b.order.end(), 0u);
      if (settings().seed != 0) std::shuffle(b.order.begin(), b.order.end(), std::mt19937(settings().seed + i));
      b.dynamic = static_cast<char*>(shared_bytes > 0 ? poisoned(shared_bytes) : nullptr);
      try {
        run_block(&b);
      } catch (...) {
        if (!failed.exchange(true)) failure = std::current_exception();
      }
      std::free(b.dynamic);
      for (unsigned k = 0; k < b.shared_count; ++k) std::free(b.shared[k].data);
      b.shared_count = 0;
    }
    for (Thread& thread : b.threads) release_fiber(&thread.fiber);
  };
  if (settings().threads <= 1) {
    work();
  } else {
    std::vector<std::thread> workers;
    for (unsigned i = 0; i < settings().threads; ++i) workers.emplace_back(work);
    for (std::thread& worker : workers) worker.join();
  }
  if (failure) std::rethrow_exception(failure);
}

template <class Body>
int guarded(const Body& body) {
  try {
    body();
    return 0;
  } catch (const std::exception& error) {
    settings().error = error.what();
    return 1;
  }
}

// Our kernels take one argument, a struct, which a recorded launch keeps as a CUDA graph would. Exceptions end here, as
// an error code.
template <class Args>
int launch(const char* name, dim3 grid, dim3 size, std::size_t shared_bytes, void (*kernel)(Args),
           const std::remove_const_t<Args>& args) {
  settings().launched.insert(name);
  const auto run = [=] { run_grid(grid, size, shared_bytes, [&] { kernel(args); }); };
  if (settings().recording) {
    settings().graph.emplace_back(run);
    return 0;
  }
  return guarded(run);
}

// --- what kernels call -----------------------------------------------------------------------------------------------

AV_UNWATCHED inline void block_barrier() {
  release(&block->barrier);
  wait(State::kAtBlockBarrier);
  acquire(&block->barrier);
}

// Waits for the lanes of `mask`; returns which set of slots they filled. Orders no memory.
AV_UNWATCHED inline unsigned meet(std::uint32_t mask) {
  const unsigned index = self().index, lane = index % 32, first = index - lane;
  Warp& warp = block->warps[index / 32];
  const std::size_t lanes = block->threads.size() - first;
  if (lanes < 32) mask &= (1u << lanes) - 1;
  if ((mask >> lane & 1) == 0) throw std::logic_error("a lane that is not in the mask");
  const unsigned phase = warp.phase;
  warp.arrived |= 1u << lane;
  if ((warp.arrived & mask) != mask) {
    wait(State::kAtWarpBarrier);
    return phase;
  }
  warp.arrived &= ~mask;
  warp.phase ^= 1;
  for (unsigned i = 0; i < 32; ++i)
    if (mask >> i & 1)
      if (Thread& other = block->threads[first + i]; other.state == State::kAtWarpBarrier) other.state = State::kReady;
  return phase;
}

AV_UNWATCHED inline void warp_barrier(std::uint32_t mask = 0xffffffffu) {
  Warp& warp = block->warps[self().index / 32];
  release(&warp);
  meet(mask);
  acquire(&warp);
}

AV_UNWATCHED inline std::uint64_t exchange(std::uint32_t mask, std::uint64_t bits, unsigned source) {
  Warp& warp = block->warps[self().index / 32];
  if ((mask >> source & 1) == 0) throw std::logic_error("shuffle from a lane that is not in the mask");
  warp.slots[warp.phase][self().index % 32] = bits;
  const unsigned phase = meet(mask);
  return warp.slots[phase][source];
}

template <class T>
T shuffle(std::uint32_t mask, T x, unsigned source) {
  std::uint64_t bits = 0;
  std::memcpy(&bits, &x, sizeof(T));
  bits = exchange(mask, bits, source);
  std::memcpy(&x, &bits, sizeof(T));
  return x;
}

// A __shared__ array is known by where it is declared.
AV_UNWATCHED inline void* shared_array(const void* key, std::size_t bytes) {
  Block* own = block;
  for (unsigned i = 0; i < own->shared_count; ++i)
    if (own->shared[i].key == key) {
      acquire(&own->shared_ready);
      return own->shared[i].data;
    }
  if (own->shared_count == kSharedArrays) throw std::length_error("a kernel has more shared arrays than the emulator");
  own->shared[own->shared_count] = {key, poisoned(bytes)};
  release(&own->shared_ready);
  return own->shared[own->shared_count++].data;
}

inline float float_of_half(std::uint16_t bits) {
  _Float16 half;
  std::memcpy(&half, &bits, 2);
  return static_cast<float>(half);
}
inline std::uint16_t half_of_float(float x) {
  const auto half = static_cast<_Float16>(x);
  std::uint16_t bits;
  std::memcpy(&bits, &half, 2);
  return bits;
}
template <class To, class From>
To same_bits(From from) {
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}

}  // namespace emu

#define threadIdx (emu::self().place)
#define blockIdx (emu::block->place)
#define blockDim (emu::block->size)
#define gridDim (emu::block->grid)
#define __syncthreads() emu::block_barrier()
#define __syncwarp(...) emu::warp_barrier(__VA_ARGS__)
#define AV_DEVICE inline
#define AV_KERNEL(...) inline void
#define AV_SHARED(Type, name, count)   \
  static const char key_of_##name = 0; \
  Type* name = static_cast<Type*>(emu::shared_array(&key_of_##name, sizeof(Type) * (count)))
#define AV_DYNAMIC_SHARED(Type, name) Type* name = reinterpret_cast<Type*>(emu::block->dynamic)
#define AV_BITS_AS_FLOAT(bits) emu::same_bits<float>(static_cast<unsigned>(bits))
#define AV_FLOAT_AS_BITS(x) emu::same_bits<unsigned>(static_cast<float>(x))

template <class T>
T __shfl_xor_sync(unsigned mask, T x, int step) {
  return emu::shuffle(mask, x, emu::self().index % 32 ^ static_cast<unsigned>(step));
}
template <class T>
T __ldg(const T* from) {
  return *from;
}
inline void atomicAdd(float* to, float x) {
  auto* bits = reinterpret_cast<std::uint32_t*>(to);
  std::uint32_t seen = __atomic_load_n(bits, __ATOMIC_RELAXED), next;
  do next = emu::same_bits<std::uint32_t>(emu::same_bits<float>(seen) + x);
  while (!__atomic_compare_exchange_n(bits, &seen, next, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
}
inline void atomicAdd(int* to, int x) { __atomic_fetch_add(to, x, __ATOMIC_RELAXED); }
inline void atomicAdd(float4* to, float4 x) {
  auto* each = reinterpret_cast<float*>(to);
  atomicAdd(each, x.x);
  atomicAdd(each + 1, x.y);
  atomicAdd(each + 2, x.z);
  atomicAdd(each + 3, x.w);
}
