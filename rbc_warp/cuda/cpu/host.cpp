// The kernels on a CPU: the functions of economy.h and heads.h over environments and rows, shared among threads.
// Entry points take the same arguments as those of kernels.cu, after the number of environments and of threads.
#ifdef __AVX512F__
#include <immintrin.h>
#endif
#include <math.h>
#include <omp.h>

#include <algorithm>
#include <array>
#include <vector>

#include "../economy.h"
#include "../encode.h"
#include "../heads.h"
#include "../returns.h"
#include "lanes.h"
#include "network.h"

using namespace rbc;

namespace {

// Up to sixteen rows of `width` numbers, held side by side.
struct Rows {
  std::vector<Floats> x;
  explicit Rows(int width = 0) : x(width) {}

  void widen(int width) {
    if (static_cast<int>(x.size()) < width) x.resize(width);
  }

  void load(const void* from, bool bfloat16, size_t row, int rows, int width, int pitch) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const size_t at = (row + (lane < rows ? lane : 0)) * pitch;  // unused lanes repeat the first row
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

Floats gather(const float* from, int rows) {
  Floats out = {};
  for (int lane = 0; lane < rows; ++lane) out[lane] = from[lane];
  return out;
}

// Draws for all agents of a type in environment e, sixteen rows at a time.
void sample_type(Rows& rows, int e, int num_envs, int period, const int* draw_words, int bfloat16, int& first_agent,
                 int num_agents, const Heads& heads, const void* logits, int pitch, int* actions, int* actions_batch,
                 float* log_probabilities_batch, float* values_batch) {
  const int width = heads.num_actions() + 1, flags = draw_words[DRAW_FLAGS];
  const DrawKey key = {static_cast<uint32_t>(draw_words[DRAW_SEED]), static_cast<uint32_t>(draw_words[DRAW_ITERATION]),
                       static_cast<uint32_t>(period), static_cast<uint32_t>(draw_words[DRAW_STREAM])};
  const Unsigneds environment = Unsigneds{} + environment_number(draw_words, e);
  const size_t row = static_cast<size_t>(e) * num_agents;
  const size_t slot = (static_cast<size_t>(period) * num_envs + e) * num_agents;
  rows.widen(width);
  for (int i = 0; i < num_agents; i += kLanes) {
    const int count = num_agents - i < kLanes ? num_agents - i : kLanes;
    rows.load(logits, bfloat16, row + i, count, width, pitch);
    const Floats value = rows.x[heads.num_actions()];
    Unsigneds agent;
    for (int lane = 0; lane < kLanes; ++lane) agent[lane] = static_cast<uint32_t>(first_agent + i + lane);
    Floats log_probability = {};
    Philox<Unsigneds> random = {};
    for (int h = 0; h < heads.num_heads; ++h) {
      if (h % 4 == 0) random = random_words(key, agent, environment, h / 4);
      Ints chosen;
      Floats* const x = &rows.x[heads.offsets[h]];
      log_probability += draw_head<Floats>(x, heads[h], flags, random.word[h % 4], chosen);
      for (int lane = 0; lane < count; ++lane) {
        actions[(row + i + lane) * heads.num_heads + h] = chosen[lane];
        if (actions_batch) actions_batch[(slot + i + lane) * heads.num_heads + h] = chosen[lane];
      }
    }
    for (int lane = 0; lane < count && actions_batch; ++lane) {
      log_probabilities_batch[slot + i + lane] = log_probability[lane];
      values_batch[slot + i + lane] = value[lane];
    }
  }
  first_agent += num_agents;
}

// What the loss of a batch is computed from, and one thread's memory for sixteen rows of it.
class LossRows {
 public:
  LossRows(const Heads& heads, const int* actions, const float* old_log_probability, const float* advantage,
           const float* target, const float* old_value, const float* loss)
      : heads_(heads), actions_(actions), columns_{old_log_probability, advantage, target, old_value}, loss_(loss),
        weights_(heads.num_actions()), terms_(NUM_SOFTMAX_TERMS * heads.num_heads), chosen_(heads.num_heads) {}

  // Turns up to sixteen rows of outputs side by side into their gradient, 0 in unused lanes; adds their statistics.
  void operator()(Floats* x, size_t row, int count, double* statistics) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const int* source = actions_ + (row + (lane < count ? lane : 0)) * heads_.num_heads;
      for (int h = 0; h < heads_.num_heads; ++h) chosen_[h][lane] = source[h];
    }
    const Sample<Floats> sample = {gather(columns_[0] + row, count), gather(columns_[1] + row, count),
                                   gather(columns_[2] + row, count), gather(columns_[3] + row, count)};
    Floats sums[NUM_LOSS_STATISTICS] = {};
    for (int h = 0; h < heads_.num_heads; ++h) {
      const int first = heads_.offsets[h];
      softmax<Floats>(x + first, &weights_[first], heads_[h], chosen_[h], &terms_[h * NUM_SOFTMAX_TERMS]);
    }
    const Floats gradient =
        row_gradient<Floats>(x[heads_.num_actions()], terms_.data(), heads_.num_heads, sample, loss_, sums);
    for (int h = 0; h < heads_.num_heads; ++h) {
      const int first = heads_.offsets[h];
      head_gradient<Floats>(x + first, &weights_[first], heads_[h], chosen_[h], &terms_[h * NUM_SOFTMAX_TERMS],
                            gradient, entropy_weight(loss_, heads_, h), loss_[LOSS_ROW_WEIGHT]);
    }
    for (int s = 0; s < NUM_LOSS_STATISTICS; ++s) {
      for (int lane = 0; lane < count; ++lane) statistics[s] += sums[s][lane];
    }
    if (count == kLanes) return;
    for (int n = 0; n <= heads_.num_actions(); ++n) {
      for (int lane = count; lane < kLanes; ++lane) x[n][lane] = 0.0f;
    }
  }

 private:
  const Heads heads_;
  const int* actions_;
  const float* columns_[4];
  const float* loss_;
  std::vector<Floats> weights_, terms_;
  std::vector<Ints> chosen_;
};

#ifdef __AVX512F__
template <class T>
void network_logits(int num_rows, int num_threads, const Layers<const float>& layers, const Inputs<T>& inputs,
                    float* logits) {
  const Weights<T> weights(layers);
  const int width = layers.num_outputs;
#pragma omp parallel num_threads(num_threads)
  {
    Block<T> block(weights, inputs);
#pragma omp for schedule(static)
    for (int first = 0; first < num_rows; first += block.kRows) {
      const int count = std::min(num_rows - first, block.kRows);
      block.forward(first, count);
      for (int row = 0; row < count; row += kLanes) {
        const Floats* const from = block.outputs(row / kLanes);
        float* const to = logits + static_cast<size_t>(first + row) * width;
        for (int n = 0; n < width; n += kLanes) {
          Floats x[kLanes] = {};
          const int columns = std::min(width - n, kLanes);
          std::copy_n(from + n, columns, x);
          transpose(x);
          for (int lane = 0; lane < kLanes && row + lane < count; ++lane) {
            _mm512_mask_storeu_ps(to + lane * width + n, static_cast<__mmask16>((1 << columns) - 1), (__m512)x[lane]);
          }
        }
      }
    }
  }
}

template <class T>
void network_gradient(int num_groups, int num_threads, const Layers<const float>& layers, const Inputs<T>& inputs,
                      const LossRows& prototype, float* statistics, const Layers<float>& gradient,
                      float* shared_gradient) {
  const Weights<T> weights(layers);
  // What each thread adds up: the gradients in the order of Layers, then the statistics.
  const size_t sizes[] = {static_cast<size_t>(layers.num_private) * kHidden, kHidden * kHidden, kHidden,
                          static_cast<size_t>(layers.num_outputs) * kHidden, static_cast<size_t>(layers.num_outputs)};
  size_t starts[6] = {0};
  for (int i = 0; i < 5; ++i) starts[i + 1] = starts[i] + (sizes[i] + kLanes - 1) / kLanes * kLanes;
  std::vector<Memory> memory(num_threads);
  std::vector<float*> sums(num_threads);
  std::vector<std::array<double, NUM_LOSS_STATISTICS>> parts(num_threads);
#pragma omp parallel num_threads(num_threads)
  {
    const int thread = omp_get_thread_num();
    float* const own = sums[thread] = memory[thread].take<float>(starts[5]);
    const Layers<float> own_layers = {layers.num_private, layers.num_outputs, own, own + starts[1], own + starts[2],
                                      own + starts[3], own + starts[4]};
    LossRows loss = prototype;
    Block<T> block(weights, inputs);
    const int64_t first_group = static_cast<int64_t>(num_groups) * thread / num_threads;
    const int64_t end_group = static_cast<int64_t>(num_groups) * (thread + 1) / num_threads;
    std::fill(shared_gradient + first_group * kHidden, shared_gradient + end_group * kHidden, 0.0f);
    const int64_t end = end_group * inputs.rows_per_group;
    for (int64_t first = first_group * inputs.rows_per_group; first < end; first += block.kRows) {
      const int count = static_cast<int>(std::min<int64_t>(end - first, block.kRows));
      block.forward(first, count);
      for (int row = 0; row < block.num_lanes(); row += kLanes) {
        Floats* const x = block.outputs(row / kLanes);
        if (row < count) {
          loss(x, first + row, std::min(count - row, kLanes), parts[thread].data());
        } else {
          std::fill_n(x, layers.num_outputs, Floats{});
        }
      }
      block.backward(own_layers, shared_gradient);
    }
  }
  const auto total = [&](size_t at) {
    float sum = 0.0f;
    for (const float* part : sums) sum += part[at];
    return sum;
  };
  float* const to[] = {gradient.private_weight, gradient.weight2, gradient.bias2, gradient.weight3, gradient.bias3};
  for (int p = 0; p < layers.num_private; ++p) {
    for (int n = 0; n < kHidden; ++n) to[0][n * layers.num_private + p] += total(p * kHidden + n);
  }
  for (int i = 1; i < 5; ++i) {
    for (size_t k = 0; k < sizes[i]; ++k) to[i][k] += total(starts[i] + k);
  }
  for (int s = 0; s < NUM_LOSS_STATISTICS; ++s) {
    double sum = 0.0;
    for (const auto& part : parts) sum += part[s];
    statistics[s] += static_cast<float>(sum);
  }
}

template <class F> void with_precision(int bfloat16, F f) {
  if (!bfloat16) return f(Float32());
#ifdef __AVX512BF16__
  f(Bfloat16());
#endif
}
#endif

}  // namespace

extern "C" {

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

void CudaRbcEncode(int num_envs, int num_threads, RBC_ENCODE_ARGUMENTS) {
#pragma omp parallel for schedule(static) num_threads(num_threads)
  for (int e = 0; e < num_envs; ++e) {
    HostTeam team;
    encode(team, e, RBC_ENCODE_VALUES);
  }
}

void CudaRbcReturns(int num_envs, int num_threads, RBC_RETURNS_ARGUMENTS) {
#pragma omp parallel for schedule(static) num_threads(num_threads)
  for (int e = 0; e < num_envs; ++e) {
    HostTeam team;
    take_returns(team, e, num_envs, RBC_RETURNS_VALUES);
  }
}

void CudaRbcSample(int num_envs, int num_threads, RBC_SAMPLE_ARGUMENTS) {
  (void)rows_of_block;
#pragma omp parallel num_threads(num_threads)
  {
    Rows rows;
#pragma omp for schedule(static)
    for (int e = 0; e < num_envs; ++e) {
      const int period = recorded_period(timestep[e], sizes[NUM_PERIODS]);
      int first = 0;
#define RBC_SAMPLE(type) sample_type(rows, e, num_envs, period, draw_words, bfloat16, first, RBC_SAMPLE_VALUES(type))
      RBC_AGENT_TYPES(RBC_SAMPLE, ;);
#undef RBC_SAMPLE
    }
  }
}

// Loss gradient of `num_rows` rows, in place of their logits; statistics are summed in a fixed order of rows.
void CudaRbcLoss(int num_rows, int num_threads, void* logits, int bfloat16, int num_heads, const int* offsets,
                 const unsigned char* allowed, const int* actions, const float* old_log_probability,
                 const float* advantage, const float* target, const float* old_value, const float* loss,
                 float* statistics) {
  const Heads heads = {num_heads, offsets, allowed};
  const int width = heads.num_actions() + 1, num_blocks = (num_rows + kLanes - 1) / kLanes;
  std::vector<std::array<double, NUM_LOSS_STATISTICS>> parts(num_blocks);
#pragma omp parallel num_threads(num_threads)
  {
    Rows rows(width);
    LossRows rows_loss(heads, actions, old_log_probability, advantage, target, old_value, loss);
#pragma omp for schedule(static)
    for (int block = 0; block < num_blocks; ++block) {
      const int row = block * kLanes, count = num_rows - row < kLanes ? num_rows - row : kLanes;
      rows.load(logits, bfloat16, row, count, width, width);
      rows_loss(rows.x.data(), row, count, parts[block].data());
      rows.store(logits, bfloat16, row, count, width);
    }
  }
  for (int s = 0; s < NUM_LOSS_STATISTICS; ++s) {
    double sum = 0.0;
    for (const auto& part : parts) sum += part[s];
    statistics[s] += static_cast<float>(sum);
  }
}

// Whether the network with its loss is one kernel here (network.h), for hidden layers of this width. AMX multiplies bfloat16 several times as fast, by way
// of torch.
int RbcFusesNetwork(int bfloat16, int hidden) {
#ifdef __AVX512F__
  if (hidden != kHidden) return 0;
#endif
#if defined(__AVX512F__) && defined(__AVX512BF16__) && !defined(__AMX_BF16__)
  (void)bfloat16;
  return 1;
#elif defined(__AVX512F__)
  return !bfloat16;
#else
  (void)bfloat16, (void)hidden;
  return 0;
#endif
}

#ifdef __AVX512F__
// Logits and values (rows, num_outputs); layers and inputs as in network.h.
void RbcNetworkLogits(int num_rows, int num_threads, int bfloat16, int num_private, int num_outputs,
                      const float* private_weight, const float* weight2, const float* bias2, const float* weight3,
                      const float* bias3, int rows_per_group, const float* shared, const void* private_rows,
                      float* logits) {
  const Layers<const float> layers = {num_private, num_outputs, private_weight, weight2, bias2, weight3, bias3};
  with_precision(bfloat16, [&](auto precision) {
    using T = decltype(precision);
    const Inputs<T> inputs = {rows_per_group, shared, static_cast<const typename T::Stored*>(private_rows)};
    network_logits<T>(num_rows, num_threads, layers, inputs, logits);
  });
}

// Adds the gradient of the loss to that of the layers, and statistics; shared_gradient (groups, 128) is overwritten.
void RbcNetworkGradient(int num_groups, int num_threads, int bfloat16, int num_private, int num_outputs,
                        const float* private_weight, const float* weight2, const float* bias2, const float* weight3,
                        const float* bias3, int rows_per_group, const float* shared, const void* private_rows,
                        int num_heads, const int* offsets, const unsigned char* allowed, const int* actions,
                        const float* old_log_probability, const float* advantage, const float* target,
                        const float* old_value, const float* loss, float* statistics, float* gradient_private_weight,
                        float* gradient_weight2, float* gradient_bias2, float* gradient_weight3, float* gradient_bias3,
                        float* shared_gradient) {
  const Layers<const float> layers = {num_private, num_outputs, private_weight, weight2, bias2, weight3, bias3};
  const Layers<float> gradient = {num_private, num_outputs, gradient_private_weight, gradient_weight2, gradient_bias2,
                                  gradient_weight3, gradient_bias3};
  const LossRows rows({num_heads, offsets, allowed}, actions, old_log_probability, advantage, target, old_value, loss);
  with_precision(bfloat16, [&](auto precision) {
    using T = decltype(precision);
    const Inputs<T> inputs = {rows_per_group, shared, static_cast<const typename T::Stored*>(private_rows)};
    network_gradient<T>(num_groups, num_threads, layers, inputs, rows, statistics, gradient, shared_gradient);
  });
}
#endif

}  // extern "C"
