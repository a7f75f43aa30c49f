// Policies with several independent softmax heads: drawing actions, and the loss with its gradient.
//
// V is one row (float, a device thread) or sixteen rows side by side (Floats, the host). A row holds the logits of
// all heads one after the other; `x[k * stride]` is action k. Masked actions have probability 0 and no gradient.
#pragma once

#include "numerics.h"

namespace rbc {

// The heads of one agent type: head h covers the actions offsets[h] … offsets[h+1]-1 of a row.
struct Heads {
  int num_heads;
  const int* offsets;
  const unsigned char* allowed;  // (actions,)
  RBC_FN int num_actions() const { return offsets[num_heads]; }
};

// Where a random number belongs. Equal coordinates give equal draws on every machine; nothing is stored.
struct DrawKey {
  uint32_t seed, iteration, period, stream;
};

template <class V> RBC_FN V max_allowed(const V* x, int stride, int from, int to, const unsigned char* allowed) {
  V top = splat<V>(-3.0e38f);
  for (int k = from; k < to; ++k) {
    if (allowed[k]) top = maximum(top, x[k * stride]);
  }
  return top;
}

// Turns one head's logits into weights e^(x - max), 0 where masked; returns their sum in the order of the actions.
template <class V> RBC_FN V to_weights(V* x, int stride, int from, int to, const unsigned char* allowed, V top) {
  V total = splat<V>(0.0f);
  for (int k = from; k < to; ++k) {
    x[k * stride] = allowed[k] ? exp(x[k * stride] - top) : splat<V>(0.0f);
    total = total + x[k * stride];
  }
  return total;
}

// First action whose cumulative weight exceeds u·total. Weights need no normalizing; masked ones are never drawn.
template <class V> RBC_FN typename Types<V>::Int draw(const V* weight, int stride, int from, int to, V total, V u) {
  using Int = typename Types<V>::Int;
  const V threshold = u * total;
  V cumulative = splat<V>(0.0f);
  Int chosen = Int{};
  for (int k = from; k < to; ++k) {
    cumulative = cumulative + weight[k * stride];
    chosen += bits<Int>(select(cumulative <= threshold, bits<V>(Int{} + 1), bits<V>(Int{})));
  }
  return chosen;
}

template <class V> RBC_FN typename Types<V>::Int most_likely(const V* weight, int stride, int from, int to) {
  using Int = typename Types<V>::Int;
  V top = splat<V>(-1.0f), best = bits<V>(Int{});
  for (int k = from; k < to; ++k) {
    const V w = weight[k * stride];
    best = select(w > top, bits<V>(Int{} + (k - from)), best);
    top = maximum(top, w);
  }
  return bits<Int>(best);
}

// Value of weight[chosen] for each row.
template <class V> RBC_FN V pick(const V* x, int stride, int from, int to, typename Types<V>::Int chosen) {
  V picked = splat<V>(0.0f);
  for (int k = from; k < to; ++k) picked = select(chosen == typename Types<V>::Int{} + (k - from), x[k * stride], picked);
  return picked;
}

// The words of a draw: seed, iteration (the key), the first environment's global number, after how many environments the
// numbers repeat (0: never), the stream, the flags.
#define RBC_DRAW(X) X(SEED) X(ITERATION) X(FIRST_ENVIRONMENT) X(REPEAT) X(STREAM) X(FLAGS)
#define RBC_DRAW_FLAGS(X) X(GREEDY, 1) X(FROM_PROBABILITIES, 2)
#define RBC_ENUMERATOR(name) DRAW_##name,
enum DrawWord { RBC_DRAW(RBC_ENUMERATOR) NUM_DRAW_WORDS };
#undef RBC_ENUMERATOR
#define RBC_ENUMERATOR(name, value) DRAW_##name = value,
enum DrawFlags { RBC_DRAW_FLAGS(RBC_ENUMERATOR) };
#undef RBC_ENUMERATOR

// The number of environment e, by which its random numbers are drawn.
RBC_FN uint32_t environment_number(const int* draw_words, int e) {
  const int repeat = draw_words[DRAW_REPEAT];
  return static_cast<uint32_t>(draw_words[DRAW_FIRST_ENVIRONMENT] + (repeat > 0 ? e % repeat : e));
}

// Where a draw is recorded: a finished episode that is not reset keeps to its last slot.
RBC_FN int recorded_period(int timestep, int num_periods) {
  return timestep < num_periods ? timestep : num_periods - 1;
}

// The agent types in the order in which agents are numbered, and what a draw takes of each: n agents, h heads, a actions
// of all heads, E environments; `*_batch` begin with T and may all be null: nothing is recorded then.
#define RBC_AGENT_TYPES(X, AND) X(consumer) AND X(firm) AND X(government)
#define RBC_SAMPLE_TYPE(type)                                                                                    \
  int type##_count, int type##_heads, const int *type##_offsets, const unsigned char *type##_allowed,           \
      float *type##_logits, int *type##_actions, int *type##_actions_batch, float *type##_log_probabilities_batch, \
      float *type##_values_batch
#define RBC_SAMPLE_ARGUMENTS \
  const int *sizes, const int *draw_words, const int *timestep, RBC_AGENT_TYPES(RBC_SAMPLE_TYPE, RBC_COMMA)
// A type's arrays, as the entry points hand them to their function for one type.
#define RBC_SAMPLE_VALUES(type)                                                                              \
  type##_count, {type##_heads, type##_offsets, type##_allowed}, type##_logits, type##_actions, \
      type##_actions_batch, type##_log_probabilities_batch, type##_values_batch

// Draws one action per head. `x` holds logits (or probabilities) and is overwritten; `agent`, `environment` name the
// row's random numbers: one Philox call serves four heads. Returns the log-probability of the joint action.
template <class V, class Store>
RBC_FN V draw_actions(V* x, int stride, const Heads& heads, DrawKey key, typename Types<V>::Unsigned agent,
                      typename Types<V>::Unsigned environment, int flags, Store store) {
  using Int = typename Types<V>::Int;
  using Unsigned = typename Types<V>::Unsigned;
  V log_probability = splat<V>(0.0f);
  Philox<Unsigned> random = {};
  for (int h = 0; h < heads.num_heads; ++h) {
    const int from = heads.offsets[h], to = heads.offsets[h + 1];
    if (h % 4 == 0) {
      const Unsigned lane = Unsigned{} + (key.stream << 28 | static_cast<uint32_t>(h / 4));
      random = philox<Unsigned>({{agent, environment, Unsigned{} + key.period, lane}}, key.seed, key.iteration);
    }
    V total = splat<V>(0.0f);
    if (flags & DRAW_FROM_PROBABILITIES) {
      for (int k = from; k < to; ++k) {
        if (!heads.allowed[k]) x[k * stride] = splat<V>(0.0f);
        total = total + x[k * stride];
      }
    } else {
      total = to_weights(x, stride, from, to, heads.allowed, max_allowed(x, stride, from, to, heads.allowed));
    }
    const Int chosen = flags & DRAW_GREEDY ? most_likely(x, stride, from, to)
                                           : draw(x, stride, from, to, total, uniform(random.word[h % 4]));
    log_probability = log_probability + log(pick(x, stride, from, to, chosen) / total);
    store(h, chosen);
  }
  return log_probability;
}

#define RBC_LOSS(X) X(CLIP) X(ENTROPY_WEIGHT) X(LAST_HEAD_ENTROPY_WEIGHT) X(VALUE_WEIGHT) X(ROW_WEIGHT) X(USE_PPO)
#define RBC_LOSS_STATISTICS(X) X(POLICY_LOSS) X(VALUE_LOSS) X(ENTROPY) X(KL) X(CLIPPED)
#define RBC_ENUMERATOR(name) LOSS_##name,
enum LossParameter { RBC_LOSS(RBC_ENUMERATOR) NUM_LOSS_PARAMETERS };
#undef RBC_ENUMERATOR
#define RBC_ENUMERATOR(name) STATISTIC_##name,
enum LossStatistic { RBC_LOSS_STATISTICS(RBC_ENUMERATOR) NUM_LOSS_STATISTICS };
#undef RBC_ENUMERATOR

// What a row's loss is computed from, besides its logits.
template <class V> struct Sample {
  V old_log_probability, advantage, target, old_value;
};

template <class V> RBC_FN V huber(V error) {
  const V size = maximum(error, -error);
  return select(size < 1.0f, 0.5f * error * error, size - 0.5f);
}
template <class V> RBC_FN V huber_gradient(V error) {
  return minimum(maximum(error, splat<V>(-1.0f)), splat<V>(1.0f));
}

// Loss of one row and its gradient: x holds the logits and, last, the value; it is overwritten with ROW_WEIGHT times
// the gradient with respect to each. `scratch` has room for one row. Statistics are added to `sums`, unweighted.
//   policy  PPO: -min(r A, clip(r, 1-c, 1+c) A), r the ratio of joint probabilities;   else: -log pi A
//   value   max of Huber(v - R) and Huber(clip(v, v_old ± c) - R) under PPO, else Huber(v - R)
//   entropy summed over heads
template <class V, class Action>
RBC_FN void loss_gradient(V* x, V* scratch, int stride, const Heads& heads, const Sample<V>& row, const float* loss,
                          Action action, V* sums) {
  using Int = typename Types<V>::Int;
  V log_probability = splat<V>(0.0f), entropy = splat<V>(0.0f);
  for (int h = 0; h < heads.num_heads; ++h) {  // x becomes log p, scratch p
    const int from = heads.offsets[h], to = heads.offsets[h + 1];
    const V top = max_allowed(x, stride, from, to, heads.allowed);
    V total = splat<V>(0.0f);
    for (int k = from; k < to; ++k) {
      const V shifted = heads.allowed[k] ? x[k * stride] - top : splat<V>(0.0f);
      const V weight = heads.allowed[k] ? exp(shifted) : splat<V>(0.0f);
      x[k * stride] = shifted;
      scratch[k * stride] = weight;
      total = total + weight;
    }
    const V log_total = log(total), scale = 1.0f / total;
    V head_entropy = splat<V>(0.0f);
    for (int k = from; k < to; ++k) {
      const V p = scratch[k * stride] * scale;
      const V log_p = heads.allowed[k] ? x[k * stride] - log_total : splat<V>(0.0f);
      x[k * stride] = log_p;
      scratch[k * stride] = p;
      head_entropy = fma(-p, log_p, head_entropy);
    }
    for (int k = from; k < to; ++k) x[k * stride] = x[k * stride] + head_entropy;  // log p + H, for the gradient
    log_probability = log_probability + pick(x, stride, from, to, action(h)) - head_entropy;
    entropy = entropy + head_entropy;
  }

  const V log_ratio = log_probability - row.old_log_probability;
  const V advantage = row.advantage;
  V policy_gradient;  // d(policy loss) / d(log pi)
  if (loss[LOSS_USE_PPO] != 0.0f) {
    const V ratio = exp(log_ratio);
    const V low = splat<V>(1.0f - loss[LOSS_CLIP]), high = splat<V>(1.0f + loss[LOSS_CLIP]);
    const V clipped = minimum(maximum(ratio, low), high);
    const V plain = ratio * advantage, bounded = clipped * advantage;
    policy_gradient = select(plain <= bounded, -plain, splat<V>(0.0f));
    sums[STATISTIC_POLICY_LOSS] = sums[STATISTIC_POLICY_LOSS] - minimum(plain, bounded);
    sums[STATISTIC_KL] = sums[STATISTIC_KL] + (ratio - 1.0f - log_ratio);
    sums[STATISTIC_CLIPPED] = sums[STATISTIC_CLIPPED] + select(clipped == ratio, splat<V>(0.0f), splat<V>(1.0f));
  } else {
    policy_gradient = -advantage;
    sums[STATISTIC_POLICY_LOSS] = sums[STATISTIC_POLICY_LOSS] - log_probability * advantage;
  }
  sums[STATISTIC_ENTROPY] = sums[STATISTIC_ENTROPY] + entropy;

  const float weight = loss[LOSS_ROW_WEIGHT];
  for (int h = 0; h < heads.num_heads; ++h) {
    const Int chosen = action(h);
    const float entropy_weight = loss[h + 1 < heads.num_heads ? LOSS_ENTROPY_WEIGHT : LOSS_LAST_HEAD_ENTROPY_WEIGHT];
    for (int k = heads.offsets[h]; k < heads.offsets[h + 1]; ++k) {
      const V p = scratch[k * stride];
      const V taken = select(chosen == Int{} + (k - heads.offsets[h]), policy_gradient, splat<V>(0.0f));
      x[k * stride] = weight * (fma(p, fma(splat<V>(entropy_weight), x[k * stride], -policy_gradient), taken));
    }
  }

  V& value = x[heads.num_actions() * stride];
  const V error = value - row.target;
  V value_loss = huber(error), value_gradient = huber_gradient(error);
  if (loss[LOSS_USE_PPO] != 0.0f) {
    const V clip = splat<V>(loss[LOSS_CLIP]);
    const V moved = minimum(maximum(value - row.old_value, -clip), clip);
    const V clipped_error = row.old_value + moved - row.target;
    const V clipped_loss = huber(clipped_error);
    const V clipped_gradient = select(moved == value - row.old_value, huber_gradient(clipped_error), splat<V>(0.0f));
    value_gradient = select(clipped_loss > value_loss, clipped_gradient, value_gradient);
    value_loss = maximum(value_loss, clipped_loss);
  }
  sums[STATISTIC_VALUE_LOSS] = sums[STATISTIC_VALUE_LOSS] + value_loss;
  value = (weight * loss[LOSS_VALUE_WEIGHT]) * value_gradient;
}

}  // namespace rbc
