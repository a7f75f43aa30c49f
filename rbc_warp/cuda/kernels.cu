// WarpDrive's CUDA entry points: threads, shared memory and barriers for the functions of economy.h and heads.h. One
// block per environment, unless a kernel says otherwise; agents are looped with the block's stride, so any number of
// agents fits any block size, which must be a multiple of 32. The number of environments is the grid's size.
#include "adam.h"
#include "economy.h"
#include "encode.h"
#include "heads.h"
#include "returns.h"

using namespace rbc;

namespace {

// The threads of a block of the kernels that say so, as measured; the loss's fit several times into a multiprocessor.
#define RBC_THREADS(X) X(SAMPLE, 256) X(LOSS, 192) X(LAYER, 256) X(NORM, 256)
#define RBC_ENUMERATOR(name, number) name##_THREADS = number,
enum Threads { RBC_THREADS(RBC_ENUMERATOR) };
#undef RBC_ENUMERATOR

// How many blocks of a layer's threads are to fit into a multiprocessor.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 860
constexpr int kLayersAtOnce = 3;
#else
constexpr int kLayersAtOnce = 4;
#endif

// The loads that a thread has in flight, in a layer's rows; the numbers of a load, where rows begin at multiples of it; the
// blocks that add up a gradient's squares, a warp's lanes.
#define RBC_PORTIONS(X) X(AT_ONCE, 4) X(WIDEST, 4) X(NORM_BLOCKS, 32)
#define RBC_ENUMERATOR(name, number) name = number,
enum Portions { RBC_PORTIONS(RBC_ENUMERATOR) };
#undef RBC_ENUMERATOR

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
    return sum_over_warp(partial);
  }
  __device__ float sum_over_warp(float partial) const {
    for (int width = 16; width > 0; width /= 2) partial += __shfl_xor_sync(0xffffffffu, partial, width);
    return partial;
  }
  __device__ bool leads() const { return lane == 0; }
  __device__ bool first() const { return thread == 0; }
  __device__ void barrier() const { __syncthreads(); }
};

__device__ float to_number(float x) { return x; }
__device__ float to_number(uint16_t x) { return from_bfloat16(x); }
__device__ void set_number(float& to, float x) { to = x; }
__device__ void set_number(uint16_t& to, float x) { to = rounded_to_bfloat16(x); }

// Calls f with an array as what it holds: float32, or bfloat16's bits.
template <class F> __device__ void with_type(const void* array, int bfloat16, F f) {
  if (bfloat16) {
    f(static_cast<const uint16_t*>(array));
  } else {
    f(static_cast<const float*>(array));
  }
}
template <class F> __device__ void with_type(void* array, int bfloat16, F f) {
  if (bfloat16) {
    f(static_cast<uint16_t*>(array));
  } else {
    f(static_cast<float*>(array));
  }
}

template <class T> __device__ const T* same_type(const T*, const void* array) { return static_cast<const T*>(array); }

// Neighboring numbers of a row, loaded and stored at once.
template <int kWide, class T> struct alignas(kWide * sizeof(T)) Wide {
  T at[kWide];
};
template <int kWide, class T> __device__ Wide<kWide, T>* wide(T* at) { return reinterpret_cast<Wide<kWide, T>*>(at); }
template <int kWide, class T> __device__ const Wide<kWide, T>* wide(const T* at) {
  return reinterpret_cast<const Wide<kWide, T>*>(at);
}

// Rows of a network's outputs that a block works on, in shared memory: `pitch` numbers of each as they lie outside, then
// more, `numbers` in all. A warp loads and stores a row at a time; a thread works on one head of one row, its neighbors
// on the same head of the next rows. These lie an odd number of words apart, in different banks.
struct Rows {
  BlockTeam team;
  float* memory;
  int rows, stride, pitch, count;  // rows: a power of 2, at most 32; count of them are there

  __device__ Rows(float* memory, int rows, int numbers, int pitch)
      : memory(memory), rows(rows), stride(numbers | 1), pitch(pitch), count(0) {}

  __device__ float* operator[](int r) const { return memory + r * stride; }
  __device__ uint32_t* behind() const { return reinterpret_cast<uint32_t*>(memory + rows * stride); }

  template <class T> __device__ void load(const T* from) const { pitch % 2 ? load_by<1>(from) : load_by<2>(from); }
  template <class T> __device__ void store(T* to) const { pitch % 2 ? store_by<1>(to) : store_by<2>(to); }
  template <int kWide, class T> __device__ void load_by(const T* from) const {
    each_part<kWide>(from, [](const auto& outside, float* inside) {
#pragma unroll
      for (int i = 0; i < kWide; ++i) inside[i] = to_number(outside.at[i]);
    });
  }
  template <int kWide, class T> __device__ void store_by(T* to) const {
    each_part<kWide>(to, [](auto& outside, const float* inside) {
      Wide<kWide, T> numbers;
#pragma unroll
      for (int i = 0; i < kWide; ++i) set_number(numbers.at[i], inside[i]);
      outside = numbers;
    });
  }
  // Calls f with each of a thread's parts of rows outside and inside.
  template <int kWide, class T, class F> __device__ void each_part(T* outside, F f) const {
    const int start = team.warp * pitch, step = team.num_warps * pitch;
#pragma unroll 2
    for (int k = team.lane * kWide; k < pitch; k += 32 * kWide) {
      T* to = outside + start + k;
      float* inside = (*this)[team.warp] + k;
#pragma unroll 3
      for (int r = team.warp; r < count; r += team.num_warps) {
        f(*wide<kWide>(to), inside);
        to += step;
        inside += team.num_warps * stride;
      }
    }
  }
  // Calls f with each row and n numbers, a head's, say.
  template <class F> __device__ void each(int n, F f) {
    const unsigned thread = team.thread, step = rows;
    const int r = thread % step;
    for (int h = thread / step; h < n && r < count; h += team.num_threads / step) f(r, h);
  }
};

// Which actions of short heads are allowed, a word to each head.
__device__ void note_allowed(const BlockTeam& team, const Heads& heads, uint32_t* masks) {
  for (int h = team.thread; h < heads.num_heads; h += team.num_threads) {
    const Head head = heads[h];
    uint32_t mask = 0;
    RBC_UNROLL(4) for (int k = 0; k < head.size && k < kFew; ++k) mask |= static_cast<uint32_t>(head.allows(k)) << k;
    masks[h] = mask;
  }
}

// A short head's numbers between a row in shared memory and a thread's registers.
__device__ void load(const ShortHead& head, const float* row, float* own) {
#pragma unroll
  for (int k = 0; k < kFew; ++k) own[k] = head.allows(k) ? row[k] : 0.0f;
}
__device__ void store(int size, const float* own, float* row) {
#pragma unroll
  for (int k = 0; k < kFew; ++k) {
    if (k < size) row[k] = own[k];
  }
}

// Rows of a hidden layer, (rows, columns): x becomes max(x + shared, 0), one row of `shared` to each group of rows. As
// torch's, sums are rounded before the maximum, and what is not a number stays so. columns is a multiple of kWide.
template <int kWide, class T>
__device__ void add_relu(int num_rows, int rows_of_group, int columns, T* x, const float* shared) {
  const BlockTeam team;
  const int first = (blockIdx.x * team.num_warps + team.warp) * AT_ONCE;
  for (int column = team.lane * kWide; column < columns; column += 32 * kWide) {
    Wide<kWide, T>* const own = wide<kWide>(x + static_cast<size_t>(first) * columns + column);
    Wide<kWide, T> loaded[AT_ONCE];
    Wide<kWide, float> added[AT_ONCE];
#pragma unroll
    for (int n = 0; n < AT_ONCE; ++n) {
      if (first + n >= num_rows) continue;
      loaded[n] = own[n * columns / kWide];
      added[n] = *wide<kWide>(shared + static_cast<size_t>((first + n) / rows_of_group) * columns + column);
    }
#pragma unroll
    for (int n = 0; n < AT_ONCE; ++n) {
      if (first + n >= num_rows) continue;
#pragma unroll
      for (int k = 0; k < kWide; ++k) {
        T rounded, sum;
        set_number(rounded, added[n].at[k]);
        set_number(sum, to_number(loaded[n].at[k]) + to_number(rounded));
        loaded[n].at[k] = to_number(sum) <= 0.0f ? T(0) : sum;
      }
      own[n * columns / kWide] = loaded[n];
    }
  }
}

// Sets 32 · kWide columns of one group's gradient to 0 where the activation, if given, is not positive, and sums them up
// over the group's rows: sixteen rows in order, then sixteen such sums, then those; up to 4,096 rows, torch's order on a
// CPU. `parts` holds 16 × 32 · kWide numbers; columns and pitch are multiples of kWide.
template <int kWide, class T>
__device__ void mask_and_sum(int rows_of_group, int columns, int pitch, T* gradient, const T* activation, float* sums,
                             float* parts) {
  constexpr int kRows = 16, kParts = 16, kColumns = 32 * kWide;
  using Numbers = Wide<kWide, T>;
  const BlockTeam team;
  const int inside = team.lane * kWide, column = blockIdx.y * kColumns + inside;
  const size_t start = static_cast<size_t>(blockIdx.x) * rows_of_group * pitch + column;
  const auto numbers_at = [](auto* array, size_t at) { return reinterpret_cast<Numbers*>(array + at); };
  float total[3][kWide] = {};  // of less than sixteen rows, of less than sixteen times sixteen, and of all before
  for (int first = 0; first < rows_of_group; first += kRows * kParts) {
    const int left = rows_of_group - first, rows = left < kRows * kParts ? left : kRows * kParts;
    for (int part = team.warp; part * kRows < rows && column < columns; part += team.num_warps) {
      const int end = rows < (part + 1) * kRows ? rows : (part + 1) * kRows;
      float sum[kWide] = {};
      for (int row = part * kRows; row < end; row += AT_ONCE) {
        const size_t at = start + static_cast<size_t>(first + row) * pitch;
        Numbers masked[AT_ONCE], active[AT_ONCE];
#pragma unroll
        for (int n = 0; n < AT_ONCE; ++n) {
          const size_t own = at + (row + n < end ? static_cast<size_t>(n) * pitch : 0);
          masked[n] = *numbers_at(gradient, own);
          if (activation) active[n] = *reinterpret_cast<const Numbers*>(activation + own);
        }
#pragma unroll
        for (int n = 0; n < AT_ONCE; ++n) {
          if (row + n >= end) break;
#pragma unroll
          for (int k = 0; k < kWide; ++k) {
            if (activation && to_number(active[n].at[k]) <= 0.0f) masked[n].at[k] = T(0);
            sum[k] += to_number(masked[n].at[k]);
          }
          if (activation) *numbers_at(gradient, at + static_cast<size_t>(n) * pitch) = masked[n];
        }
      }
      for (int k = 0; k < kWide; ++k) parts[part * kColumns + inside + k] = sum[k];
    }
    team.barrier();
    if (team.warp == 0) {
      const int full = rows / kRows;
#pragma unroll
      for (int k = 0; k < kWide; ++k) {
        RBC_UNROLL(4) for (int part = 0; part < full; ++part) total[1][k] += parts[part * kColumns + inside + k];
        if (full * kRows < rows) total[0][k] = parts[full * kColumns + inside + k];
        if (full == kParts) total[2][k] += total[1][k], total[1][k] = 0.0f;
      }
    }
    team.barrier();
  }
  if (team.warp == 0 && column < columns) {
    for (int k = 0; k < kWide; ++k) {
      sums[static_cast<size_t>(blockIdx.x) * columns + column + k] = total[0][k] + total[1][k] + total[2][k];
    }
  }
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

// A block takes `rows_of_block` rows of one type, whatever environments they are of; shared memory holds them, and two
// numbers of each of their heads. There are as many blocks of the grid's first axis as environments, and enough of the
// second for all rows.
__global__ void __launch_bounds__(SAMPLE_THREADS, 4) CudaRbcSample(RBC_SAMPLE_ARGUMENTS) {
  extern __shared__ float memory[];
  int block = blockIdx.y * gridDim.x + blockIdx.x, type = -1, first_agent = 0, next_agent = 0;
#define RBC_FIND(name)                                                                         \
  if (block >= 0) {                                                                            \
    ++type;                                                                                    \
    first_agent = next_agent;                                                                  \
    next_agent += name##_count;                                                                \
    block -= (static_cast<int>(gridDim.x) * name##_count + rows_of_block - 1) / rows_of_block; \
  }
  RBC_AGENT_TYPES(RBC_FIND, )
#undef RBC_FIND
  if (block >= 0) return;
#define RBC_OF_TYPE(what) (type == 0 ? consumer_##what : type == 1 ? firm_##what : government_##what)
  const int count = next_agent - first_agent, num_rows = gridDim.x * count;
  const Heads heads = {RBC_OF_TYPE(heads), RBC_OF_TYPE(offsets), RBC_OF_TYPE(allowed)};
  const int num_heads = heads.num_heads;
  const int first = (block + (num_rows + rows_of_block - 1) / rows_of_block) * rows_of_block;
  const int width = heads.num_actions() + 1;
  const int pitch = RBC_OF_TYPE(pitch);
  Rows rows(memory, rows_of_block, pitch + 2 * num_heads, pitch);
  rows.count = num_rows - first < rows_of_block ? num_rows - first : rows_of_block;
  const auto log_probabilities = [&](int r) { return rows[r] + pitch; };
  const auto chosen = [&](int r) { return reinterpret_cast<int*>(rows[r] + pitch + num_heads); };
  const auto period_of = [&](int row) { return recorded_period(timestep[row / count], sizes[NUM_PERIODS]); };
  const auto slot_of = [&](int row) { return static_cast<size_t>(period_of(row)) * num_rows + row; };
  const BlockTeam& team = rows.team;
  uint32_t* const masks = rows.behind();
  const int flags = draw_words[DRAW_FLAGS];

  const size_t start = static_cast<size_t>(first) * pitch;
  with_type(RBC_OF_TYPE(logits), bfloat16, [&](auto* logits) { rows.load(logits + start); });
  note_allowed(team, heads, masks);
  rows.each((num_heads + 3) / 4, [&](int r, int n) {  // a head's word waits in the place of its action
    const int row = first + r, e = row / count, agent = first_agent + row - e * count;
    const DrawKey key = {static_cast<uint32_t>(draw_words[DRAW_SEED]),
                         static_cast<uint32_t>(draw_words[DRAW_ITERATION]), static_cast<uint32_t>(period_of(row)),
                         static_cast<uint32_t>(draw_words[DRAW_STREAM])};
    const Philox<uint32_t> random =
        random_words(key, static_cast<uint32_t>(agent), environment_number(draw_words, e), n);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if (4 * n + k < num_heads) chosen(r)[4 * n + k] = static_cast<int>(random.word[k]);
    }
  });
  __syncthreads();
  rows.each(num_heads, [&](int r, int h) {
    const Head head = heads[h];
    float *const x = rows[r] + heads.offsets[h], &log_probability = log_probabilities(r)[h];
    int& action = chosen(r)[h];
    const uint32_t word = static_cast<uint32_t>(action);
    if (head.size <= kFew) {
      const ShortHead short_head = {masks[h], x};
      float own[kFew];
      load(short_head, x, own);
      log_probability = draw_head<float>(own, short_head, flags, word, action);
    } else {
      log_probability = draw_head<float>(x, head, flags, word, action);
    }
  });
  __syncthreads();
  for (int r = team.warp; r < rows.count; r += team.num_warps) {
    const size_t row = first + r, slot = RBC_OF_TYPE(actions_batch) ? slot_of(first + r) : 0;
    for (int h = team.lane; h < num_heads; h += 32) {
      const int action = chosen(r)[h];
      RBC_OF_TYPE(actions)[row * num_heads + h] = action;
      if (RBC_OF_TYPE(actions_batch)) RBC_OF_TYPE(actions_batch)[slot * num_heads + h] = action;
    }
  }
  if (team.thread < rows.count && RBC_OF_TYPE(actions_batch)) {
    const int r = team.thread;
    float log_probability = 0.0f;
    for (int h = 0; h < num_heads; ++h) log_probability = log_probability + log_probabilities(r)[h];
    const size_t slot = slot_of(first + r);
    RBC_OF_TYPE(log_probabilities_batch)[slot] = log_probability;
    RBC_OF_TYPE(values_batch)[slot] = rows[r][width - 1];
  }
#undef RBC_OF_TYPE
}

// Loss gradient in place of the logits, `rows_of_block` rows at a time; shared memory holds their logits, weights,
// softmax terms and statistics. A block adds its statistics to its own row of block_statistics, in a fixed order;
// adding the rows up is the caller's.
__global__ void __launch_bounds__(LOSS_THREADS, 5)
    CudaRbcLoss(int num_rows, int rows_of_block, int num_heads, const int* offsets, const unsigned char* allowed,
                void* logits, int pitch, int bfloat16, const int* actions, const float* old_log_probability,
                const float* advantage, const float* target, const float* old_value, const float* loss,
                float* block_statistics) {
  extern __shared__ float memory[];
  const Heads heads = {num_heads, offsets, allowed};
  const int num_actions = heads.num_actions(), width = num_actions + 1;
  Rows rows(memory, rows_of_block, pitch + width + NUM_SOFTMAX_TERMS * num_heads + NUM_LOSS_STATISTICS, pitch);
  const BlockTeam& team = rows.team;
  const auto weights = [&](int r) { return rows[r] + pitch; };
  // The policy's, in the place of the value's weight, which has none.
  const auto gradient = [&](int r) -> float& { return weights(r)[num_actions]; };
  const auto terms = [&](int r, int h) { return rows[r] + pitch + width + h * NUM_SOFTMAX_TERMS; };
  const auto sums = [&](int r) { return terms(r, num_heads); };
  uint32_t* const masks = rows.behind();
  note_allowed(team, heads, masks);
  if (team.thread < rows_of_block) {
    for (int s = 0; s < NUM_LOSS_STATISTICS; ++s) sums(team.thread)[s] = 0.0f;
  }
  for (int first = blockIdx.x * rows_of_block; first < num_rows; first += gridDim.x * rows_of_block) {
    rows.count = num_rows - first < rows_of_block ? num_rows - first : rows_of_block;
    const size_t start = static_cast<size_t>(first) * pitch;
    const auto chosen = [&](int r, int h) { return actions[static_cast<size_t>(first + r) * num_heads + h]; };
    Sample<float> sample = {};
    if (team.thread < rows.count) {
      const int row = first + team.thread;
      sample = {old_log_probability[row], advantage[row], target[row], old_value[row]};
    }
    with_type(static_cast<const void*>(logits), bfloat16, [&](auto* from) { rows.load(from + start); });
    __syncthreads();
    rows.each(num_heads, [&](int r, int h) {
      const Head head = heads[h];
      const int action = heads.offsets[h], taken = chosen(r, h);
      if (head.size <= kFew) {
        const ShortHead short_head = {masks[h], rows[r] + action};
        float x[kFew], weight[kFew];
        load(short_head, rows[r] + action, x);
        softmax<float>(x, weight, short_head, taken, terms(r, h));
        store(head.size, weight, weights(r) + action);
      } else {
        softmax<float>(rows[r] + action, weights(r) + action, head, taken, terms(r, h));
      }
    });
    __syncthreads();
    if (team.thread < rows.count) {
      const int r = team.thread;
      gradient(r) = row_gradient<float>(rows[r][num_actions], terms(r, 0), num_heads, sample, loss, sums(r));
      for (int k = width; k < pitch; ++k) rows[r][k] = 0.0f;
    }
    __syncthreads();
    rows.each(num_heads, [&](int r, int h) {
      const Head head = heads[h];
      const int action = heads.offsets[h], taken = chosen(r, h);
      const float of_entropy = entropy_weight(loss, heads, h);
      if (head.size <= kFew) {
        const ShortHead short_head = {masks[h], rows[r] + action};
        float x[kFew], weight[kFew];
        load(short_head, rows[r] + action, x);
        load(short_head, weights(r) + action, weight);
        head_gradient<float>(x, weight, short_head, taken, terms(r, h), gradient(r), of_entropy, loss[LOSS_ROW_WEIGHT]);
        store(head.size, x, rows[r] + action);
      } else {
        head_gradient<float>(rows[r] + action, weights(r) + action, head, taken, terms(r, h), gradient(r), of_entropy,
                             loss[LOSS_ROW_WEIGHT]);
      }
    });
    __syncthreads();
    with_type(logits, bfloat16, [&](auto* to) { rows.store(to + start); });
    __syncthreads();
  }
  if (team.warp > 0) return;
  for (int s = 0; s < NUM_LOSS_STATISTICS; ++s) {
    const float total = team.sum_over_warp(team.lane < rows_of_block ? sums(team.lane)[s] : 0.0f);
    if (team.leads()) block_statistics[blockIdx.x * NUM_LOSS_STATISTICS + s] += total;
  }
}

// A warp takes AT_ONCE rows.
__global__ void CudaRbcAddRelu(int num_rows, int rows_of_group, int columns, void* x, int bfloat16,
                               const float* shared) {
  with_type(x, bfloat16, [&](auto* rows) {
    if (columns % WIDEST) {
      add_relu<1>(num_rows, rows_of_group, columns, rows, shared);
    } else {
      add_relu<WIDEST>(num_rows, rows_of_group, columns, rows, shared);
    }
  });
}

// A block takes 32 columns, or WIDEST times as many, by the grid's second axis, of one group, by its first.
__global__ void __launch_bounds__(LAYER_THREADS, kLayersAtOnce)
    CudaRbcMaskAndSum(int rows_of_group, int columns, int pitch, int is_wide, void* gradient, const void* activation,
                      int bfloat16, float* sums) {
  extern __shared__ float memory[];
  with_type(gradient, bfloat16, [&](auto* rows) {
    if (is_wide) {
      mask_and_sum<WIDEST>(rows_of_group, columns, pitch, rows, same_type(rows, activation), sums, memory);
    } else {
      mask_and_sum<1>(rows_of_group, columns, pitch, rows, same_type(rows, activation), sums, memory);
    }
  });
}

// The first of two kernels of a step of Adam: sums of squares of a gradient, one of each of 32 blocks, and one step more.
__global__ void __launch_bounds__(NORM_THREADS) CudaRbcNorm(int size, const float* gradient, float* squares, float* steps) {
  extern __shared__ float memory[];
  const BlockTeam team;
  float sum = 0.0f;
  for (int i = blockIdx.x * team.num_threads + team.thread; i < size; i += gridDim.x * team.num_threads) {
    sum = rbc::fma(gradient[i], gradient[i], sum);
  }
  sum = team.sum_over_warp(sum);
  if (team.leads()) memory[team.warp] = sum;
  team.barrier();
  if (team.warp > 0) return;
  sum = team.sum_over_warp(team.lane < team.num_warps ? memory[team.lane] : 0.0f);
  if (!team.leads()) return;
  squares[blockIdx.x] = sum;
  if (blockIdx.x == 0) *steps += 1.0f;
}

// The second: a thread takes one parameter's step. `copy`, if given, is what products read, float32 or bfloat16: the
// parameters from the `first` on, of which the first `hidden` rows of `num_private` numbers lie `inputs` apart, and the
// last `outputs` come after `gap` numbers more.
__global__ void CudaRbcAdam(int size, float* parameter, const float* gradient, float* mean, float* square,
                            const float* squares, const float* steps, const float* rate, const float* settings,
                            float* norm, int first, int num_private, int inputs, int hidden, int outputs, int gap,
                            void* copy, int bfloat16) {
  const BlockTeam team;
  const float total = rbc::sqrt(team.sum_over_warp(squares[team.lane]));
  const int i = blockIdx.x * team.num_threads + team.thread;
  if (i == 0) *norm = total;
  if (i >= size) return;
  const Adam adam(settings, *rate, *steps, total);
  const float moved = adam(parameter[i], gradient[i], mean[i], square[i]);
  parameter[i] = moved;
  if (copy == nullptr || i < first) return;
  int to = i - first;
  if (to < hidden * num_private) {
    to += to / num_private * (inputs - num_private);
  } else {
    to += hidden * (inputs - num_private) + (i < size - outputs ? 0 : gap);
  }
  with_type(copy, bfloat16, [&](auto* numbers) { set_number(numbers[to], moved); });
}

}  // extern "C"
