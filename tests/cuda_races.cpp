// Plays a few periods of the emulated device code; built with -fsanitize=thread it reports races between its threads.
#include "cuda_emulation.cpp"

#include <numeric>

int main() {
  const int E = 2, I = 40, J = 5, T = 3, P = 4 * J + 3, F = 3 + J;
  const int sizes[] = {I, J, T};
  const float parameters[] = {0.01f, 0.01f, 0.1f, 0.1f, 0.0f, 1.0f, 500.0f, 100.0f, 0.5f, 0.0025f, 1.0f, 100.0f};
  const float stage[] = {0.7f, 0.3f, 0.3f};
  std::vector<float> units(11), hours_of(5), firm_choices(90), taxes(72);
  std::iota(units.begin(), units.end(), 0.0f);
  for (int h = 0; h < 5; ++h) hours_of[h] = 260.0f * h;
  for (int a = 0; a < 30; ++a) {
    firm_choices[3 * a] = 500.0f * (a / 5);
    firm_choices[3 * a + 1] = 11.0f * (a % 5);
    firm_choices[3 * a + 2] = 0.1f;
  }
  for (int a = 0; a < 72; ++a) taxes[a] = 0.01f * a;
  std::vector<float> open_start(E * P), consumer_start(E * I * 2, 2000.0f), firm_start(E * J * F, 0.5f);
  for (int n = 0; n < E * P; ++n) open_start[n] = n % P < J ? 1000.0f : (n % P < 3 * J ? 20.0f : 0.0f);
  std::vector<float> open(E * P), consumers(E * I * 2), firms(E * J * F), consumer_rewards(E * I), firm_rewards(E * J);
  std::vector<float> government_rewards(E), consumption(E * I * J), exports(E * J), sales(E * J), hours(E * I), spending(E * I);
  std::vector<int> actions(E * I * (J + 2)), firm_actions(E * J), taxes_chosen(E, 3), employer(E * I), done(E), timestep(E);
  for (size_t n = 0; n < actions.size(); ++n) actions[n] = static_cast<int>(n * 7 % 5);
  for (size_t n = 0; n < firm_actions.size(); ++n) firm_actions[n] = static_cast<int>(n * 11 % 30);
  emulate_CudaRbcReset(E, 1, 64, sizes, stage, done.data(), timestep.data(), open.data(), consumers.data(), firms.data(),
                       open_start.data(), consumer_start.data(), firm_start.data(), 1);
  for (int t = 0; t < T; ++t) {
    emulate_CudaRbcStep(E, 1, 64, sizes, parameters, stage, units.data(), hours_of.data(), firm_choices.data(), taxes.data(),
                        open.data(), consumers.data(), firms.data(), actions.data(), firm_actions.data(),
                        taxes_chosen.data(), consumer_rewards.data(), firm_rewards.data(), government_rewards.data(),
                        consumption.data(), exports.data(), sales.data(), hours.data(), employer.data(), spending.data(),
                        done.data(), timestep.data());
  }
  const int rows = 40, heads = 2, offsets[] = {0, 5, 12}, draw_words[6] = {}, started[E] = {};
  const std::vector<unsigned char> allowed(12, 1);
  const float loss[] = {0.1f, 0.5f, 0.5f, 1.0f, 0.01f, 1.0f};
  std::vector<float> logits(rows * 14, 0.3f), figures(rows, 0.1f), statistics(2 * 5), log_probabilities(T * rows);
  std::vector<int> chosen(rows * heads, 1), recorded(T * rows * heads);
  emulate_CudaRbcLoss(2, 1, 64, rows, 16, heads, offsets, allowed.data(), logits.data(), 13, 0, chosen.data(),
                      figures.data(), figures.data(), figures.data(), figures.data(), loss, statistics.data());
  std::vector<float> values(log_probabilities);
#define DRAW(count)                                                                                             \
  count, heads, offsets, allowed.data(), logits.data(), 14, chosen.data(), recorded.data(), \
      log_probabilities.data(), values.data()
  emulate_CudaRbcSample(E, 2, 64, sizes, draw_words, started, 0, 16, DRAW(rows / E), DRAW(1), DRAW(0));
  std::vector<float> gradient(20 * 40, 1.0f), sums(2 * 40);
  emulate_CudaRbcAddRelu(3, 1, 64, 20, 10, 40, gradient.data(), 0, sums.data());
  emulate_CudaRbcMaskAndSum(2, 1, 64, 10, 40, 40, 1, gradient.data(), gradient.data(), 0, sums.data());
  const float rate = 0.1f, settings[] = {0.1f, 0.001f, -0.105f, -0.001f, 1e-8f, 0.5f};
  float steps = 0.0f, norm = 0.0f, squares[32];
  std::vector<float> moved(800, 0.1f), mean(800), square(800), copy(900);
  emulate_CudaRbcNorm(32, 1, 64, 800, gradient.data(), squares, &steps);
  emulate_CudaRbcAdam(13, 1, 64, 800, moved.data(), gradient.data(), mean.data(), square.data(), squares, &steps, &rate,
                      settings, &norm, 100, 3, 8, 20, 10, 0, copy.data(), 0);
  return 0;
}
