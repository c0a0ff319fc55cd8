// Enough of CUDA to run a kernel on a CPU, one block at a time: every thread is a fiber, and a fiber that waits (for its
// block or its warp) lets the others run. Slow and exact about who waits for whom; it knows nothing of memory order.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#define __device__
#define __global__
#define __shared__ static
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) __attribute__((aligned(n)))

struct uint2 {
  uint32_t x, y;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct Index {
  unsigned x = 0;
};
inline Index threadIdx, blockIdx, gridDim;

struct __nv_bfloat16 {
  uint16_t bits;
};
struct __half {
  uint16_t bits;
};
inline float __bfloat162float(__nv_bfloat16 value) {
  const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
  float out;
  std::memcpy(&out, &bits, 4);
  return out;
}
inline __nv_bfloat16 __float2bfloat16(float value) {  // finite values
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return {static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}
inline float __half2float(__half value) {  // finite values
  const int exponent = (value.bits >> 10) & 31, fraction = value.bits & 0x3ff;
  const float size = exponent == 0 ? std::ldexp(float(fraction), -24) : std::ldexp(1024.0f + fraction, exponent - 25);
  return value.bits & 0x8000u ? -size : size;
}
inline __half __float2half(float value) {  // values that stay finite
  const int exponent = std::max(std::ilogb(value), -14);
  const int units = static_cast<int>(std::nearbyint(std::ldexp(std::fabs(value), 10 - exponent)));  // from 1,024 on if normal
  return {static_cast<uint16_t>((std::signbit(value) ? 0x8000 : 0) + ((exponent + 14) << 10) + units)};
}

namespace on_cpu {

constexpr size_t kStack = 128 * 1024;

struct Block {
  std::vector<ucontext_t> fibers;
  std::vector<std::unique_ptr<char[]>> stacks;
  std::vector<bool> done;
  ucontext_t scheduler;
  unsigned current = 0;
  std::vector<uint64_t> exchanged;          // what each thread offers to its warp
  std::vector<unsigned> warp_round, round;  // rounds finished by the warp, by the thread
  std::vector<unsigned> warp_arrived;
  unsigned block_arrived = 0, block_round = 0;
  std::function<void()> body;
};
inline Block* running = nullptr;

inline void let_others_run() {
  Block& block = *running;
  const unsigned self = block.current;
  swapcontext(&block.fibers[self], &block.scheduler);
  threadIdx.x = self;
}

inline void enter() {
  running->body();
  running->done[running->current] = true;
  swapcontext(&running->fibers[running->current], &running->scheduler);
}

inline void run_block(unsigned threads, const std::function<void()>& body) {
  Block block;
  running = &block;
  block.body = body;
  block.fibers.resize(threads);
  block.done.assign(threads, false);
  block.exchanged.assign(threads, 0);
  block.warp_round.assign(threads / 32, 0);
  block.warp_arrived.assign(threads / 32, 0);
  for (unsigned thread = 0; thread < threads; ++thread) {
    block.stacks.push_back(std::make_unique<char[]>(kStack));
    getcontext(&block.fibers[thread]);
    block.fibers[thread].uc_stack.ss_sp = block.stacks[thread].get();
    block.fibers[thread].uc_stack.ss_size = kStack;
    block.fibers[thread].uc_link = nullptr;
    makecontext(&block.fibers[thread], enter, 0);
  }
  for (bool all_done = false; !all_done;) {
    all_done = true;
    for (unsigned thread = 0; thread < threads; ++thread) {
      if (block.done[thread]) continue;
      all_done = false;
      block.current = threadIdx.x = thread;
      swapcontext(&block.scheduler, &block.fibers[thread]);
    }
  }
  running = nullptr;
}

inline void wait_for_warp() {
  Block& block = *running;
  const unsigned warp = threadIdx.x / 32, round = block.warp_round[warp];
  if (++block.warp_arrived[warp] == 32) {
    block.warp_arrived[warp] = 0;
    ++block.warp_round[warp];
  }
  while (block.warp_round[warp] == round) let_others_run();
}

// kernel(arguments) over `blocks` blocks of `threads` threads, in the order that `blocks` lists them.
inline void launch(const std::vector<unsigned>& blocks, unsigned threads, const std::function<void()>& kernel) {
  gridDim.x = static_cast<unsigned>(blocks.size());
  for (unsigned block : blocks) {
    blockIdx.x = block;
    run_block(threads, kernel);
  }
}

}  // namespace on_cpu

inline void __syncthreads() {
  on_cpu::Block& block = *on_cpu::running;
  const unsigned round = block.block_round;
  if (++block.block_arrived == block.fibers.size()) {
    block.block_arrived = 0;
    ++block.block_round;
  }
  while (block.block_round == round) on_cpu::let_others_run();
}

template <typename T>
T __shfl_xor_sync(unsigned, T value, int lanes) {
  on_cpu::Block& block = *on_cpu::running;
  const unsigned self = threadIdx.x;
  std::memcpy(&block.exchanged[self], &value, sizeof(T));
  on_cpu::wait_for_warp();
  T other;
  std::memcpy(&other, &block.exchanged[self ^ static_cast<unsigned>(lanes)], sizeof(T));
  on_cpu::wait_for_warp();
  return other;
}

template <typename T>
T __ldg(const T* from) {
  return *from;
}

inline void __threadfence() {}

inline int atomicAdd(int* target, int value) {
  const int before = *target;
  *target += value;
  return before;
}
