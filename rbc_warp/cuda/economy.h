// The economy, one function per numbered step of the model, in the order and under the names of reference.py.
//
// A Team says how agents are spread: `each(n, f)` calls f(0..n-1), in a plain loop on the host and over a block's
// threads on the device; `each_group(n, f)` does so for work that contains sums; `each_lanes(n, f)` hands f some agents
// side by side, sixteen on the host and one on the device; `table(values, n)` holds n numbers to be looked up;
// `sum(n, term)` adds term(lanes) over n agents in 32 interleaved partial sums folded as a binary tree, so that host and
// device round alike; `barrier()` ends a phase. No thread index, shared memory or global stands here.
#pragma once

#ifdef RBC_CHECK
#include <stdio.h>
#include <stdlib.h>
#endif

#include "numerics.h"

namespace rbc {

#define RBC_SIZES(X) X(NUM_CONSUMERS) X(NUM_FIRMS) X(NUM_PERIODS) X(NUM_CONSUMPTION_CHOICES) X(NUM_WORK_CHOICES) \
  X(NUM_FIRM_ACTIONS) X(NUM_GOVERNMENT_ACTIONS)
#define RBC_PARAMETERS(X) X(TECHNOLOGY) X(BUDGET_DRIP) X(INTEREST_RATE) X(CRRA) X(LABOR_FLOOR) X(USE_IMPORTER) \
  X(IMPORTER_PRICE) X(IMPORTER_QUANTITY) X(BOOST_FIRM_REWARD_FACTOR) X(FIRM_REWARD_FOR_GOVERNMENT_FACTOR) \
  X(CONSUMER_PENALTY_SCALE) X(FIRM_PENALTY_SCALE)
#define RBC_STAGE(X) X(THETA_FACTOR) X(CONSUMER_NOPONZI) X(FIRM_NOPONZI)
#define RBC_CONSUMER(X) X(CONSUMER_BUDGET) X(CONSUMER_THETA)
#define RBC_FIRM(X) X(FIRM_BUDGET) X(FIRM_CAPITAL) X(FIRM_ALPHA) X(FIRM_ONE_HOT)

#define RBC_ENUMERATOR(name) name,
enum Size { RBC_SIZES(RBC_ENUMERATOR) NUM_SIZES };
enum Parameter { RBC_PARAMETERS(RBC_ENUMERATOR) NUM_PARAMETERS };
enum StageValue { RBC_STAGE(RBC_ENUMERATOR) NUM_STAGE_VALUES };
enum ConsumerState { RBC_CONSUMER(RBC_ENUMERATOR) CONSUMER_PRIVATE_SIZE };
enum FirmState { RBC_FIRM(RBC_ENUMERATOR) FIRM_PRIVATE_HEAD };  // ONE_HOT begins a row of NUM_FIRMS
#undef RBC_ENUMERATOR
static_assert(NUM_SIZES == 7 && NUM_PARAMETERS == 12 && NUM_STAGE_VALUES == 3, "tables of env.py");
static_assert(CONSUMER_PRIVATE_SIZE == 2 && FIRM_ONE_HOT == 3, "layout of economy.py");

// Everything a step reads and writes, as WarpDrive's data manager holds it. E environments, I consumers, J firms.
#define RBC_STEP_ARGUMENTS                                                                                            \
  const int *sizes, const float *parameters, const float *stage,                                \
      const float *consumption_choices, const float *work_choices, const float *firm_choices,                         \
      const float *government_choices, float *public_state, float *consumer_state, float *firm_state,                 \
      const int *consumer_actions, const int *firm_actions, const int *government_actions, float *consumer_rewards,   \
      float *firm_rewards, float *government_rewards, float *consumption, float *exports, float *hours,               \
      int *employer, float *spending, int *done, int *timestep
#define RBC_STEP_VALUES                                                                                               \
  sizes, parameters, stage, consumption_choices, work_choices, firm_choices, government_choices,             \
      public_state, consumer_state, firm_state, consumer_actions, firm_actions, government_actions,                   \
      consumer_rewards, firm_rewards, government_rewards, consumption, exports, hours, employer, spending, done,      \
      timestep

// One environment's slices of those arrays.
struct Environment {
  int num_consumers, num_firms, num_periods, num_consumption_choices, num_work_choices;
  const float *parameters, *stage, *consumption_choices, *work_choices;
  float *prices, *wages, *inventories, *overdemanded, *income_tax, *corporate_tax, *time;
  float *consumer, *firm;           // (I, 2), (J, 3+J)
  const int* actions;               // (I, J+2)
  const int* firm_actions;          // (J,)
  const float* firm_choices;        // (k, 3)
  const float* government_choice;   // (2,)
  float *consumer_rewards, *firm_rewards, *government_reward;
  float* consumption;               // (J, I): affordable demand, then units consumed
  float* exports;                   // (J,)
  float *hours, *spending;          // (I,)
  int* employer;                    // (I,)
  int *done, *timestep;

  RBC_FN float parameter(Parameter p) const { return parameters[p]; }
  RBC_FN float& budget(int i) const { return consumer[i * CONSUMER_PRIVATE_SIZE + CONSUMER_BUDGET]; }
  RBC_FN float* demand(int j) const { return consumption + static_cast<size_t>(j) * num_consumers; }
  RBC_FN float& firm_budget(int j) const { return firm[j * (FIRM_ONE_HOT + num_firms) + FIRM_BUDGET]; }
  RBC_FN float& capital(int j) const { return firm[j * (FIRM_ONE_HOT + num_firms) + FIRM_CAPITAL]; }
  RBC_FN bool last_period() const { return *timestep + 1 >= num_periods; }
};

RBC_FN int public_size(int num_firms) { return 4 * num_firms + 3; }

RBC_FN Environment environment(int e, RBC_STEP_ARGUMENTS) {
  const int I = sizes[NUM_CONSUMERS], J = sizes[NUM_FIRMS];
  const size_t at = static_cast<size_t>(e);
  float* open = public_state + at * public_size(J);
  Environment env;
  env.num_consumers = I;
  env.num_firms = J;
  env.num_periods = sizes[NUM_PERIODS];
  env.num_consumption_choices = sizes[NUM_CONSUMPTION_CHOICES];
  env.num_work_choices = sizes[NUM_WORK_CHOICES];
  env.parameters = parameters;
  env.stage = stage;
  env.consumption_choices = consumption_choices;
  env.work_choices = work_choices;
  env.prices = open;
  env.wages = open + J;
  env.inventories = open + 2 * J;
  env.overdemanded = open + 3 * J;
  env.income_tax = open + 4 * J;
  env.corporate_tax = open + 4 * J + 1;
  env.time = open + 4 * J + 2;
  env.consumer = consumer_state + at * I * CONSUMER_PRIVATE_SIZE;
  env.firm = firm_state + at * J * (FIRM_ONE_HOT + J);
  env.actions = consumer_actions + at * I * (J + 2);
  env.firm_actions = firm_actions + at * J;
  env.firm_choices = firm_choices;
  env.government_choice = government_choices + 2 * government_actions[e];
  env.consumer_rewards = consumer_rewards + at * I;
  env.firm_rewards = firm_rewards + at * J;
  env.government_reward = government_rewards + e;
  env.consumption = consumption + at * J * I;
  env.exports = exports + at * J;
  env.hours = hours + at * I;
  env.spending = spending + at * I;
  env.employer = employer + at * I;
  env.done = done + e;
  env.timestep = timestep + e;
  return env;
}

// What firms and government know within a period; J floats each, in a team's scratch memory.
struct Scratch {
  float *labor, *ration, *sold, *corporate_tax;
  RBC_FN Scratch(float* memory, int num_firms)
      : labor(memory), ration(memory + num_firms), sold(memory + 2 * num_firms), corporate_tax(memory + 3 * num_firms) {}
};
constexpr int kScratchPerFirm = 4;

// Step 1: asked demand, scaled to what the budget buys. Also notes hours and employer.
template <class Team> RBC_FN void affordable_demand(Team& team, const Environment& env) {
  const int I = env.num_consumers, J = env.num_firms;
  const auto units = team.table(env.consumption_choices, env.num_consumption_choices);
  const auto hours = team.table(env.work_choices, env.num_work_choices);
  team.each_lanes(I, [&](auto lanes) {
    auto cost = lanes.zero();
    lanes.each_choice(env.actions, J + 2, [&](int column, auto chosen) {
      if (column < J) {
        const auto asked = lanes.look_up(units, chosen);
        cost = fma(lanes.splat(env.prices[column]), asked, cost);
        lanes.store(env.demand(column), asked);
      } else if (column == J) {
        lanes.store(env.hours, lanes.look_up(hours, chosen));
      } else {
        lanes.store(env.employer, chosen);
      }
    });
    lanes.store(env.spending, cost);
  });
  team.each_lanes(I, [&](auto lanes) {
    const auto cost = lanes.load(env.spending);
    const auto budget = lanes.load(&env.budget(0), CONSUMER_PRIVATE_SIZE);
    const auto ratio = maximum(budget, lanes.zero()) / cost;  // unused where nothing is asked
    const auto scale = select((cost > 0.0f) & (cost > budget), ratio, lanes.splat(1.0f));
    for (int j = 0; j < J; ++j) lanes.store(env.demand(j), lanes.load(env.demand(j)) * scale);
  });
}

// Step 2: D_j and H_j, the units demanded of a firm and the hours worked there.
struct Totals {
  float demand, hours;
};
template <class Team> RBC_FN Totals total_by_firm(Team& team, const Environment& env, int j) {
  const int I = env.num_consumers;
  return {team.sum(I, [&](auto lanes) { return lanes.load(env.demand(j)); }), team.sum(I, [&](auto lanes) {
            return select(lanes.load(env.employer) == j, lanes.load(env.hours), lanes.zero());
          })};
}

// Steps 2 and 3: totals of each firm, and the share of demand that its inventory serves.
template <class Team> RBC_FN void ration(Team& team, const Environment& env, const Scratch& scratch) {
  team.each_group(env.num_firms, [&](int j) {
    const Totals total = total_by_firm(team, env, j);
    if (team.leads()) {
      const float inventory = env.inventories[j];
      const bool rationed = total.demand > 0.0f && total.demand > inventory;
      scratch.labor[j] = total.hours;
      scratch.ration[j] = rationed ? inventory / total.demand : 1.0f;
      env.overdemanded[j] = rationed ? 1.0f : 0.0f;
    }
  });
}

// CRRA utility ((1+c)^(1-eta) - 1) / (1 - eta), log(1+c) at eta = 1; inverse = 1 / (1 - eta).
template <class V> RBC_FN V utility(V consumption, float crra, float inverse) {
  const V log_units = log1p(consumption);
  return crra == 1.0f ? log_units : expm1((1.0f - crra) * log_units) * inverse;
}

// Steps 3 and 4: units served, their utility less the disutility of work, and the bill.
template <class Team> RBC_FN void reward_consumers(Team& team, const Environment& env, const Scratch& scratch) {
  const float crra = env.parameter(CRRA), inverse = 1.0f / (1.0f - crra);
  team.each_lanes(env.num_consumers, [&](auto lanes) {
    const auto theta = lanes.load(&env.budget(0) + CONSUMER_THETA, CONSUMER_PRIVATE_SIZE);
    auto reward = -0.5f * theta * lanes.load(env.hours), bill = lanes.zero();
    for (int j = 0; j < env.num_firms; ++j) {
      const auto served = lanes.load(env.demand(j)) * scratch.ration[j];
      lanes.store(env.demand(j), served);
      bill = fma(lanes.splat(env.prices[j]), served, bill);
      reward = reward + utility(served, crra, inverse);
    }
    lanes.store(env.spending, bill);
    lanes.store(env.consumer_rewards, reward);
  });
}

// Step 4: income before tax, w_f(i) h_i.
template <class Lanes, class Table> RBC_FN auto pay_wages(Lanes lanes, const Environment& env, const Table& wages) {
  return lanes.look_up(wages, lanes.load(env.employer)) * lanes.load(env.hours);
}

// Step 5: what is left of an inventory, up to the importer's quantity, at a price that the importer accepts.
template <class V> RBC_FN V export_goods(const Environment& env, V price, V left) {
  const float quantity = env.parameter(USE_IMPORTER) != 0.0f ? env.parameter(IMPORTER_QUANTITY) : 0.0f;
  return select(price >= env.parameter(IMPORTER_PRICE), minimum(left, splat<V>(quantity)), splat<V>(0.0f));
}

// Step 6: a firm's period in money; profit is after investment and before tax.
template <class V> struct FirmAccounts {
  V revenue, investment, profit, corporate_tax;
};
template <class V>
RBC_FN FirmAccounts<V> close_firm_accounts(V price, V wage, V units, V labor, V investment_share, float tax_rate) {
  const V revenue = price * units, gross = revenue - wage * labor;
  const V investment = maximum(investment_share * gross, splat<V>(0.0f)), profit = gross - investment;
  return {revenue, investment, profit, tax_rate * maximum(profit, splat<V>(0.0f))};
}

// Step 6: the change of the budget, and a share of revenue where the new budget, before interest, is positive.
template <class V> RBC_FN V reward_firms(const Environment& env, V budget, V change, V revenue) {
  return change + select(budget > 0.0f, env.parameter(BOOST_FIRM_REWARD_FACTOR) * revenue, splat<V>(0.0f));
}

// Step 7: Y = A k^(1-alpha) L^alpha; a workforce below the floor produces nothing.
template <class V> RBC_FN V produce(const Environment& env, V capital, V alpha, V labor) {
  const V effective = select(labor < env.parameter(LABOR_FLOOR), splat<V>(0.0f), labor);
  return env.parameter(TECHNOLOGY) * power(capital, 1.0f - alpha) * power(effective, alpha);
}

// Step 7: y - C - x + Y.
template <class V> RBC_FN V restock(V left, V exported, V produced) { return left - exported + produced; }

// Step 8: all taxes of the period.
template <class Team, class Table>
RBC_FN float redistribute(Team& team, const Environment& env, const Scratch& scratch, const Table& wages) {
  const float rate = *env.income_tax;
  const float income_taxes = team.sum(env.num_consumers, [&](auto lanes) { return rate * pay_wages(lanes, env, wages); });
  return income_taxes + team.sum(env.num_firms, [&](auto lanes) { return lanes.load(scratch.corporate_tax); });
}

// Step 8: net wages and the transfer, which everybody gets, less the bill.
template <class Lanes, class Table>
RBC_FN auto change_consumer_budgets(Lanes lanes, const Environment& env, const Table& wages, float transfer) {
  const auto kept = lanes.splat(1.0f - *env.income_tax);
  return fma(kept, pay_wages(lanes, env, wages), lanes.splat(transfer)) - lanes.load(env.spending);
}

// Step 10: interest on a positive balance. V is one budget or several.
template <class V> RBC_FN V settle_budgets(V balance, float interest_rate) {
  return select(balance > 0.0f, balance * (1.0f + interest_rate), balance);
}

// Step 10: the no-Ponzi term. `price` is the coefficient over the scale in the last period, 0 before it.
RBC_FN float price_of_debt(const Environment& env, StageValue coefficient, Parameter scale) {
  return env.last_period() ? env.stage[coefficient] / env.parameter(scale) : 0.0f;
}
template <class V> RBC_FN V charge_debt(V reward, V budget, float price) {
  return reward - price * maximum(-budget, V{});
}

// Step 3: what each firm sells to consumers; rounding must not sell what is not there.
template <class Team> RBC_FN void sell(Team& team, const Environment& env, const Scratch& scratch) {
  team.each_group(env.num_firms, [&](int j) {
    const float total = team.sum(env.num_consumers, [&](auto lanes) { return lanes.load(env.demand(j)); });
    if (team.leads()) scratch.sold[j] = minimum(total, env.inventories[j]);
  });
}

// Steps 5, 6, 7 and 10 for firms. Posted prices and wages stay as they are.
template <class Team> RBC_FN void run_firms(Team& team, const Environment& env, const Scratch& scratch) {
  const float debt_price = price_of_debt(env, FIRM_NOPONZI, FIRM_PENALTY_SCALE);
  const int width = FIRM_ONE_HOT + env.num_firms;
  team.each_lanes(env.num_firms, [&](auto lanes) {
    const auto price = lanes.load(env.prices), labor = lanes.load(scratch.labor), sold = lanes.load(scratch.sold);
    const auto left = lanes.load(env.inventories) - sold;
    const auto exported = export_goods(env, price, left);
    const auto share = lanes.gather(env.firm_choices + 2, lanes.load(env.firm_actions) * 3);
    const auto wage = lanes.load(env.wages);
    const auto accounts = close_firm_accounts(price, wage, sold + exported, labor, share, *env.corporate_tax);
    const auto change = accounts.profit - accounts.corporate_tax;
    const auto budget = lanes.load(env.firm + FIRM_BUDGET, width) + change;
    const auto settled = settle_budgets(budget, env.parameter(INTEREST_RATE));
    const auto reward = reward_firms(env, budget, change, accounts.revenue);
    const auto capital = lanes.load(env.firm + FIRM_CAPITAL, width), alpha = lanes.load(env.firm + FIRM_ALPHA, width);
    lanes.store(env.firm_rewards, charge_debt(reward, settled, debt_price));
    lanes.store(env.exports, exported);
    lanes.store(scratch.corporate_tax, accounts.corporate_tax);
    lanes.store(env.inventories, restock(left, exported, produce(env, capital, alpha, labor)));
    lanes.store(env.firm + FIRM_BUDGET, settled, width);
    lanes.store(env.firm + FIRM_CAPITAL, capital + accounts.investment, width);
  });
}

// Steps 4, 8 and 10 for consumers: wages, taxes, the equal share of all taxes, budgets.
template <class Team> RBC_FN void settle_consumers(Team& team, const Environment& env, const Scratch& scratch) {
  const int I = env.num_consumers;
  const auto wages = team.table(env.wages, env.num_firms);
  const float transfer = redistribute(team, env, scratch, wages) / static_cast<float>(I) + env.parameter(BUDGET_DRIP);
  const float price = price_of_debt(env, CONSUMER_NOPONZI, CONSUMER_PENALTY_SCALE);
  team.each_lanes(I, [&](auto lanes) {
    const auto budget = lanes.load(&env.budget(0), CONSUMER_PRIVATE_SIZE);
    const auto change = change_consumer_budgets(lanes, env, wages, transfer);
    const auto settled = settle_budgets(budget + change, env.parameter(INTEREST_RATE));
    lanes.store(&env.budget(0), settled, CONSUMER_PRIVATE_SIZE);
    lanes.store(env.consumer_rewards, charge_debt(lanes.load(env.consumer_rewards), settled, price));
  });
}

// Step 9: the new prices, wages and taxes bind from the next period.
template <class Team> RBC_FN void post(Team& team, const Environment& env) {
  team.each(env.num_firms, [&](int j) {
    env.prices[j] = env.firm_choices[env.firm_actions[j] * 3];
    env.wages[j] = env.firm_choices[env.firm_actions[j] * 3 + 1];
  });
  if (team.first()) {
    *env.income_tax = env.government_choice[0];
    *env.corporate_tax = env.government_choice[1];
    *env.time += 1.0f;
    *env.timestep += 1;
    *env.done = *env.timestep >= env.num_periods ? 1 : 0;
  }
}

// Step 11: the sum of the consumers' rewards, and a share of the firms'.
template <class Team> RBC_FN void reward_government(Team& team, const Environment& env) {
  const float weight = env.parameter(FIRM_REWARD_FOR_GOVERNMENT_FACTOR);
  const float consumers = team.sum(env.num_consumers, [&](auto lanes) { return lanes.load(env.consumer_rewards); });
  const float firms = team.sum(env.num_firms, [&](auto lanes) { return lanes.load(env.firm_rewards); });
  if (team.first()) *env.government_reward = weight != 0.0f ? fma(weight, firms, consumers) : consumers;
}

#ifdef RBC_CHECK
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
#endif

// One period.
template <class Team> RBC_FN void step(Team& team, const Environment& env, const Scratch& scratch) {
#ifdef RBC_CHECK
  const Ledger before(env);
  team.barrier();
#endif
  affordable_demand(team, env);
  team.barrier();
  ration(team, env, scratch);
  team.barrier();
  reward_consumers(team, env, scratch);
  team.barrier();
  sell(team, env, scratch);
  team.barrier();
  run_firms(team, env, scratch);
  team.barrier();
  settle_consumers(team, env, scratch);
  team.barrier();
#ifdef RBC_CHECK
  if (team.first()) check_identities(env, scratch, before);
  team.barrier();
#endif
  post(team, env);
  reward_government(team, env);
}

#define RBC_RESET_ARGUMENTS                                                                                     \
  const int *sizes, const float *stage, int *done, int *timestep, int force, float *public_state,              \
      float *consumer_state, float *firm_state, const float *public_start, const float *consumer_start,        \
      const float *firm_start
#define RBC_RESET_VALUES                                                                                        \
  sizes, stage, done, timestep, force, public_state, consumer_state, firm_state, public_start, consumer_start, \
      firm_start

// Starting values, θ times the curriculum's factor, for environment e if it is done or the reset is forced.
template <class Team> RBC_FN void reset(Team& team, int e, RBC_RESET_ARGUMENTS) {
  if (!force && !done[e]) return;
  const int I = sizes[NUM_CONSUMERS], J = sizes[NUM_FIRMS];
  const size_t open = static_cast<size_t>(e) * public_size(J);
  const size_t consumers = static_cast<size_t>(e) * I * CONSUMER_PRIVATE_SIZE;
  const size_t firms = static_cast<size_t>(e) * J * (FIRM_ONE_HOT + J);
  team.each(public_size(J), [&](int n) { public_state[open + n] = public_start[open + n]; });
  team.each(J * (FIRM_ONE_HOT + J), [&](int n) { firm_state[firms + n] = firm_start[firms + n]; });
  team.each(I, [&](int i) {
    const size_t at = consumers + static_cast<size_t>(i) * CONSUMER_PRIVATE_SIZE;
    consumer_state[at + CONSUMER_BUDGET] = consumer_start[at + CONSUMER_BUDGET];
    consumer_state[at + CONSUMER_THETA] = consumer_start[at + CONSUMER_THETA] * stage[THETA_FACTOR];
  });
  team.barrier();
  if (team.first()) {
    done[e] = 0;
    timestep[e] = 0;
  }
}

}  // namespace rbc
