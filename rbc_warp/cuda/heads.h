// Policies with several independent softmax heads: drawing actions, and the loss with its gradient.
//
// V is one row (float, a device thread) or sixteen rows side by side (Floats, the host). A row holds the logits of
// all heads one after the other; `x[k]` is action k. Masked actions have probability 0 and no gradient.
#pragma once

#include "numerics.h"

namespace rbc {

// One head: how many actions it has, and which are allowed.
struct Head {
  static constexpr int kAtOnce = 4;  // actions that a GPU's thread looks at together
  int size;
  const unsigned char* allowed;
  RBC_FN bool allows(int k) const { return allowed[k]; }
};

// One of few actions, whose numbers a GPU's thread keeps in registers: always kFew, of which some are not allowed.
constexpr int kFew = 12;
struct ShortHead {
  static constexpr int kAtOnce = kFew, size = kFew;
  uint32_t mask;
  const float* logits;  // in memory, where an index may be any
  RBC_FN bool allows(int k) const { return mask >> k & 1u; }
};

// The heads of one agent type: head h covers the actions offsets[h] … offsets[h+1]-1 of a row.
struct Heads {
  int num_heads;
  const int* offsets;
  const unsigned char* allowed;  // (actions,)
  RBC_FN int num_actions() const { return offsets[num_heads]; }
  RBC_FN Head operator[](int h) const { return {offsets[h + 1] - offsets[h], allowed + offsets[h]}; }
};

// Where a random number belongs. Equal coordinates give equal draws on every machine; nothing is stored.
struct DrawKey {
  uint32_t seed, iteration, period, stream;
};

// In the functions of one head, a Head or a ShortHead, x[k] is the head's action k.

template <class V, class H> RBC_FN V max_allowed(const V* x, const H& head) {
  V top = splat<V>(-3.0e38f);
  RBC_UNROLL(H::kAtOnce) for (int k = 0; k < head.size; ++k) {
    if (head.allows(k)) top = maximum(top, x[k]);
  }
  return top;
}

// Weights e^(x - top), 0 where masked, which may take the logits' place; returns their sum in the order of the actions.
template <class V, class H> RBC_FN V to_weights(const V* x, V* weight, const H& head, V top) {
  V total = splat<V>(0.0f);
  RBC_UNROLL(H::kAtOnce) for (int k = 0; k < head.size; ++k) {
    const V w = exp(x[k] - top);
    weight[k] = head.allows(k) ? w : splat<V>(0.0f);
    total = total + weight[k];
  }
  return total;
}

// First action whose cumulative weight exceeds u·total. Weights need no normalizing; masked ones are never drawn.
template <class V, class H> RBC_FN typename Types<V>::Int draw(const V* weight, const H& head, V total, V u) {
  using Int = typename Types<V>::Int;
  const V threshold = u * total;
  V cumulative = splat<V>(0.0f);
  Int chosen = Int{};
  RBC_UNROLL(H::kAtOnce) for (int k = 0; k < head.size; ++k) {
    cumulative = cumulative + weight[k];
    chosen += bits<Int>(select(cumulative <= threshold, bits<V>(Int{} + 1), bits<V>(Int{})));
  }
  return chosen;
}

template <class V, class H> RBC_FN typename Types<V>::Int most_likely(const V* weight, const H& head) {
  using Int = typename Types<V>::Int;
  V top = splat<V>(-1.0f), best = bits<V>(Int{});
  RBC_UNROLL(H::kAtOnce) for (int k = 0; k < head.size; ++k) {
    const V w = weight[k];
    best = select(w > top, bits<V>(Int{} + k), best);
    top = maximum(top, w);
  }
  return bits<Int>(best);
}

// Value of x[chosen] for each row.
template <class V, class H> RBC_FN V pick(const V* x, const H& head, typename Types<V>::Int chosen) {
  V picked = splat<V>(0.0f);
  RBC_UNROLL(H::kAtOnce) for (int k = 0; k < head.size; ++k) {
    picked = select(chosen == typename Types<V>::Int{} + k, x[k], picked);
  }
  return picked;
}
RBC_FN float pick(const float* x, const Head&, int chosen) { return x[chosen]; }

// The logit of the chosen action, and 1 where it is allowed.
template <class V, class H> RBC_FN V pick_logit(const V* x, const H& head, typename Types<V>::Int chosen) {
  return pick(x, head, chosen);
}
RBC_FN float pick_logit(const float*, const ShortHead& head, int chosen) { return head.logits[chosen]; }
template <class V, class H> RBC_FN V pick_weight(const V* weight, const H& head, typename Types<V>::Int chosen) {
  return pick(weight, head, chosen);
}
RBC_FN float pick_weight(const float*, const ShortHead& head, int chosen) { return head.allows(chosen) ? 1.0f : 0.0f; }

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

// The agent types in the order in which agents are numbered, and what a draw takes of each: n agents, h heads, a
// actions of all heads, E environments; `*_batch` begin with T and may all be null: nothing is recorded then. Logits
// are float32, or all bfloat16, a row every `pitch` numbers. A GPU's block takes so many rows at a time.
#define RBC_AGENT_TYPES(X, AND) X(consumer) AND X(firm) AND X(government)
#define RBC_SAMPLE_TYPE(type)                                                                                    \
  int type##_count, int type##_heads, const int *type##_offsets, const unsigned char *type##_allowed,           \
      void *type##_logits, int type##_pitch, int *type##_actions, int *type##_actions_batch, float *type##_log_probabilities_batch, \
      float *type##_values_batch
#define RBC_SAMPLE_ARGUMENTS                                                                              \
  const int *sizes, const int *draw_words, const int *timestep, int bfloat16, int rows_of_block,          \
      RBC_AGENT_TYPES(RBC_SAMPLE_TYPE, RBC_COMMA)
// A type's arrays, as the entry points hand them to their function for one type.
#define RBC_SAMPLE_VALUES(type)                                                                              \
  type##_count, {type##_heads, type##_offsets, type##_allowed}, type##_logits, type##_pitch, type##_actions, \
      type##_actions_batch, type##_log_probabilities_batch, type##_values_batch

// Draws one head's action from a random word. `x` holds logits (or probabilities) and is overwritten. Returns the
// action's log-probability.
template <class V, class H>
RBC_FN V draw_head(V* x, const H& head, int flags, typename Types<V>::Unsigned word, typename Types<V>::Int& chosen) {
  V total = splat<V>(0.0f);
  if (flags & DRAW_FROM_PROBABILITIES) {
    RBC_UNROLL(H::kAtOnce) for (int k = 0; k < head.size; ++k) {
      if (!head.allows(k)) x[k] = splat<V>(0.0f);
      total = total + x[k];
    }
  } else {
    total = to_weights(x, x, head, max_allowed(x, head));
  }
  chosen = flags & DRAW_GREEDY ? most_likely(x, head) : draw(x, head, total, uniform(word));
  return log(pick(x, head, chosen) / total);
}

// The random words of heads 4n … 4n+3 of a row, which `agent` and `environment` name.
template <class U> RBC_FN Philox<U> random_words(DrawKey key, U agent, U environment, int n) {
  const U lane = U{} + (key.stream << 28 | static_cast<uint32_t>(n));
  return philox<U>({{agent, environment, U{} + key.period, lane}}, key.seed, key.iteration);
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

// A row's loss and its gradient, in three steps: softmax() of each head, row_gradient(), head_gradient() of each head.
// x holds a row's logits and, last, its value; in the end ROW_WEIGHT times the gradient with respect to each.
//   policy  PPO: -min(r A, clip(r, 1-c, 1+c) A), r the ratio of joint probabilities;   else: -log pi A
//   value   max of Huber(v - R) and Huber(clip(v, v_old ± c) - R) under PPO, else Huber(v - R)
//   entropy summed over heads
// Between the steps `weight` keeps e^(x - top), 0 where masked, and `terms` what follows of each head, (heads, terms):
// CHOSEN is the chosen action's log p + H.
#define RBC_SOFTMAX(X) X(TOP) X(LOG_TOTAL) X(SCALE) X(ENTROPY) X(CHOSEN)
#define RBC_ENUMERATOR(name) SOFTMAX_##name,
enum SoftmaxTerm { RBC_SOFTMAX(RBC_ENUMERATOR) NUM_SOFTMAX_TERMS };
#undef RBC_ENUMERATOR

template <class V, class H>
RBC_FN void softmax(const V* x, V* weight, const H& head, typename Types<V>::Int chosen, V* terms) {
  const V top = max_allowed(x, head), total = to_weights(x, weight, head, top);
  const V log_total = log(total), scale = 1.0f / total;
  V entropy = splat<V>(0.0f);
  RBC_UNROLL(H::kAtOnce) for (int k = 0; k < head.size; ++k) {  // a masked action adds 0
    entropy = fma(-(weight[k] * scale), x[k] - top - log_total, entropy);
  }
  const V log_p = pick_logit(x, head, chosen) - top - log_total;
  const V of_chosen = select(pick_weight(weight, head, chosen) > 0.0f, log_p, splat<V>(0.0f));
  terms[SOFTMAX_TOP] = top;
  terms[SOFTMAX_LOG_TOTAL] = log_total;
  terms[SOFTMAX_SCALE] = scale;
  terms[SOFTMAX_ENTROPY] = entropy;
  terms[SOFTMAX_CHOSEN] = of_chosen + entropy;
}

// Turns the value into its gradient, adds the row's statistics to `sums`, unweighted, and returns
// d(policy loss) / d(log pi).
template <class V>
RBC_FN V row_gradient(V& value, const V* terms, int num_heads, const Sample<V>& row, const float* loss,
                      V* sums) {
  V log_probability = splat<V>(0.0f), entropy = splat<V>(0.0f);
  for (int h = 0; h < num_heads; ++h) {
    const V *const head = terms + h * NUM_SOFTMAX_TERMS, head_entropy = head[SOFTMAX_ENTROPY];
    log_probability = log_probability + head[SOFTMAX_CHOSEN] - head_entropy;
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
  value = (loss[LOSS_ROW_WEIGHT] * loss[LOSS_VALUE_WEIGHT]) * value_gradient;
  return policy_gradient;
}

// Turns one head's logits into their gradient.
template <class V, class H>
RBC_FN void head_gradient(V* x, const V* weight, const H& head, typename Types<V>::Int chosen, const V* terms,
                          V policy_gradient, float entropy_weight, float row_weight) {
  const V top = terms[SOFTMAX_TOP], log_total = terms[SOFTMAX_LOG_TOTAL], scale = terms[SOFTMAX_SCALE];
  const V entropy = terms[SOFTMAX_ENTROPY];
  RBC_UNROLL(H::kAtOnce) for (int k = 0; k < head.size; ++k) {
    const V p = weight[k] * scale, log_p = x[k] - top - log_total;
    const V taken = select(chosen == typename Types<V>::Int{} + k, policy_gradient, splat<V>(0.0f));
    x[k] = row_weight * fma(p, fma(splat<V>(entropy_weight), log_p + entropy, -policy_gradient), taken);
  }
}

// The entropy weight of a head.
RBC_FN float entropy_weight(const float* loss, const Heads& heads, int h) {
  return loss[h + 1 < heads.num_heads ? LOSS_ENTROPY_WEIGHT : LOSS_LAST_HEAD_ENTROPY_WEIGHT];
}

}  // namespace rbc
