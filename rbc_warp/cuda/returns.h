// What an episode was worth: advantages and the value's targets, as training/losses.py states them.
#pragma once

#include "numerics.h"

namespace rbc {

// rewards, values, advantages, targets: (T, E, n) of one agent type; plain: targets are the returns.
#define RBC_RETURNS_ARGUMENTS                                                                                      \
  int num_agents, int num_periods, int plain, float scale, float gamma, float decay, const float *rewards,         \
      const float *values, float *advantages, float *targets
#define RBC_RETURNS_VALUES \
  num_agents, num_periods, plain, scale, gamma, decay, rewards, values, advantages, targets

// The agents of environment e, from the last period to the first.
template <class Team> RBC_FN void take_returns(Team& team, int e, int num_envs, RBC_RETURNS_ARGUMENTS) {
  team.each_lanes(num_agents, [&](auto lanes) {
    auto later = lanes.zero(), value_later = lanes.zero();
    for (int t = num_periods - 1; t >= 0; --t) {
      const size_t slot = (static_cast<size_t>(t) * num_envs + e) * num_agents;
      const auto value = lanes.load(values + slot);
      auto sum = lanes.load(rewards + slot) / lanes.splat(scale);
      const bool last = t == num_periods - 1;
      if (plain) {
        if (!last) sum = sum + lanes.splat(gamma) * later;
        lanes.store(targets + slot, sum);
        lanes.store(advantages + slot, sum - value);
      } else {
        sum = sum - value;
        if (!last) sum = sum + lanes.splat(gamma) * value_later + lanes.splat(decay) * later;
        lanes.store(advantages + slot, sum);
        lanes.store(targets + slot, sum + value);
      }
      later = sum;
      value_later = value;
    }
  });
}

}  // namespace rbc
