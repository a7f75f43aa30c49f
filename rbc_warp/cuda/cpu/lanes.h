// How the host spreads the agents of economy.h: sixteen side by side in a vector, one team for an environment.
#pragma once

#include <stddef.h>

#include "../numerics.h"

namespace rbc {

// Agents first … first+count-1, count <= 16; lanes beyond count read 0 and write nothing.
struct Lanes {
  int first, count;

  RBC_FN Floats zero() const { return Floats{}; }
  RBC_FN Floats splat(float x) const { return rbc::splat<Floats>(x); }
  template <class V, class T> RBC_FN V read(const T* from, int stride) const {
    V out = {};
    from += static_cast<ptrdiff_t>(first) * stride;
    if (stride == 1) {
      memcpy(&out, from, count == kLanes ? sizeof(out) : count * sizeof(T));
    } else {
      for (int lane = 0; lane < count; ++lane) out[lane] = from[lane * stride];
    }
    return out;
  }
  RBC_FN Floats load(const float* from, int stride = 1) const { return read<Floats>(from, stride); }
  RBC_FN Ints load(const int* from, int stride = 1) const { return read<Ints>(from, stride); }
  RBC_FN Floats look_up(const float* table, Ints index) const {  // unused lanes have index 0
    Floats out;
    for (int lane = 0; lane < kLanes; ++lane) out[lane] = table[index[lane]];
    return out;
  }
  template <class V, class T> RBC_FN void write(T* to, V x, int stride) const {
    to += static_cast<ptrdiff_t>(first) * stride;
    if (stride == 1) {
      memcpy(to, &x, count == kLanes ? sizeof(x) : count * sizeof(T));
    } else {
      for (int lane = 0; lane < count; ++lane) to[lane * stride] = x[lane];
    }
  }
  RBC_FN void store(float* to, Floats x, int stride = 1) const { write(to, x, stride); }
  RBC_FN void store(int* to, Ints x, int stride = 1) const { write(to, x, stride); }
};

struct HostTeam {
  template <class F> RBC_FN void each(int n, F f) {
    for (int i = 0; i < n; ++i) f(i);
  }
  template <class F> RBC_FN void each_pair(int rows, int columns, F f) {
    for (int i = 0; i < rows; ++i) {
      for (int n = 0; n < columns; ++n) f(i, n);
    }
  }
  template <class F> RBC_FN void each_group(int n, F f) {
    for (int j = 0; j < n; ++j) f(j);
  }
  template <class F> RBC_FN void each_lanes(int n, F f) {
    int i = 0;
    for (; i + kLanes <= n; i += kLanes) f(Lanes{i, kLanes});
    if (i < n) f(Lanes{i, n - i});
  }
  template <class F> RBC_FN float sum(int n, F term) {
    Floats even = {}, odd = {};
    int i = 0;
    for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
      even += term(Lanes{i, kLanes});
      odd += term(Lanes{i + kLanes, kLanes});
    }
    if (i + kLanes <= n) {
      even += term(Lanes{i, kLanes});
      if (i + kLanes < n) odd += term(Lanes{i + kLanes, n - i - kLanes});
    } else if (i < n) {
      even += term(Lanes{i, n - i});
    }
    return fold(even + odd);
  }
  RBC_FN bool leads() const { return true; }
  RBC_FN bool first() const { return true; }
  RBC_FN void barrier() {}
};

}  // namespace rbc
