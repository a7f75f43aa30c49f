// WarpDrive's CUDA entry points: threads, shared memory and barriers for the functions of economy.h and heads.h.
// One block per environment; agents are looped with the block's stride, so any number of agents fits any block size,
// which must be a multiple of 32. The number of environments is the grid's size.
#include "economy.h"
#include "encode.h"
#include "heads.h"
#include "returns.h"

using namespace rbc;

namespace {

// One agent on one thread.
struct Lane {
  int i;
  __device__ float zero() const { return 0.0f; }
  __device__ float splat(float x) const { return x; }
  __device__ float load(const float* from, int stride = 1) const { return from[i * stride]; }
  __device__ int load(const int* from, int stride = 1) const { return from[i * stride]; }
  __device__ float look_up(const float* table, int index) const { return table[index]; }
  __device__ void store(float* to, float x, int stride = 1) const { to[i * stride] = x; }
  __device__ void store(int* to, int x, int stride = 1) const { to[i * stride] = x; }
};

struct BlockTeam {
  int thread, num_threads, lane, warp, num_warps;

  __device__ BlockTeam()
      : thread(threadIdx.x), num_threads(blockDim.x), lane(threadIdx.x & 31), warp(threadIdx.x >> 5),
        num_warps(blockDim.x >> 5) {}
  template <class F> __device__ void each(int n, F f) {
    for (int i = thread; i < n; i += num_threads) f(i);
  }
  template <class F> __device__ void each_pair(int rows, int columns, F f) {
    for (int n = thread; n < rows * columns; n += num_threads) f(n / columns, n % columns);
  }
  template <class F> __device__ void each_lanes(int n, F f) {
    for (int i = thread; i < n; i += num_threads) f(Lane{i});
  }
  template <class F> __device__ void each_group(int n, F f) {
    for (int j = warp; j < n; j += num_warps) {
      f(j);
      __syncwarp();
    }
  }
  template <class F> __device__ float sum(int n, F term) {
    float partial = 0.0f;
    for (int i = lane; i < n; i += 32) partial += term(Lane{i});
    for (int width = 16; width > 0; width /= 2) partial += __shfl_xor_sync(0xffffffffu, partial, width);
    return partial;
  }
  __device__ bool leads() const { return lane == 0; }
  __device__ bool first() const { return thread == 0; }
  __device__ void barrier() { __syncthreads(); }
};

// Draws for all agents of a type in environment e, agents first … first+count-1; a row of logits is worked on where it
// lies. Threads go on with the next type where the one before ended.
__device__ void sample_type(int e, int num_envs, int period, const int* draw_words, int& first, int count,
                            const Heads& heads, float* logits, int* actions, int* actions_batch,
                            float* log_probabilities_batch, float* values_batch) {
  const DrawKey key = {static_cast<uint32_t>(draw_words[DRAW_SEED]), static_cast<uint32_t>(draw_words[DRAW_ITERATION]),
                       static_cast<uint32_t>(period), static_cast<uint32_t>(draw_words[DRAW_STREAM])};
  const int threads = blockDim.x, start = (threadIdx.x + threads - first % threads) % threads;
  for (int i = start; i < count; i += threads) {
    const size_t row = static_cast<size_t>(e) * count + i;
    const size_t slot = static_cast<size_t>(period) * num_envs * count + row;
    float* const x = logits + row * (heads.num_actions() + 1);
    const float value = x[heads.num_actions()];
    const float log_probability = draw_actions<float>(
        x, 1, heads, key, static_cast<uint32_t>(first + i), environment_number(draw_words, e), draw_words[DRAW_FLAGS],
        [&](int h, int chosen) {
          actions[row * heads.num_heads + h] = chosen;
          if (actions_batch) actions_batch[slot * heads.num_heads + h] = chosen;
        });
    if (actions_batch) {
      values_batch[slot] = value;
      log_probabilities_batch[slot] = log_probability;
    }
  }
  first += count;
}

}  // namespace

extern "C" {

__global__ void CudaRbcStep(RBC_STEP_ARGUMENTS) {
  extern __shared__ float memory[];
  BlockTeam team;
  const Environment env = environment(blockIdx.x, RBC_STEP_VALUES);
  const Scratch scratch(memory, env.num_firms);
  step(team, env, scratch);
}

__global__ void CudaRbcReset(RBC_RESET_ARGUMENTS) {
  BlockTeam team;
  reset(team, blockIdx.x, RBC_RESET_VALUES);
}

__global__ void CudaRbcEncode(RBC_ENCODE_ARGUMENTS) {
  BlockTeam team;
  encode(team, blockIdx.x, RBC_ENCODE_VALUES);
}

__global__ void CudaRbcReturns(RBC_RETURNS_ARGUMENTS) {
  BlockTeam team;
  take_returns(team, blockIdx.x, gridDim.x, RBC_RETURNS_VALUES);
}

__global__ void CudaRbcSample(RBC_SAMPLE_ARGUMENTS) {
  const int e = blockIdx.x, num_envs = gridDim.x, period = recorded_period(timestep[e], sizes[NUM_PERIODS]);
  int first = 0;
#define RBC_SAMPLE(type) sample_type(e, num_envs, period, draw_words, first, RBC_SAMPLE_VALUES(type))
  RBC_AGENT_TYPES(RBC_SAMPLE, ;);
#undef RBC_SAMPLE
}

// Loss gradient in place of the logits (float32 or bfloat16), blockDim.x rows at a time side by side in shared memory, which holds
// 2 (actions + 1) blockDim.x floats and num_heads blockDim.x chosen actions. Each block writes its statistics to its
// own row of block_statistics, in a fixed order; adding the rows up is the caller's.
__global__ void CudaRbcLoss(int num_rows, int num_heads, const int* offsets, const unsigned char* allowed,
                            void* logits, int bfloat16, const int* actions, const float* old_log_probability,
                            const float* advantage, const float* target, const float* old_value, const float* loss,
                            float* block_statistics) {
  extern __shared__ float memory[];
  const Heads heads = {num_heads, offsets, allowed};
  const int width = heads.num_actions() + 1, stride = blockDim.x, lane = threadIdx.x;
  float* const x = memory;
  float* const scratch = memory + width * stride;
  int* const chosen = reinterpret_cast<int*>(scratch + width * stride);
  float sums[NUM_LOSS_STATISTICS] = {};
  const int first = blockIdx.x * stride, count = num_rows - first < stride ? num_rows - first : stride;
  for (int n = threadIdx.x; n < count * width; n += stride) {
    const size_t at = static_cast<size_t>(first) * width + n;
    x[(n % width) * stride + n / width] =
        bfloat16 ? from_bfloat16(static_cast<const uint16_t*>(logits)[at]) : static_cast<const float*>(logits)[at];
  }
  for (int n = threadIdx.x; n < count * num_heads; n += stride) {
    chosen[(n % num_heads) * stride + n / num_heads] = actions[static_cast<size_t>(first) * num_heads + n];
  }
  __syncthreads();
  if (lane < count) {
    const int row = first + lane;
    const Sample<float> sample = {old_log_probability[row], advantage[row], target[row], old_value[row]};
    loss_gradient<float>(x + lane, scratch + lane, stride, heads, sample, loss,
                         [&](int h) { return chosen[h * stride + lane]; }, sums);
  }
  __syncthreads();
  for (int n = threadIdx.x; n < count * width; n += stride) {
    const size_t at = static_cast<size_t>(first) * width + n;
    const float gradient = x[(n % width) * stride + n / width];
    if (bfloat16) {
      static_cast<uint16_t*>(logits)[at] = rounded_to_bfloat16(gradient);
    } else {
      static_cast<float*>(logits)[at] = gradient;
    }
  }
  for (int s = 0; s < NUM_LOSS_STATISTICS; ++s) {
    __syncthreads();
    x[lane] = sums[s];
    __syncthreads();
    if (lane == 0) {
      float total = 0.0f;
      for (int n = 0; n < stride; ++n) total += x[n];
      block_statistics[blockIdx.x * NUM_LOSS_STATISTICS + s] = total;
    }
  }
}

}  // extern "C"
