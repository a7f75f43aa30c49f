// The kernels on a CPU: the functions of economy.h and heads.h over environments and rows, shared among threads.
// Entry points take the same arguments as those of kernels.cu, after the number of environments and of threads.
#ifdef __AVX512F__
#include <immintrin.h>
#endif
#include <math.h>
#include <omp.h>

#include <vector>

#include "economy.h"
#include "heads.h"

using namespace rbc;

namespace {

// Agents first … first+count-1, count <= 16; lanes beyond count read 0 and write nothing.
struct Lanes {
  int first, count;

  RBC_FN Floats zero() const { return Floats{}; }
  RBC_FN Floats splat(float x) const { return rbc::splat<Floats>(x); }
  template <class V, class T> RBC_FN V read(const T* from) const {
    V out = {};
    if (count == kLanes) {
      memcpy(&out, from + first, sizeof(out));
    } else {
#ifdef __AVX512F__
      out = (V)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1 << count) - 1), from + first);
#else
      for (int lane = 0; lane < count; ++lane) out[lane] = from[first + lane];
#endif
    }
    return out;
  }
  RBC_FN Floats load(const float* from) const { return read<Floats>(from); }
  RBC_FN Ints load(const int* from) const { return read<Ints>(from); }
  RBC_FN Floats load(const float* from, int stride) const {
    Floats out = {};
    for (int lane = 0; lane < count; ++lane) out[lane] = from[(first + lane) * stride];
    return out;
  }
  RBC_FN Floats gather(const float* from, Ints index) const {  // unused lanes have index 0
#ifdef __AVX512F__
    return (Floats)_mm512_mask_i32gather_ps(_mm512_setzero_ps(), 0xffff, (__m512i)index, from, sizeof(float));
#endif
    Floats out;
    for (int lane = 0; lane < kLanes; ++lane) out[lane] = from[index[lane]];
    return out;
  }
  RBC_FN void store(float* to, Floats x) const {
    if (count == kLanes) {
      memcpy(to + first, &x, sizeof(x));
    } else {
#ifdef __AVX512F__
      _mm512_mask_storeu_ps(to + first, static_cast<__mmask16>((1 << count) - 1), (__m512)x);
#else
      for (int lane = 0; lane < count; ++lane) to[first + lane] = x[lane];
#endif
    }
  }
  RBC_FN void store(float* to, Floats x, int stride) const {
    for (int lane = 0; lane < count; ++lane) to[(first + lane) * stride] = x[lane];
  }
};

// Adds sixteen lanes as a binary tree: l and l+8, then l+4, l+2, l+1.
RBC_FN float fold(Floats x) {
  typedef float Eight __attribute__((vector_size(32)));
  typedef float Four __attribute__((vector_size(16)));
  const Eight eight = __builtin_shufflevector(x, x, 0, 1, 2, 3, 4, 5, 6, 7) +
                      __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15);
  const Four four = __builtin_shufflevector(eight, eight, 0, 1, 2, 3) + __builtin_shufflevector(eight, eight, 4, 5, 6, 7);
  return (four[0] + four[2]) + (four[1] + four[3]);
}

struct HostTeam {
  template <class F> RBC_FN void each(int n, F f) {
    for (int i = 0; i < n; ++i) f(i);
  }
  template <class F> RBC_FN void each_group(int n, F f) {
    for (int j = 0; j < n; ++j) f(j);
  }
  template <class F> RBC_FN void each_lanes(int n, F f) {
    int i = 0;
    for (; i + kLanes <= n; i += kLanes) f(Lanes{i, kLanes});
    if (i < n) f(Lanes{i, n - i});
  }
  template <class F> RBC_FN float sum(int n, F term) {
    Floats even = {}, odd = {};
    int i = 0;
    for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
      even += term(Lanes{i, kLanes});
      odd += term(Lanes{i + kLanes, kLanes});
    }
    if (i + kLanes <= n) {
      even += term(Lanes{i, kLanes});
      if (i + kLanes < n) odd += term(Lanes{i + kLanes, n - i - kLanes});
    } else if (i < n) {
      even += term(Lanes{i, n - i});
    }
    return fold(even + odd);
  }
  RBC_FN bool leads() const { return true; }
  RBC_FN bool first() const { return true; }
  RBC_FN void barrier() {}
};

RBC_FN float from_bfloat16(uint16_t x) { return bits<float>(static_cast<uint32_t>(x) << 16); }
RBC_FN uint16_t to_bfloat16(float x) {  // round to nearest even; the values here are finite
  const uint32_t b = bits<uint32_t>(x);
  return static_cast<uint16_t>((b + 0x7fffu + ((b >> 16) & 1u)) >> 16);
}

// Up to sixteen rows of `width` numbers, held side by side.
struct Rows {
  std::vector<Floats> x;
  explicit Rows(int width) : x(width) {}

  void load(const void* from, bool bfloat16, size_t row, int rows, int width) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const size_t at = (row + (lane < rows ? lane : 0)) * width;  // unused lanes repeat the first row
      float* to = reinterpret_cast<float*>(x.data()) + lane;
      if (bfloat16) {
        const uint16_t* source = static_cast<const uint16_t*>(from) + at;
        for (int k = 0; k < width; ++k) to[k * kLanes] = from_bfloat16(source[k]);
      } else {
        const float* source = static_cast<const float*>(from) + at;
        for (int k = 0; k < width; ++k) to[k * kLanes] = source[k];
      }
    }
  }
  void store(void* into, bool bfloat16, size_t row, int rows, int width) const {
    for (int lane = 0; lane < rows; ++lane) {
      const size_t at = (row + lane) * width;
      const float* from = reinterpret_cast<const float*>(x.data()) + lane;
      if (bfloat16) {
        uint16_t* target = static_cast<uint16_t*>(into) + at;
        for (int k = 0; k < width; ++k) target[k] = to_bfloat16(from[k * kLanes]);
      } else {
        float* target = static_cast<float*>(into) + at;
        for (int k = 0; k < width; ++k) target[k] = from[k * kLanes];
      }
    }
  }
};

// Up to sixteen neighbouring numbers of a row, float32 or bfloat16.
typedef uint16_t Halves __attribute__((vector_size(2 * kLanes)));
RBC_FN Floats read(const float* from, int count) {
  Floats out = {};
  memcpy(&out, from, count == kLanes ? sizeof(out) : count * sizeof(*from));
  return out;
}
RBC_FN Floats read(const uint16_t* from, int count) {
  Halves out = {};
  memcpy(&out, from, count == kLanes ? sizeof(out) : count * sizeof(*from));
  return bits<Floats>(__builtin_convertvector(out, Unsigneds) << 16);
}
RBC_FN void write(float* to, Floats x, int count) { memcpy(to, &x, count == kLanes ? sizeof(x) : count * sizeof(*to)); }
RBC_FN void write(uint16_t* to, Floats x, int count) {
  const Unsigneds b = bits<Unsigneds>(x);
  const Halves out = __builtin_convertvector((b + 0x7fffu + ((b >> 16) & 1u)) >> 16, Halves);
  memcpy(to, &out, count == kLanes ? sizeof(out) : count * sizeof(*to));
}
template <class F> RBC_FN void each_chunk(int columns, F f) {
  int column = 0;
  for (; column + kLanes <= columns; column += kLanes) f(column, kLanes);
  if (column < columns) f(column, columns - column);
}

// x = max(x + shared, 0): each row of `shared` serves the next `rows_per_shared` rows of x.
template <class T>
void add_relu(int num_rows, int num_threads, int rows_per_shared, int columns, T* x, const T* shared) {
#pragma omp parallel for schedule(static) num_threads(num_threads)
  for (int row = 0; row < num_rows; ++row) {
    T* const to = x + static_cast<size_t>(row) * columns;
    const T* const added = shared + static_cast<size_t>(row / rows_per_shared) * columns;
    each_chunk(columns, [&](int at, int count) {
      write(to + at, maximum(read(to + at, count) + read(added + at, count), Floats{}), count);
    });
  }
}

// Sets the gradient to 0 where the activation (if given) is not positive; adds each group's rows up into sums.
template <class T>
void mask_and_sum(int num_groups, int num_threads, int rows, int columns, T* gradient, const T* activation, float* sums) {
#pragma omp parallel for schedule(static) num_threads(num_threads)
  for (int group = 0; group < num_groups; ++group) {
    each_chunk(columns, [&](int at, int count) {
      Floats sum = {};
      for (int row = 0; row < rows; ++row) {
        const size_t to = (static_cast<size_t>(group) * rows + row) * columns + at;
        Floats slope = read(gradient + to, count);
        if (activation) {
          slope = select(read(activation + to, count) > 0.0f, slope, Floats{});
          write(gradient + to, slope, count);
        }
        sum += slope;
      }
      write(sums + static_cast<size_t>(group) * columns + at, sum, count);
    });
  }
}

Floats gather(const float* from, int rows) {
  Floats out = {};
  for (int lane = 0; lane < rows; ++lane) out[lane] = from[lane];
  return out;
}

// Draws for the agents of one type in environment e.
void sample_type(Rows& rows, int e, int num_envs, int num_agents, int first_agent, const int* draw_words, int period,
                 RBC_SAMPLE_TYPE(type)) {
  const Heads heads = {type_heads, type_offsets, type_allowed};
  const int width = heads.num_actions() + 1, flags = draw_words[DRAW_FLAGS];
  const DrawKey key = {static_cast<uint32_t>(draw_words[DRAW_SEED]), static_cast<uint32_t>(draw_words[DRAW_ITERATION]),
                       static_cast<uint32_t>(period), static_cast<uint32_t>(draw_words[DRAW_STREAM])};
  const Unsigneds environment = Unsigneds{} + static_cast<uint32_t>(draw_words[DRAW_FIRST_ENVIRONMENT] + e);
  const size_t row = static_cast<size_t>(e) * num_agents;
  const size_t slot = (static_cast<size_t>(period) * num_envs + e) * num_agents;
  for (int i = 0; i < num_agents; i += kLanes) {
    const int count = num_agents - i < kLanes ? num_agents - i : kLanes;
    rows.load(type_logits, flags & DRAW_BFLOAT16, row + i, count, width);
    const Floats value = rows.x[heads.num_actions()];
    Unsigneds agent;
    for (int lane = 0; lane < kLanes; ++lane) agent[lane] = static_cast<uint32_t>(first_agent + i + lane);
    const Floats log_probability =
        draw_actions<Floats>(rows.x.data(), 1, heads, key, agent, environment, flags, [&](int h, Ints chosen) {
          for (int lane = 0; lane < count; ++lane) {
            type_actions[(row + i + lane) * heads.num_heads + h] = chosen[lane];
            type_actions_batch[(slot + i + lane) * heads.num_heads + h] = chosen[lane];
          }
        });
    for (int lane = 0; lane < count; ++lane) {
      type_log_probabilities_batch[slot + i + lane] = log_probability[lane];
      type_values_batch[slot + i + lane] = value[lane];
    }
  }
}

}  // namespace

#define RBC_NAME(name) #name " "
#define RBC_TABLE(list) list(RBC_NAME) "\n"

extern "C" {

// The order of every table that Python fills: one line each for sizes, parameters, stage, draw words, loss, statistics.
const char* RbcTables() {
  return RBC_TABLE(RBC_SIZES) RBC_TABLE(RBC_PARAMETERS) RBC_TABLE(RBC_STAGE) RBC_TABLE(RBC_DRAW) RBC_TABLE(RBC_LOSS)
      RBC_TABLE(RBC_LOSS_STATISTICS);
}

void CudaRbcStep(int num_envs, int num_threads, RBC_STEP_ARGUMENTS) {
#pragma omp parallel num_threads(num_threads)
  {
    const int num_firms = sizes[NUM_FIRMS];
    std::vector<float> memory(kScratchPerFirm * num_firms);
    const Scratch scratch(memory.data(), num_firms);
    HostTeam team;
#pragma omp for schedule(static)
    for (int e = 0; e < num_envs; ++e) {
      const Environment env = environment(e, RBC_STEP_VALUES);
      step(team, env, scratch);
    }
  }
}

void CudaRbcReset(int num_envs, int num_threads, RBC_RESET_ARGUMENTS) {
#pragma omp parallel for schedule(static) num_threads(num_threads)
  for (int e = 0; e < num_envs; ++e) {
    HostTeam team;
    reset(team, e, RBC_RESET_VALUES);
  }
}

void CudaRbcSample(int num_envs, int num_threads, RBC_SAMPLE_ARGUMENTS) {
  const int widest_consumer = consumer_offsets[consumer_heads], widest_firm = firm_offsets[firm_heads];
  int width = widest_consumer > widest_firm ? widest_consumer : widest_firm;
  if (government_offsets[government_heads] > width) width = government_offsets[government_heads];
#pragma omp parallel num_threads(num_threads)
  {
    const int I = sizes[NUM_CONSUMERS], J = sizes[NUM_FIRMS];
    Rows rows(width + 1);
#pragma omp for schedule(static)
    for (int e = 0; e < num_envs; ++e) {
      const int period = recorded_period(timestep[e], sizes[NUM_PERIODS]);
#define RBC_SAMPLE(type, n, first)                                                                              \
  sample_type(rows, e, num_envs, n, first, draw_words, period, type##_heads, type##_offsets, type##_allowed,    \
              type##_logits, type##_actions, type##_actions_batch, type##_log_probabilities_batch, type##_values_batch)
      RBC_SAMPLE(consumer, I, 0);
      RBC_SAMPLE(firm, J, I);
      RBC_SAMPLE(government, 1, I + J);
#undef RBC_SAMPLE
    }
  }
}

// Loss gradient of `num_rows` rows, in place of their logits; statistics are summed in a fixed order of rows.
void CudaRbcLoss(int num_rows, int num_threads, int num_heads, const int* offsets, const unsigned char* allowed,
                 void* logits, int bfloat16, const int* actions, const float* old_log_probability,
                 const float* advantage, const float* target, const float* old_value, const float* loss,
                 float* statistics) {
  const Heads heads = {num_heads, offsets, allowed};
  const int width = heads.num_actions() + 1, num_blocks = (num_rows + kLanes - 1) / kLanes;
  std::vector<float> block_sums(static_cast<size_t>(num_blocks) * NUM_LOSS_STATISTICS);
#pragma omp parallel num_threads(num_threads)
  {
    Rows rows(width), scratch(width);
    std::vector<Ints> chosen(num_heads);
#pragma omp for schedule(static)
    for (int block = 0; block < num_blocks; ++block) {
      const int row = block * kLanes, count = num_rows - row < kLanes ? num_rows - row : kLanes;
      rows.load(logits, bfloat16, row, count, width);
      for (int lane = 0; lane < kLanes; ++lane) {
        const int* source = actions + static_cast<size_t>(row + (lane < count ? lane : 0)) * num_heads;
        for (int h = 0; h < num_heads; ++h) chosen[h][lane] = source[h];
      }
      const Sample<Floats> sample = {gather(old_log_probability + row, count), gather(advantage + row, count),
                                     gather(target + row, count), gather(old_value + row, count)};
      Floats sums[NUM_LOSS_STATISTICS] = {};
      loss_gradient<Floats>(rows.x.data(), scratch.x.data(), 1, heads, sample, loss, [&](int h) { return chosen[h]; },
                            sums);
      rows.store(logits, bfloat16, row, count, width);
      for (int s = 0; s < NUM_LOSS_STATISTICS; ++s) {
        float sum = 0.0f;
        for (int lane = 0; lane < count; ++lane) sum += sums[s][lane];
        block_sums[static_cast<size_t>(block) * NUM_LOSS_STATISTICS + s] = sum;
      }
    }
  }
  for (int s = 0; s < NUM_LOSS_STATISTICS; ++s) {
    double sum = 0.0;
    for (int block = 0; block < num_blocks; ++block) sum += block_sums[static_cast<size_t>(block) * NUM_LOSS_STATISTICS + s];
    statistics[s] += static_cast<float>(sum);
  }
}

// What stands between a network's matrix products; see Kernels in kernels.py.
void RbcAddRelu(int num_rows, int num_threads, int rows_per_shared, int columns, void* x, const void* shared,
                int bfloat16) {
  if (bfloat16) {
    add_relu(num_rows, num_threads, rows_per_shared, columns, static_cast<uint16_t*>(x),
             static_cast<const uint16_t*>(shared));
  } else {
    add_relu(num_rows, num_threads, rows_per_shared, columns, static_cast<float*>(x),
             static_cast<const float*>(shared));
  }
}

void RbcMaskAndSum(int num_groups, int num_threads, int rows, int columns, void* gradient, const void* activation,
                   float* sums, int bfloat16) {
  if (bfloat16) {
    mask_and_sum(num_groups, num_threads, rows, columns, static_cast<uint16_t*>(gradient),
                 static_cast<const uint16_t*>(activation), sums);
  } else {
    mask_and_sum(num_groups, num_threads, rows, columns, static_cast<float*>(gradient),
                 static_cast<const float*>(activation), sums);
  }
}

}  // extern "C"
