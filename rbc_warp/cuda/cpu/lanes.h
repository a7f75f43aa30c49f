// How the host spreads the agents of economy.h: sixteen side by side in a vector, one team for an environment.
#pragma once

#include <stddef.h>

#include "../numerics.h"

namespace rbc {

constexpr Ints kFirstLanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

// Numbers to be looked up, the first sixteen in a vector.
struct Table {
  const float* values;
  int count;
  Floats first;
};

// Agents first … first+count-1, count <= 16; lanes beyond count read 0 and write nothing.
struct Lanes {
  int first, count;
#ifdef __AVX512F__
  RBC_FN __mmask16 mask() const { return static_cast<__mmask16>(0xffff >> (kLanes - count)); }
#endif

  RBC_FN Floats zero() const { return Floats{}; }
  RBC_FN Floats splat(float x) const { return rbc::splat<Floats>(x); }
  template <class V, class T> RBC_FN V read(const T* from) const {
    V out = {};
    if (count == kLanes) {
      memcpy(&out, from + first, sizeof(out));
    } else {
#ifdef __AVX512F__
      out = (V)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1 << count) - 1), from + first);
#else
      for (int lane = 0; lane < count; ++lane) out[lane] = from[first + lane];
#endif
    }
    return out;
  }
  RBC_FN Floats load(const float* from) const { return read<Floats>(from); }
  RBC_FN Ints load(const int* from) const { return read<Ints>(from); }
  RBC_FN Floats load(const float* from, int stride) const {
    from += static_cast<ptrdiff_t>(first) * stride;
#ifdef __AVX512F__
    if (stride == 2) {
      const uint32_t wanted = UINT32_MAX >> (2 * (kLanes - count) + 1);
      const __m512 low = _mm512_maskz_loadu_ps(static_cast<__mmask16>(wanted), from);
      const __m512 high = _mm512_maskz_loadu_ps(static_cast<__mmask16>(wanted >> kLanes), from + kLanes);
      return (Floats)_mm512_permutex2var_ps(low, (__m512i)(kFirstLanes * 2), high);
    }
    return (Floats)_mm512_mask_i32gather_ps(_mm512_setzero_ps(), mask(), (__m512i)(kFirstLanes * stride), from, 4);
#endif
    Floats out = {};
    for (int lane = 0; lane < count; ++lane) out[lane] = from[lane * stride];
    return out;
  }
  RBC_FN Floats gather(const float* from, Ints index) const {  // unused lanes have index 0
#ifdef __AVX512F__
    return (Floats)_mm512_mask_i32gather_ps(_mm512_setzero_ps(), 0xffff, (__m512i)index, from, sizeof(float));
#endif
    Floats out;
    for (int lane = 0; lane < kLanes; ++lane) out[lane] = from[index[lane]];
    return out;
  }
  RBC_FN Floats look_up(const Table& table, Ints index) const {
#ifdef __AVX512F__
    if (table.count <= kLanes) return (Floats)_mm512_maskz_permutexvar_ps(0xffff, (__m512i)index, (__m512)table.first);
#endif
    return gather(table.values, index);
  }
  // f(column, its sixteen values) for each column of these agents' rows of `width`; unused lanes repeat the first row.
  template <class F> RBC_FN void each_choice(const int* from, int width, F f) const {
    from += static_cast<size_t>(first) * width;
    int column = 0;
#ifdef __AVX512F__
    for (; column + 4 <= width; column += 4) {  // four columns of four rows lie in each quarter of a vector
      const auto quarter = [&](int lane) {
        return _mm_loadu_si128((const __m128i*)(from + (lane < count ? lane : 0) * width + column));
      };
      __m512i x[4];
      for (int r = 0; r < 4; ++r) {
        const __m256i low = _mm256_inserti128_si256(_mm256_castsi128_si256(quarter(r)), quarter(r + 4), 1);
        const __m256i high = _mm256_inserti128_si256(_mm256_castsi128_si256(quarter(r + 8)), quarter(r + 12), 1);
        x[r] = _mm512_maskz_inserti64x4(0xff, _mm512_castsi256_si512(low), high, 1);
      }
      const __m512i low01 = _mm512_maskz_unpacklo_epi32(0xffff, x[0], x[1]);
      const __m512i low23 = _mm512_maskz_unpacklo_epi32(0xffff, x[2], x[3]);
      const __m512i high01 = _mm512_maskz_unpackhi_epi32(0xffff, x[0], x[1]);
      const __m512i high23 = _mm512_maskz_unpackhi_epi32(0xffff, x[2], x[3]);
      f(column, (Ints)_mm512_maskz_unpacklo_epi64(0xff, low01, low23));
      f(column + 1, (Ints)_mm512_maskz_unpackhi_epi64(0xff, low01, low23));
      f(column + 2, (Ints)_mm512_maskz_unpacklo_epi64(0xff, high01, high23));
      f(column + 3, (Ints)_mm512_maskz_unpackhi_epi64(0xff, high01, high23));
    }
#endif
    for (; column < width; ++column) {
      Ints x;
      for (int lane = 0; lane < kLanes; ++lane) x[lane] = from[(lane < count ? lane : 0) * width + column];
      f(column, x);
    }
  }
  template <class T, class V> RBC_FN void write(T* to, V x) const {
    if (count == kLanes) {
      memcpy(to + first, &x, sizeof(x));
    } else {
#ifdef __AVX512F__
      _mm512_mask_storeu_ps(to + first, mask(), (__m512)x);
#else
      for (int lane = 0; lane < count; ++lane) to[first + lane] = x[lane];
#endif
    }
  }
  RBC_FN void store(float* to, Floats x) const { write(to, x); }
  RBC_FN void store(int* to, Ints x) const { write(to, x); }
  RBC_FN void store(float* to, Floats x, int stride) const {
    to += static_cast<ptrdiff_t>(first) * stride;
#ifdef __AVX512F__
    if (stride == 2) {
      const uint32_t wanted = 0x55555555u >> (2 * (kLanes - count));
      const __m512 low = _mm512_maskz_permutexvar_ps(0xffff, (__m512i)(kFirstLanes / 2), (__m512)x);
      const __m512 high = _mm512_maskz_permutexvar_ps(0xffff, (__m512i)(kFirstLanes / 2 + 8), (__m512)x);
      _mm512_mask_storeu_ps(to, static_cast<__mmask16>(wanted), low);
      _mm512_mask_storeu_ps(to + kLanes, static_cast<__mmask16>(wanted >> kLanes), high);
      return;
    }
#endif
    for (int lane = 0; lane < count; ++lane) to[lane * stride] = x[lane];
  }
};

struct HostTeam {
  template <class F> RBC_FN void each(int n, F f) {
    for (int i = 0; i < n; ++i) f(i);
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
  RBC_FN Table table(const float* values, int count) const {
    return {values, count, Lanes{0, count < kLanes ? count : kLanes}.load(values)};
  }
  RBC_FN bool leads() const { return true; }
  RBC_FN bool first() const { return true; }
  RBC_FN void barrier() {}
};

}  // namespace rbc
