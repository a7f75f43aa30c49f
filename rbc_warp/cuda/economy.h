// The economy, one function per numbered step of the model, in the order and under the names of reference.py.
//
// A Team says how agents are spread: `each(n, f)` calls f(0..n-1), in a plain loop on the host and over a block's
// threads on the device; `each_group(n, f)` does so for work that contains sums; `each_lanes(n, f)` hands f some agents
// side by side, sixteen on the host and one on the device; `sum(n, term)` adds term(lanes) over n agents in 32 interleaved
// partial sums folded as a binary tree, so that host and device round alike; `barrier()` ends a phase. No thread index,
// shared memory or global stands here.
#pragma once

#include "numerics.h"

namespace rbc {

// What Python fills and passes, in this order: warpdrive/tables.py reads the lists of this file and of heads.h, so that
// an order is stated once. J stands for the number of firms.
#define RBC_SIZES(X) X(NUM_CONSUMERS) X(NUM_FIRMS) X(NUM_PERIODS)
#define RBC_PARAMETERS(X) X(TECHNOLOGY) X(BUDGET_DRIP) X(INTEREST_RATE) X(CRRA) X(LABOR_FLOOR) X(USE_IMPORTER) \
  X(IMPORTER_PRICE) X(IMPORTER_QUANTITY) X(BOOST_FIRM_REWARD_FACTOR) X(FIRM_REWARD_FOR_GOVERNMENT_FACTOR) \
  X(CONSUMER_PENALTY_SCALE) X(FIRM_PENALTY_SCALE)
#define RBC_STAGE(X) X(THETA_FACTOR) X(CONSUMER_MULTIPLIER) X(FIRM_MULTIPLIER)
// States: the public one by column and width, then the private ones by column; a firm's last column has J numbers.
#define RBC_PUBLIC(X) X(prices, J) X(wages, J) X(inventories, J) X(overdemanded, J) X(income_tax, 1) \
  X(corporate_tax, 1) X(time, 1)
#define RBC_CONSUMER(X) X(BUDGET) X(THETA)
#define RBC_FIRM(X) X(BUDGET) X(CAPITAL) X(ALPHA) X(ONE_HOT)
// Columns of the tables of joint choices.
#define RBC_FIRM_CHOICE(X) X(PRICE) X(WAGE) X(INVESTMENT)
#define RBC_GOVERNMENT_CHOICE(X) X(INCOME_TAX) X(CORPORATE_TAX)
// What firms know within a period, J floats each, in a team's scratch memory.
#define RBC_SCRATCH(X) X(labor) X(ration) X(corporate_tax)
// Every array that a step or a reset reads or writes, under its name in WarpDrive's data manager.
#define RBC_STEP_ARRAYS(X, AND)                                                                                       \
  X(const int, sizes) AND X(const float, parameters) AND X(const float, stage) AND                                    \
  X(const float, consumption_choices) AND X(const float, work_choices) AND X(const float, firm_choices) AND           \
  X(const float, government_choices) AND X(float, public_state) AND X(float, observations_consumer) AND               \
  X(float, observations_firm) AND X(const int, sampled_actions_consumer) AND X(const int, sampled_actions_firm) AND   \
  X(const int, sampled_actions_government) AND X(float, rewards_consumer) AND X(float, rewards_firm) AND              \
  X(float, rewards_government) AND X(float, consumption) AND X(float, exports) AND X(float, sales) AND                \
  X(float, hours) AND X(int, employer) AND X(float, spending) AND X(int, _done_) AND X(int, _timestep_)
#define RBC_RESET_ARRAYS(X, AND)                                                                                      \
  X(const int, sizes) AND X(const float, stage) AND X(int, _done_) AND X(int, _timestep_) AND                         \
  X(float, public_state) AND X(float, observations_consumer) AND X(float, observations_firm) AND                      \
  X(const float, public_state_at_reset) AND X(const float, observations_consumer_at_reset) AND                        \
  X(const float, observations_firm_at_reset)

#define RBC_POINTER(type, name) type* name
#define RBC_NAME(type, name) name
#define RBC_STEP_ARGUMENTS RBC_STEP_ARRAYS(RBC_POINTER, RBC_COMMA)
#define RBC_STEP_VALUES RBC_STEP_ARRAYS(RBC_NAME, RBC_COMMA)
#define RBC_RESET_ARGUMENTS RBC_RESET_ARRAYS(RBC_POINTER, RBC_COMMA), int force
#define RBC_RESET_VALUES RBC_RESET_ARRAYS(RBC_NAME, RBC_COMMA), force

#define RBC_PLAIN(name) name,
#define RBC_OF_CONSUMER(name) CONSUMER_##name,
#define RBC_OF_FIRM(name) FIRM_##name,
#define RBC_CHOSEN(name) CHOSEN_##name,
#define RBC_COUNT(name) +1
enum Size { RBC_SIZES(RBC_PLAIN) NUM_SIZES };
enum Parameter { RBC_PARAMETERS(RBC_PLAIN) NUM_PARAMETERS };
enum StageValue { RBC_STAGE(RBC_PLAIN) NUM_STAGE_VALUES };
enum ConsumerState { RBC_CONSUMER(RBC_OF_CONSUMER) CONSUMER_PRIVATE_SIZE };
enum FirmState { RBC_FIRM(RBC_OF_FIRM) NUM_FIRM_COLUMNS };
enum FirmChoice { RBC_FIRM_CHOICE(RBC_CHOSEN) NUM_FIRM_CHOICES };
enum GovernmentChoice { RBC_GOVERNMENT_CHOICE(RBC_CHOSEN) NUM_GOVERNMENT_CHOICES };
constexpr int kFirmChoices = NUM_FIRM_CHOICES, kScratchPerFirm = 0 RBC_SCRATCH(RBC_COUNT);
static_assert(FIRM_ONE_HOT == NUM_FIRM_COLUMNS - 1, "the one-hot number, of J columns, comes last");
#undef RBC_PLAIN
#undef RBC_OF_CONSUMER
#undef RBC_OF_FIRM
#undef RBC_CHOSEN
#undef RBC_COUNT

#define RBC_WIDTH(name, width) +width
RBC_FN int public_size(int J) { return 0 RBC_PUBLIC(RBC_WIDTH); }
#undef RBC_WIDTH
RBC_FN int firm_size(int J) { return FIRM_ONE_HOT + J; }

// One environment's slices of those arrays.
struct Environment {
  int num_consumers, num_firms, num_periods;
  const float *parameters, *stage, *consumption_choices, *work_choices;
#define RBC_FIELD(name, width) float* name;
  RBC_PUBLIC(RBC_FIELD)
#undef RBC_FIELD
  float *consumer, *firm;           // (I, 2), (J, 3+J)
  const int* actions;               // (I, J+2)
  const int* firm_actions;          // (J,)
  const float* firm_choices;        // (k, 3)
  const float* government_choice;   // (2,)
  float *consumer_rewards, *firm_rewards, *government_reward;
  float* consumption;               // (J, I): affordable demand, then units consumed
  float *exports, *sales;           // (J,)
  float *hours, *spending;          // (I,)
  int* employer;                    // (I,)
  int *done, *timestep;

  RBC_FN float parameter(Parameter p) const { return parameters[p]; }
  RBC_FN float& budget(int i) const { return consumer[i * CONSUMER_PRIVATE_SIZE + CONSUMER_BUDGET]; }
  RBC_FN float* demand(int j) const { return consumption + static_cast<size_t>(j) * num_consumers; }
  RBC_FN float& firm_budget(int j) const { return firm[j * firm_size(num_firms) + FIRM_BUDGET]; }
  RBC_FN float& capital(int j) const { return firm[j * firm_size(num_firms) + FIRM_CAPITAL]; }
  RBC_FN bool last_period() const { return *timestep + 1 >= num_periods; }
};

RBC_FN Environment environment(int e, RBC_STEP_ARGUMENTS) {
  const int I = sizes[NUM_CONSUMERS], J = sizes[NUM_FIRMS];
  const size_t at = static_cast<size_t>(e);
  float* open = public_state + at * public_size(J);
  Environment env;
  env.num_consumers = I;
  env.num_firms = J;
  env.num_periods = sizes[NUM_PERIODS];
  env.parameters = parameters;
  env.stage = stage;
  env.consumption_choices = consumption_choices;
  env.work_choices = work_choices;
#define RBC_SLICE(name, width) env.name = open, open += width;
  RBC_PUBLIC(RBC_SLICE)
#undef RBC_SLICE
  env.consumer = observations_consumer + at * I * CONSUMER_PRIVATE_SIZE;
  env.firm = observations_firm + at * J * firm_size(J);
  env.actions = sampled_actions_consumer + at * I * (J + 2);
  env.firm_actions = sampled_actions_firm + at * J;
  env.firm_choices = firm_choices;
  env.government_choice = government_choices + NUM_GOVERNMENT_CHOICES * sampled_actions_government[e];
  env.consumer_rewards = rewards_consumer + at * I;
  env.firm_rewards = rewards_firm + at * J;
  env.government_reward = rewards_government + e;
  env.consumption = consumption + at * J * I;
  env.exports = exports + at * J;
  env.sales = sales + at * J;
  env.hours = hours + at * I;
  env.spending = spending + at * I;
  env.employer = employer + at * I;
  env.done = _done_ + e;
  env.timestep = _timestep_ + e;
  return env;
}

struct Scratch {
#define RBC_FIELD(name) float* name;
  RBC_SCRATCH(RBC_FIELD)
#undef RBC_FIELD
  RBC_FN Scratch(float* memory, int num_firms) {
#define RBC_SLICE(name) name = memory, memory += num_firms;
    RBC_SCRATCH(RBC_SLICE)
#undef RBC_SLICE
  }
};

// Step 1: asked demand, scaled to what the budget buys. Also notes hours and employer.
template <class Team> RBC_FN void affordable_demand(Team& team, const Environment& env) {
  const int J = env.num_firms, width = J + 2;
  team.each_lanes(env.num_consumers, [&](auto lanes) {
    auto cost = lanes.zero();
    for (int j = 0; j < J; ++j) {
      const auto asked = lanes.look_up(env.consumption_choices, lanes.load(env.actions + j, width));
      cost = fma(lanes.splat(env.prices[j]), asked, cost);
      lanes.store(env.demand(j), asked);
    }
    lanes.store(env.hours, lanes.look_up(env.work_choices, lanes.load(env.actions + J, width)));
    lanes.store(env.employer, lanes.load(env.actions + J + 1, width));
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
template <class Lanes> RBC_FN auto pay_wages(Lanes lanes, const Environment& env) {
  return lanes.look_up(env.wages, lanes.load(env.employer)) * lanes.load(env.hours);
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
template <class Team> RBC_FN float redistribute(Team& team, const Environment& env, const Scratch& scratch) {
  const float rate = *env.income_tax;
  const float income_taxes = team.sum(env.num_consumers, [&](auto lanes) { return rate * pay_wages(lanes, env); });
  return income_taxes + team.sum(env.num_firms, [&](auto lanes) { return lanes.load(scratch.corporate_tax); });
}

// Step 8: net wages and the transfer, which everybody gets, less the bill.
template <class Lanes> RBC_FN auto change_consumer_budgets(Lanes lanes, const Environment& env, float transfer) {
  const auto kept = lanes.splat(1.0f - *env.income_tax);
  return fma(kept, pay_wages(lanes, env), lanes.splat(transfer)) - lanes.load(env.spending);
}

// Step 10: interest on a positive balance. V is one budget or several.
template <class V> RBC_FN V settle_budgets(V balance, float interest_rate) {
  return select(balance > 0.0f, balance * (1.0f + interest_rate), balance);
}

// Step 10: the no-Ponzi term. `price` is the coefficient over the scale in the last period, 0 before it.
RBC_FN float multiplier_per_debt(const Environment& env, StageValue coefficient, Parameter scale) {
  return env.last_period() ? env.stage[coefficient] / env.parameter(scale) : 0.0f;
}
template <class V> RBC_FN V charge_debt(V reward, V budget, float price) {
  return reward - price * maximum(-budget, V{});
}

// Step 3: what each firm sells to consumers; rounding must not sell what is not there.
template <class Team> RBC_FN void sell(Team& team, const Environment& env) {
  team.each_group(env.num_firms, [&](int j) {
    const float total = team.sum(env.num_consumers, [&](auto lanes) { return lanes.load(env.demand(j)); });
    if (team.leads()) env.sales[j] = minimum(total, env.inventories[j]);
  });
}

// Steps 5, 6, 7 and 10 for firms. Posted prices and wages stay as they are.
template <class Team> RBC_FN void run_firms(Team& team, const Environment& env, const Scratch& scratch) {
  const float per_debt = multiplier_per_debt(env, FIRM_MULTIPLIER, FIRM_PENALTY_SCALE);
  const int width = firm_size(env.num_firms);
  team.each_lanes(env.num_firms, [&](auto lanes) {
    const auto price = lanes.load(env.prices), labor = lanes.load(scratch.labor), sold = lanes.load(env.sales);
    const auto left = lanes.load(env.inventories) - sold;
    const auto exported = export_goods(env, price, left);
    const auto share = lanes.look_up(env.firm_choices + CHOSEN_INVESTMENT, lanes.load(env.firm_actions) * kFirmChoices);
    const auto wage = lanes.load(env.wages);
    const auto accounts = close_firm_accounts(price, wage, sold + exported, labor, share, *env.corporate_tax);
    const auto change = accounts.profit - accounts.corporate_tax;
    const auto budget = lanes.load(env.firm + FIRM_BUDGET, width) + change;
    const auto settled = settle_budgets(budget, env.parameter(INTEREST_RATE));
    const auto reward = reward_firms(env, budget, change, accounts.revenue);
    const auto capital = lanes.load(env.firm + FIRM_CAPITAL, width), alpha = lanes.load(env.firm + FIRM_ALPHA, width);
    lanes.store(env.firm_rewards, charge_debt(reward, settled, per_debt));
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
  const float transfer = redistribute(team, env, scratch) / static_cast<float>(I) + env.parameter(BUDGET_DRIP);
  const float price = multiplier_per_debt(env, CONSUMER_MULTIPLIER, CONSUMER_PENALTY_SCALE);
  team.each_lanes(I, [&](auto lanes) {
    const auto budget = lanes.load(&env.budget(0), CONSUMER_PRIVATE_SIZE);
    const auto change = change_consumer_budgets(lanes, env, transfer);
    const auto settled = settle_budgets(budget + change, env.parameter(INTEREST_RATE));
    lanes.store(&env.budget(0), settled, CONSUMER_PRIVATE_SIZE);
    lanes.store(env.consumer_rewards, charge_debt(lanes.load(env.consumer_rewards), settled, price));
  });
}

// Step 9: the new prices, wages and taxes bind from the next period.
template <class Team> RBC_FN void post(Team& team, const Environment& env) {
  team.each(env.num_firms, [&](int j) {
    const float* const choice = env.firm_choices + env.firm_actions[j] * NUM_FIRM_CHOICES;
    env.prices[j] = choice[CHOSEN_PRICE];
    env.wages[j] = choice[CHOSEN_WAGE];
  });
  if (team.first()) {
    *env.income_tax = env.government_choice[CHOSEN_INCOME_TAX];
    *env.corporate_tax = env.government_choice[CHOSEN_CORPORATE_TAX];
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

}  // namespace rbc

#ifdef RBC_CHECK
#include "identities.h"
#endif

namespace rbc {

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
  sell(team, env);
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

// Starting values, θ times the curriculum's factor, for environment e if it is done or the reset is forced.
template <class Team> RBC_FN void reset(Team& team, int e, RBC_RESET_ARGUMENTS) {
  if (!force && !_done_[e]) return;
  const int I = sizes[NUM_CONSUMERS], J = sizes[NUM_FIRMS];
  const size_t open = static_cast<size_t>(e) * public_size(J), firms = static_cast<size_t>(e) * J * firm_size(J);
  const size_t consumers = static_cast<size_t>(e) * I * CONSUMER_PRIVATE_SIZE;
  team.each(public_size(J), [&](int n) { public_state[open + n] = public_state_at_reset[open + n]; });
  team.each(J * firm_size(J), [&](int n) { observations_firm[firms + n] = observations_firm_at_reset[firms + n]; });
  team.each(I * CONSUMER_PRIVATE_SIZE, [&](int n) {
    const float start = observations_consumer_at_reset[consumers + n];
    const bool felt = n % CONSUMER_PRIVATE_SIZE == CONSUMER_THETA;
    observations_consumer[consumers + n] = felt ? start * stage[THETA_FACTOR] : start;
  });
  team.barrier();
  if (team.first()) {
    _done_[e] = 0;
    _timestep_[e] = 0;
  }
}

}  // namespace rbc
