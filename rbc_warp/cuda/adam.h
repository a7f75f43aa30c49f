// Adam (Kingma & Ba 2015), as torch takes its steps, by a gradient that is scaled down to a norm.
#pragma once

#include "numerics.h"

namespace rbc {

// What Adam knows: the mean's and the square's weight of a new gradient, 1 - beta, and log beta; epsilon; the gradient's
// largest norm, none where it is not positive.
#define RBC_ADAM(X) X(WEIGHT1) X(WEIGHT2) X(LOG_BETA1) X(LOG_BETA2) X(EPSILON) X(MAX_NORM)
#define RBC_ENUMERATOR(name) ADAM_##name,
enum AdamSetting { RBC_ADAM(RBC_ENUMERATOR) NUM_ADAM_SETTINGS };
#undef RBC_ENUMERATOR

// A step of one number after another, all by the same rate.
struct Adam {
  float divisor, weight1, weight2, beta2, step_size, root_correction2, epsilon;

  // step: how many steps there were, this one included. norm: the gradient's.
  RBC_FN Adam(const float* settings, float rate, float step, float norm)
      : divisor(1.0f), weight1(settings[ADAM_WEIGHT1]), weight2(settings[ADAM_WEIGHT2]), beta2(1.0f - weight2),
        step_size(rate / -expm1(step * settings[ADAM_LOG_BETA1])),
        root_correction2(sqrt(-expm1(step * settings[ADAM_LOG_BETA2]))), epsilon(settings[ADAM_EPSILON]) {
    const float most = settings[ADAM_MAX_NORM];
    if (most > 0.0f) divisor = maximum(1.0f, (norm + 1e-6f) / most);  // a NaN stays one
  }
  RBC_FN float operator()(float parameter, float gradient, float& mean, float& square) const {
    gradient = gradient / divisor;
    mean = fma(weight1, gradient - mean, mean);
    square = fma(weight2 * gradient, gradient, beta2 * square);
    return parameter - step_size * (mean / (sqrt(square) / root_correction2 + epsilon));
  }
};

}  // namespace rbc
