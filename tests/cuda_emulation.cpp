// Runs kernels.cu on a CPU, one block after the other, so that a test can hold the device code against the host's
// without a GPU. A CUDA thread is a fiber, which runs until it waits; under THREADS, for the thread sanitizer, it is a
// thread of the operating system, which is slow.
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifdef THREADS
#include <barrier>
#include <thread>
#else
#include <ucontext.h>
#endif

#include <memory>
#include <vector>

#define __CUDACC__
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __shared__
#define __launch_bounds__(...)

struct Index {
  unsigned x = 0, y = 0;
};
static thread_local Index threadIdx;
static Index blockIdx, blockDim, gridDim;
#ifdef THREADS
using Barrier = std::barrier<>;
#else
static ucontext_t scheduler;
static std::vector<ucontext_t> fibers;
struct Barrier {
  int expected, arrived = 0, generation = 0;
  explicit Barrier(int threads) : expected(threads) {}
  void arrive_and_wait() {
    const int before = generation;
    if (++arrived == expected) {
      arrived = 0;
      ++generation;
    }
    while (generation == before) swapcontext(&fibers[threadIdx.x], &scheduler);
  }
};
#endif
static std::unique_ptr<Barrier> block_barrier;
static std::vector<std::unique_ptr<Barrier>> warp_barriers;
static std::vector<float> exchanged;
extern "C" {
float memory[1 << 16];
}

static void __syncthreads() {
#ifndef WITHOUT_BARRIERS  // a test leaves them out to see that races are found
  block_barrier->arrive_and_wait();
#endif
}
static void __syncwarp() { warp_barriers[threadIdx.x / 32]->arrive_and_wait(); }
static float __shfl_xor_sync(unsigned, float value, int width) {
  exchanged[threadIdx.x] = value;
  __syncwarp();
  const float other = exchanged[threadIdx.x ^ width];
  __syncwarp();
  return other;
}

#include "kernels.cu"

#ifdef THREADS
template <class Kernel> static void run_block(int threads, Kernel kernel) {
  std::vector<std::thread> running;
  for (int thread = 0; thread < threads; ++thread) {
    running.emplace_back([=] {
      threadIdx.x = thread;
      kernel();
    });
  }
  for (std::thread& thread : running) thread.join();
}
#else
static std::vector<bool> has_ended;
static void* running_kernel;
template <class Kernel> static void run_fiber() {
  (*static_cast<Kernel*>(running_kernel))();
  has_ended[threadIdx.x] = true;
}
template <class Kernel> static void run_block(int threads, Kernel kernel) {
  static std::vector<std::vector<char>> stacks;
  while (static_cast<int>(stacks.size()) < threads) stacks.emplace_back(64 * 1024);
  fibers.resize(threads);
  has_ended.assign(threads, false);
  running_kernel = &kernel;
  for (int thread = 0; thread < threads; ++thread) {
    getcontext(&fibers[thread]);
    fibers[thread].uc_stack.ss_sp = stacks[thread].data();
    fibers[thread].uc_stack.ss_size = stacks[thread].size();
    fibers[thread].uc_link = &scheduler;
    makecontext(&fibers[thread], run_fiber<Kernel>, 0);
  }
  for (int left = threads; left > 0;) {
    for (int thread = 0; thread < threads; ++thread) {
      if (has_ended[thread]) continue;
      threadIdx.x = thread;
      swapcontext(&scheduler, &fibers[thread]);
      left -= has_ended[thread];
    }
  }
}
#endif

template <class Kernel> static void launch(int blocks, int blocks_y, int threads, Kernel kernel) {
  blockDim.x = threads;
  gridDim.x = blocks;
  gridDim.y = blocks_y;
  exchanged.assign(threads, 0.0f);
  for (int block = 0; block < blocks * blocks_y; ++block) {
    blockIdx.x = block % blocks;
    blockIdx.y = block / blocks;
    block_barrier = std::make_unique<Barrier>(threads);
    warp_barriers.clear();
    for (int warp = 0; warp < threads / 32; ++warp) warp_barriers.push_back(std::make_unique<Barrier>(32));
    for (float& x : memory) x = NAN;  // shared memory starts undefined
    run_block(threads, kernel);
  }
}

// Each kernel behind emulate_<kernel>, a pointer to a function: the grid's two sizes, the threads of a block, then what
// the kernel takes.
template <auto kernel> struct Emulated;
template <class... A, void (*kernel)(A...)> struct Emulated<kernel> {
  static void run(int blocks, int blocks_y, int threads, A... arguments) {
    launch(blocks, blocks_y, threads, [=] { kernel(arguments...); });
  }
};
#define KERNELS(X)                                                                                              \
  X(CudaRbcStep) X(CudaRbcReset) X(CudaRbcEncode) X(CudaRbcReturns) X(CudaRbcSample) X(CudaRbcLoss) X(CudaRbcAddRelu) \
  X(CudaRbcMaskAndSum) X(CudaRbcNorm) X(CudaRbcAdam)

extern "C" {
#define EMULATED(kernel) auto emulate_##kernel = &Emulated<kernel>::run;
KERNELS(EMULATED)
}
