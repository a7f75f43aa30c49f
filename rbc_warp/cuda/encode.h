// What agents see, as their networks take it: each input is one number of the state over its scale, or some of its digits.
#pragma once

#include <math.h>

#include "numerics.h"

namespace rbc {

// x mod m with the sign of m, an integer > 0, as torch.remainder has it: exact, but for the last addition.
RBC_FN float remainder(float x, float m) {
  const double size = x < 0.0f ? -static_cast<double>(x) : static_cast<double>(x);
  if (!(size < 1125899906842624.0)) {  // 2^50; not a number, too
    const float rest = fmodf(x, m);
    return rest < 0.0f ? rest + m : rest;
  }
  const double times = static_cast<double>(static_cast<int64_t>(size / m));
  const float rest = static_cast<float>(size - times * m);
  if (rest == 0.0f) return 0.0f * x;
  return x < 0.0f ? m - rest : rest;
}

// A part of the state, (E, rows, columns), and where it goes; `encoded` and `copy` may be null.
struct Seen {
  int rows, columns, inputs, pitch, bfloat16;
  const float* state;
  const int* sources;     // (inputs,) the column that an input is computed from
  const float* divisors;  // (inputs,) its scale; for digits −10^(k+1): the number mod 10^(k+1), over it
  void* encoded;          // (E, rows, pitch) float32 or bfloat16; what follows the inputs in a row is left alone
  float* copy;            // (E, rows, columns)
};

// The parts in the order in which an entry point takes them.
#define RBC_SEEN(X, AND) X(open) AND X(consumer) AND X(firm)
#define RBC_SEEN_PART(part)                                                                                          \
  int part##_rows, int part##_columns, int part##_inputs, int part##_pitch, int part##_bfloat16,                     \
      const float *part##_state, const int *part##_sources, const float *part##_divisors, void *part##_encoded,     \
      float *part##_copy
#define RBC_ENCODE_ARGUMENTS RBC_SEEN(RBC_SEEN_PART, RBC_COMMA)
#define RBC_SEEN_VALUES(part)                                                                            \
  part##_rows, part##_columns, part##_inputs, part##_pitch, part##_bfloat16, part##_state, part##_sources, \
      part##_divisors, part##_encoded, part##_copy
#define RBC_ENCODE_VALUES RBC_SEEN(RBC_SEEN_VALUES, RBC_COMMA)

template <class Team> RBC_FN void encode_part(Team& team, int e, const Seen& seen) {
  const size_t row = static_cast<size_t>(e) * seen.rows;
  const float* const state = seen.state + row * seen.columns;
  if (seen.copy) {
    float* const copy = seen.copy + row * seen.columns;
    team.each(seen.rows * seen.columns, [&](int n) { copy[n] = state[n]; });
  }
  if (!seen.encoded) return;
  float* const exact = static_cast<float*>(seen.encoded) + (seen.bfloat16 ? 0 : row * seen.pitch);
  uint16_t* const rounded = static_cast<uint16_t*>(seen.encoded) + (seen.bfloat16 ? row * seen.pitch : 0);
  team.each_pair(seen.rows, seen.inputs, [&](int i, int n) {
    const float x = state[i * seen.columns + seen.sources[n]], divisor = seen.divisors[n];
    const float input = divisor > 0.0f ? x / divisor : remainder(x, -divisor) / -divisor;
    if (seen.bfloat16) {
      rounded[i * seen.pitch + n] = rounded_to_bfloat16(input);
    } else {
      exact[i * seen.pitch + n] = input;
    }
  });
}

// All that agents of environment e see.
template <class Team> RBC_FN void encode(Team& team, int e, RBC_ENCODE_ARGUMENTS) {
#define RBC_ENCODE_PART(part) encode_part(team, e, {RBC_SEEN_VALUES(part)})
  RBC_SEEN(RBC_ENCODE_PART, ;);
#undef RBC_ENCODE_PART
}

}  // namespace rbc
