// Entry points for the tests of numerics.h: each applies one function to n numbers, one by one and sixteen at a time.
#ifdef __AVX512F__
#include <immintrin.h>
#endif
#include <math.h>

#include "economy.h"

using namespace rbc;

#define PROBE(name, expression)                                                  \
  void probe_##name(int n, const float* x, float parameter, float* out) {        \
    (void)parameter;                                                             \
    for (int i = 0; i < n; ++i) out[i] = expression(x[i]);                       \
  }                                                                              \
  void probe_##name##_lanes(int n, const float* x, float parameter, float* out) { \
    (void)parameter;                                                             \
    for (int i = 0; i + kLanes <= n; i += kLanes) {                              \
      Floats lanes;                                                              \
      memcpy(&lanes, x + i, sizeof(lanes));                                      \
      lanes = expression(lanes);                                                 \
      memcpy(out + i, &lanes, sizeof(lanes));                                    \
    }                                                                            \
  }

extern "C" {

PROBE(exp, rbc::exp)
PROBE(expm1, rbc::expm1)
PROBE(log, rbc::log)
PROBE(log1p, rbc::log1p)

void probe_power(int n, const float* x, float exponent, float* out) {
  for (int i = 0; i < n; ++i) out[i] = power(x[i], exponent);
}

void probe_utility(int n, const float* x, float crra, float* out) {
  for (int i = 0; i < n; ++i) out[i] = utility(x[i], crra, 1.0f / (1.0f - crra));
}

void probe_philox(const uint32_t* counter, const uint32_t* key, uint32_t* out) {
  const Philox<uint32_t> drawn = philox<uint32_t>({{counter[0], counter[1], counter[2], counter[3]}}, key[0], key[1]);
  Philox<Unsigneds> counters;
  for (int word = 0; word < 4; ++word) counters.word[word] = Unsigneds{} + counter[word];
  counters.word[0][1] += 1;  // lanes are independent of each other
  const Philox<Unsigneds> lanes = philox<Unsigneds>(counters, key[0], key[1]);
  for (int word = 0; word < 4; ++word) {
    out[word] = drawn.word[word];
    out[4 + word] = lanes.word[word][kLanes - 1];
  }
}

void probe_uniform(int n, const uint32_t* words, float* out) {
  for (int i = 0; i < n; ++i) out[i] = uniform(words[i]);
}

}  // extern "C"
