// The identities of the model, checked in every period of a debug build (RBC_CHECK).
#pragma once

#include <stdio.h>
#include <stdlib.h>

namespace rbc {

// The debug build: one thread follows the money and the goods of each period in double precision.
RBC_FN void require(bool holds, const char* identity, int period, double left, double right) {
  if (holds) return;
  printf("rbc_warp: identity '%s' broken in period %d: %.9g against %.9g\n", identity, period, left, right);
#ifdef __CUDA_ARCH__
  __trap();
#else
  fflush(stdout);
  abort();
#endif
}

struct Ledger {
  double consumers = 0.0, firms = 0.0, capital = 0.0, interest = 0.0;

  RBC_FN explicit Ledger(const Environment& env) {
    const double rate = env.parameter(INTEREST_RATE);
    for (int i = 0; i < env.num_consumers; ++i) add(env.budget(i), rate, consumers);
    for (int j = 0; j < env.num_firms; ++j) {
      add(env.firm_budget(j), rate, firms);
      capital += env.capital(j);
    }
  }
  RBC_FN void add(double budget, double rate, double& total) {
    total += budget;
    if (budget > 0.0) interest += budget * rate / (1.0 + rate);
  }
  RBC_FN double money() const { return consumers + firms + capital; }
};

// Before `post`, while prices and wages are still those of the period.
RBC_FN void check_identities(const Environment& env, const Scratch& scratch, const Ledger& before) {
  const int I = env.num_consumers, J = env.num_firms, period = *env.timestep;
  const Ledger after(env);
  double injected = after.interest + static_cast<double>(env.parameter(BUDGET_DRIP)) * I, worked = 0.0, paid = 0.0;
  double turnover = before.money() < 0.0 ? -before.money() : before.money();
  for (int j = 0; j < J; ++j) {
    injected += static_cast<double>(env.prices[j]) * env.exports[j];
    paid += scratch.labor[j];
    double bought = 0.0;
    for (int i = 0; i < I; ++i) {
      require(env.demand(j)[i] >= 0.0f, "units consumed >= 0", period, env.demand(j)[i], 0.0);
      bought += env.demand(j)[i];
    }
    turnover += bought * env.prices[j];
    require(env.inventories[j] >= 0.0f, "inventory >= 0", period, env.inventories[j], 0.0);
    require(scratch.ration[j] >= 0.0f && scratch.ration[j] <= 1.0f, "served share in [0, 1]", period, scratch.ration[j], 1.0);
  }
  for (int i = 0; i < I; ++i) worked += env.hours[i];
  require(worked - paid <= 1e-5 * worked && paid - worked <= 1e-5 * worked, "hours paid = hours worked", period, paid, worked);
  const double gap = after.money() - before.money() - injected, tolerance = 1e-5 * (turnover + injected) + 1e-2;
  require(gap <= tolerance && -gap <= tolerance, "money in = money out", period, after.money() - before.money(), injected);
}

}  // namespace rbc
