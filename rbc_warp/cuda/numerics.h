// Arithmetic that is bit for bit the same under g++ and nvcc: every function is a fixed sequence of IEEE operations
// with explicit fused multiply-adds, so build with -ffp-contract=off (g++) and --fmad=false (nvcc).
// The value type V is `float`, or on the host a vector of floats whose lanes are computed independently.
#pragma once

#include <stdint.h>
#include <string.h>

#ifdef __CUDACC__
#define RBC_FN __host__ __device__ __forceinline__
#define RBC_PRAGMA(words) _Pragma(#words)
#define RBC_UNROLL(n) RBC_PRAGMA(unroll (n))  // nvcc's own choice makes short loops long
#else
#define RBC_FN inline __attribute__((always_inline))
#define RBC_UNROLL(n)
#endif

#define RBC_COMMA ,  // between the entries of a list of arguments

namespace rbc {

template <class V> struct Types;
template <> struct Types<float> {
  using Int = int32_t;
  using Unsigned = uint32_t;
};

template <class To, class From> RBC_FN To bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "bits() reinterprets, it does not convert");
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}

RBC_FN float fma(float a, float b, float c) { return fmaf(a, b, c); }
RBC_FN float select(bool take, float a, float b) { return take ? a : b; }
RBC_FN float to_float(int32_t i) { return static_cast<float>(i); }
RBC_FN float sqrt(float x) { return sqrtf(x); }

RBC_FN float from_bfloat16(uint16_t x) { return bits<float>(static_cast<uint32_t>(x) << 16); }
// bfloat16's bits, rounded to nearest even; of any number.
RBC_FN uint16_t rounded_to_bfloat16(float x) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800  // one instruction; only the bits of a NaN differ
  uint16_t rounded;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(rounded) : "f"(x));
  return rounded;
#else
  const uint32_t b = bits<uint32_t>(x);
  return x != x ? 0x7fc0 : static_cast<uint16_t>((b + 0x7fffu + ((b >> 16) & 1u)) >> 16);
#endif
}

#ifndef __CUDACC__
// Sixteen rows side by side; the compiler splits them to the machine's width.
constexpr int kLanes = 16;
typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));
typedef uint32_t Unsigneds __attribute__((vector_size(4 * kLanes)));
template <> struct Types<Floats> {
  using Int = Ints;
  using Unsigned = Unsigneds;
};
RBC_FN Floats fma(Floats a, Floats b, Floats c) {
#ifdef __AVX512F__
  return (Floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#else
  Floats out;
  for (int lane = 0; lane < kLanes; ++lane) out[lane] = fmaf(a[lane], b[lane], c[lane]);
  return out;
#endif
}
RBC_FN Floats select(Ints take, Floats a, Floats b) { return take ? a : b; }
RBC_FN Floats to_float(Ints i) { return __builtin_convertvector(i, Floats); }

// Adds sixteen lanes as a binary tree: l and l+8, then l+4, l+2, l+1.
RBC_FN float fold(Floats x) {
  typedef float Eight __attribute__((vector_size(32)));
  typedef float Four __attribute__((vector_size(16)));
  Eight eights[2];
  memcpy(eights, &x, sizeof(x));
  const Eight eight = eights[0] + eights[1];
  Four fours[2];
  memcpy(fours, &eight, sizeof(eight));
  const Four four = fours[0] + fours[1];
  return (four[0] + four[2]) + (four[1] + four[3]);
}

RBC_FN uint16_t to_bfloat16(float x) {  // round to nearest even; the values here are finite
  const uint32_t b = bits<uint32_t>(x);
  return static_cast<uint16_t>((b + 0x7fffu + ((b >> 16) & 1u)) >> 16);
}
#endif

template <class V> RBC_FN V splat(float x) { return V{} + x; }
template <class V> RBC_FN V maximum(V a, V b) { return select(a > b, a, b); }
template <class V> RBC_FN V minimum(V a, V b) { return select(a < b, a, b); }
#if !defined(__CUDACC__) && defined(__AVX512F__)  // the same choices in one instruction
RBC_FN Floats maximum(Floats a, Floats b) { return (Floats)_mm512_maskz_max_ps(0xffff, (__m512)a, (__m512)b); }
RBC_FN Floats minimum(Floats a, Floats b) { return (Floats)_mm512_maskz_min_ps(0xffff, (__m512)a, (__m512)b); }
#endif

// x within bounds that are numbers; for a NaN the lower one.
template <class V> RBC_FN V clamp(V x, float low, float high) { return minimum(maximum(x, splat<V>(low)), splat<V>(high)); }
#ifdef __CUDACC__
RBC_FN float clamp(float x, float low, float high) { return fminf(fmaxf(x, low), high); }  // two instructions, not four
#endif

// e^x - 1 = 2^n e^r - 1 with |r| <= ln2/2. Relative error below 3 ulp; x clamped to [-87, 88].
template <class V> RBC_FN void exp_parts(V x, V& power, V& expm1_rest) {
  using Int = typename Types<V>::Int;
  x = clamp(x, -87.0f, 88.0f);
  const V magic = splat<V>(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer, kept in the lowest bits
  const V rounded = fma(x, splat<V>(1.44269502f), magic), n = rounded - magic;
  V r = fma(n, splat<V>(-0.693145752f), x);
  r = fma(n, splat<V>(-1.42860677e-6f), r);
  V q = splat<V>(0.0013947595143690705f);
  q = fma(q, r, splat<V>(0.008367246948182583f));
  q = fma(q, r, splat<V>(0.041666265577077866f));
  q = fma(q, r, splat<V>(0.16666537523269653f));
  q = fma(q, r, splat<V>(0.5f));
  expm1_rest = fma(r * r, q, r);
  power = bits<V>((bits<Int>(rounded) << 23) + 0x3f800000);
}

template <class V> RBC_FN V exp(V x) {
  V power, rest;
  exp_parts(x, power, rest);
  return fma(power, rest, power);
}

template <class V> RBC_FN V expm1(V x) {
  V power, rest;
  exp_parts(x, power, rest);
  return fma(power, rest, power - 1.0f);
}

// log(m 2^k) = k ln2 + log1p(f), f = m - 1 in [-1/4, 1/2); k comes as k 2^23. Absolute error of the series below 2e-8.
template <class V> RBC_FN V log_from_parts(V k, V f) {
  V p = splat<V>(0.05722660571336746f);
  p = fma(p, f, splat<V>(-0.12279431521892548f));
  p = fma(p, f, splat<V>(0.14934894442558289f));
  p = fma(p, f, splat<V>(-0.16775217652320862f));
  p = fma(p, f, splat<V>(0.19978591799736023f));
  p = fma(p, f, splat<V>(-0.24996618926525116f));
  p = fma(p, f, splat<V>(0.3333354890346527f));
  V f2 = f * f;
  V series = fma(f2 * f, p, fma(f2, splat<V>(-0.5f), f));
  return fma(k, splat<V>(8.26295829e-8f), series);  // ln2 / 2^23
}

// u = m 2^k with m in [3/4, 3/2): k 2^23 and 2^-k.
template <class V> RBC_FN void log_split(V u, V& k, V& scale) {
  using Int = typename Types<V>::Int;
  Int exponent = (bits<Int>(u) - 0x3f400000) & ~0x7fffff;  // 0x3f400000 is 3/4
  k = to_float(exponent);
  scale = bits<V>(0x3f800000 - exponent);
}

// log(x) for normal x > 0.
template <class V> RBC_FN V log(V x) {
  V k, scale;
  log_split(x, k, scale);
  return log_from_parts(k, fma(x, scale, splat<V>(-1.0f)));
}

// log(1 + x) for x >= 0, accurate near 0: (1 + x) 2^-k - 1 is formed with one rounding.
template <class V> RBC_FN V log1p(V x) {
  V k, scale;
  log_split(x + 1.0f, k, scale);
  return log_from_parts(k, fma(x, scale, scale - 1.0f));
}

// x^a for x > 0 and a >= 0; for x <= 0 as 0^a: 1 at a = 0, else 0.
template <class V> RBC_FN V power(V x, V a) {
  const V at_zero = select(a == 0.0f, splat<V>(1.0f), splat<V>(0.0f));
  return select(x > 0.0f, exp(a * log(x)), at_zero);
}

// Philox4x32-10 (Salmon et al., SC'11): four random words from a counter and a key, no state.
template <class U> struct Philox {
  U word[4];
};

RBC_FN void multiply(uint32_t a, uint32_t b, uint32_t& high, uint32_t& low) {
  uint64_t product = static_cast<uint64_t>(a) * b;
  high = static_cast<uint32_t>(product >> 32);
  low = static_cast<uint32_t>(product);
}
#ifndef __CUDACC__
RBC_FN void multiply(uint32_t a, Unsigneds b, Unsigneds& high, Unsigneds& low) {
  typedef uint64_t Wide __attribute__((vector_size(8 * kLanes)));
  Wide product = __builtin_convertvector(b, Wide) * static_cast<uint64_t>(a);
  high = __builtin_convertvector(product >> 32, Unsigneds);
  low = __builtin_convertvector(product, Unsigneds);
}
#endif

template <class U> RBC_FN Philox<U> philox(Philox<U> counter, uint32_t key0, uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    U high0, low0, high1, low1;
    multiply(0xD2511F53u, counter.word[0], high0, low0);
    multiply(0xCD9E8D57u, counter.word[2], high1, low1);
    counter = {{high1 ^ counter.word[1] ^ key0, low1, high0 ^ counter.word[3] ^ key1, low0}};
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return counter;
}

// Uniform in [0, 1) on a grid of 2^-24.
RBC_FN float uniform(uint32_t word) { return to_float(static_cast<int32_t>(word >> 8)) * 5.9604644775390625e-8f; }
#ifndef __CUDACC__
RBC_FN Floats uniform(Unsigneds word) { return to_float((Ints)(word >> 8)) * 5.9604644775390625e-8f; }
#endif

}  // namespace rbc
