// The network of one agent type on a CPU with AVX-512: two ReLU layers, then the heads' logits and the value. Forward
// and backward run over blocks of rows whose activations stay in a core's cache.
//
// Matrices are held in units of 32 bits: one float, or two neighboring bfloat16 numbers that a product adds up (Float32,
// Bfloat16). Every product is C[m][n] = sum over u of A[m][u] B[u][n], sixteen n to a vector; A is read unit by unit in
// any layout (Operand), B lies in panels of columns, [panel][unit][column]. An activation is kept twice: `rows`,
// [row][unit] with units of neighboring columns, and `pairs`, panels with units of neighboring rows. Sums are float32.
#pragma once

#include "../numerics.h"

#ifdef __AVX512F__
#include <vector>

namespace rbc {

typedef uint32_t Unit;
constexpr int kHidden = 128;

// Products in float32.
struct Float32 {
  using Stored = float;
  static constexpr int kNumbers = 1;                     // in a unit
  static constexpr int kBlockRows = 64;                  // whose activations fit a cache of half a megabyte
  static constexpr int kTileRows = 8, kTileVectors = 2;  // of a product, in registers while it is added up
  RBC_FN static Floats multiply_add(Unit a, const Unit* b, Floats sum) {
    return (Floats)_mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_set1_epi32(a)), _mm512_loadu_ps(b), (__m512)sum);
  }
  RBC_FN static Unit unit(float first, float) { return bits<Unit>(first); }
  RBC_FN static Unit pair(const float* first, const float*) { return bits<Unit>(*first); }
  // Keeps sixteen columns of two neighboring rows.
  RBC_FN static void keep(Floats even, Floats odd, Unit* even_row, Unit* odd_row, Unit* pairs, size_t pairs_stride) {
    _mm512_storeu_ps(even_row, (__m512)even);
    _mm512_storeu_ps(odd_row, (__m512)odd);
    _mm512_storeu_ps(pairs, (__m512)even);
    _mm512_storeu_ps(pairs + pairs_stride, (__m512)odd);
  }
  RBC_FN static __mmask16 positive(const Unit* row, int column) {
    return _mm512_cmpgt_epi32_mask(_mm512_loadu_si512(row + column), _mm512_setzero_si512());
  }
};

#ifdef __AVX512BF16__
// Products of bfloat16 numbers.
struct Bfloat16 {
  using Stored = uint16_t;
  static constexpr int kNumbers = 2;
  static constexpr int kBlockRows = 128;
  static constexpr int kTileRows = 4, kTileVectors = 4;
  RBC_FN static Floats multiply_add(Unit a, const Unit* b, Floats sum) {
    return (Floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(a), (__m512bh)_mm512_loadu_si512(b));
  }
  RBC_FN static Unit unit(float first, float second) {
    return to_bfloat16(first) | static_cast<Unit>(to_bfloat16(second)) << 16;
  }
  RBC_FN static Unit pair(const uint16_t* first, const uint16_t* second) {
    return *first | static_cast<Unit>(*second) << 16;
  }
  RBC_FN static void keep(Floats even, Floats odd, Unit* even_row, Unit* odd_row, Unit* pairs, size_t) {
    const __m512i both = (__m512i)_mm512_cvtne2ps_pbh((__m512)odd, (__m512)even);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(even_row), _mm512_maskz_extracti64x4_epi64(0xff, both, 0));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(odd_row), _mm512_maskz_extracti64x4_epi64(0xff, both, 1));
    const __m512i interleaved = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8,  //
                                            23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    _mm512_storeu_si512(pairs, _mm512_permutexvar_epi16(interleaved, both));
  }
  RBC_FN static __mmask16 positive(const Unit* row, int column) {
    const void* const at = reinterpret_cast<const uint16_t*>(row) + column;
    return _mm256_cmpgt_epi16_mask(_mm256_loadu_si256(static_cast<const __m256i*>(at)), _mm256_setzero_si256());
  }
};
#endif

template <class T> constexpr int units(int numbers) { return (numbers + T::kNumbers - 1) / T::kNumbers; }
template <class T> constexpr int kHiddenUnits = kHidden / T::kNumbers;
template <class T> constexpr int kPanel = T::kTileVectors * kLanes;
template <class T> constexpr int kPanels = kHidden / kPanel<T>;

// The left factor of a product: unit u of row m is at data[m row + u unit], or in panels of rows at
// data[(m / kPanel) panel + (m % kPanel) row + u unit].
template <class T> struct Operand {
  const Unit* data;
  size_t row, unit, panel;
  Operand(const Unit* data, size_t row, size_t unit = 1) : Operand(data, row, unit, kPanel<T> * row) {}
  Operand(const Unit* data, size_t row, size_t unit, size_t panel) : data(data), row(row), unit(unit), panel(panel) {}
  RBC_FN const Unit* at(int m) const { return data + m / kPanel<T> * panel + m % kPanel<T> * row; }
};

template <class T, int M, class Start, class Finish>
RBC_FN void multiply_tile(const Operand<T>& a, int m, int num_units, const Unit* b, int column, Start start,
                          Finish finish) {
  Floats sum[M][T::kTileVectors];
#pragma GCC unroll 8
  for (int i = 0; i < M; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < T::kTileVectors; ++v) sum[i][v] = start(m + i, column + v * kLanes);
  }
  const Unit* from = a.at(m);
  for (int u = 0; u < num_units; ++u, from += a.unit, b += kPanel<T>) {
#pragma GCC unroll 8
    for (int i = 0; i < M; ++i) {
#pragma GCC unroll 4
      for (int v = 0; v < T::kTileVectors; ++v) sum[i][v] = T::multiply_add(from[i * a.row], b + v * kLanes, sum[i][v]);
    }
  }
  finish(m, column, sum);
}

// The tiles of M rows from row m on, then smaller ones for what is left.
template <class T, int M, class Start, class Finish>
RBC_FN void multiply_rows(const Operand<T>& a, int m, int num_rows, int num_units, const Unit* b, int column,
                          Start start, Finish finish) {
  for (; m + M <= num_rows; m += M) multiply_tile<T, M>(a, m, num_units, b, column, start, finish);
  if constexpr (M > 1) {
    if (m < num_rows) multiply_rows<T, M / 2>(a, m, num_rows, num_units, b, column, start, finish);
  }
}

// C = start + A B for rows 0 … num_rows-1 of A and all panels of B. start(m, column) gives the first value of sixteen
// columns, finish(m, column, sum) takes the tile of rows and columns from there.
template <class T, class Start, class Finish>
void multiply(const Operand<T>& a, int num_rows, int num_units, const Unit* b, int num_panels, Start start,
              Finish finish) {
  for (int panel = 0; panel < num_panels; ++panel, b += static_cast<size_t>(num_units) * kPanel<T>) {
    multiply_rows<T, T::kTileRows>(a, 0, num_rows, num_units, b, panel * kPanel<T>, start, finish);
  }
}

// sums (rows, columns) += A B.
template <class T>
void multiply_into(float* sums, const Operand<T>& a, int num_rows, int num_units, const Unit* b) {
  multiply<T>(
      a, num_rows, num_units, b, kPanels<T>,
      [&](int m, int column) { return (Floats)_mm512_loadu_ps(sums + m * kHidden + column); },
      [&](int m, int column, auto& sum) {
        float* to = sums + m * kHidden + column;
        for (auto& row : sum) {
          for (int v = 0; v < T::kTileVectors; ++v) _mm512_storeu_ps(to + v * kLanes, (__m512)row[v]);
          to += kHidden;
        }
      });
}

// Transposes sixteen vectors of sixteen numbers.
RBC_FN void transpose(Floats (&x)[kLanes]) {
  const auto exchange = [&](int distance, Ints low, Ints high) {  // an index of 16 or more is b's
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) {
      if (i & distance) continue;
      const __m512 a = (__m512)x[i], b = (__m512)x[i + distance];
      x[i] = (Floats)_mm512_permutex2var_ps(a, (__m512i)low, b);
      x[i + distance] = (Floats)_mm512_permutex2var_ps(a, (__m512i)high, b);
    }
  };
  exchange(1, Ints{0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30},
           Ints{1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31});
  exchange(2, Ints{0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29},
           Ints{2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31});
  exchange(4, Ints{0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27},
           Ints{4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31});
  exchange(8, Ints{0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23},
           Ints{8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31});
}

// Aligned memory, handed out piece by piece.
class Memory {
 public:
  template <class X> X* take(size_t count) {
    const size_t vectors = (count * sizeof(X) + sizeof(Floats) - 1) / sizeof(Floats);
    pieces_.emplace_back(vectors);
    return reinterpret_cast<X*>(pieces_.back().data());
  }

 private:
  std::vector<std::vector<Floats>> pieces_;
};

// Parameters of a type, or their gradients: (128, num_private), (128, 128), (128,), (num_outputs, 128), (num_outputs,).
// The outputs are the logits of all heads one after the other, then the value.
template <class Number> struct Layers {
  int num_private, num_outputs;
  Number *private_weight, *weight2, *bias2, *weight3, *bias3;
};

// The weights as left and right factors of the products.
template <class T> struct Weights : Layers<const float> {
  Memory memory;
  const Unit *private_forward, *forward2, *rows3, *backward2, *backward3;

  explicit Weights(const Layers<const float>& layers) : Layers<const float>(layers) {
    private_forward = panels(num_private, [&](int p, int n) { return private_weight[n * num_private + p]; });
    forward2 = panels(kHidden, [&](int k, int n) { return weight2[n * kHidden + k]; });
    backward2 = panels(kHidden, [&](int n, int k) { return weight2[n * kHidden + k]; });
    backward3 = panels(num_outputs, [&](int n, int k) { return weight3[n * kHidden + k]; });
    Unit* rows = memory.template take<Unit>(num_outputs * kHiddenUnits<T>);
    for (int i = 0; i < num_outputs * kHiddenUnits<T>; ++i) {
      const float* from = weight3 + i * T::kNumbers;
      rows[i] = T::unit(from[0], from[T::kNumbers - 1]);
    }
    rows3 = rows;
  }

 private:
  // The right factor value(sum index, column) of 128 columns.
  template <class F> const Unit* panels(int count, F value) {
    const int num_units = units<T>(count);
    Unit* const to = memory.template take<Unit>(static_cast<size_t>(num_units) * kHidden);
    for (int u = 0; u < num_units; ++u) {
      const int first = u * T::kNumbers, last = first + T::kNumbers - 1;
      for (int n = 0; n < kHidden; ++n) {
        Unit* const row = to + (n / kPanel<T> * num_units + u) * kPanel<T>;
        row[n % kPanel<T>] = T::unit(value(first, n), last < count ? value(last, n) : 0.0f);
      }
    }
    return to;
  }
};

// What a type's agents see: row r belongs to group (observation) r / rows_per_group.
template <class T> struct Inputs {
  int rows_per_group;
  const float* shared;                     // (groups, 128): the first layer's part that a group has in common
  const typename T::Stored* private_rows;  // (rows, num_private)
};

// One thread's block of up to kBlockRows rows and the products over it. Unused rows repeat the last one going forward
// and carry no gradient going back.
template <class T> class Block {
 public:
  static constexpr int kRows = T::kBlockRows;

  Block(const Weights<T>& weights, const Inputs<T>& inputs) : weights_(weights), inputs_(inputs) {
    const int num_private = weights.num_private, outputs = weights.num_outputs;
    private_rows_ = memory_.template take<Unit>(kRows * units<T>(num_private));
    private_pairs_ = memory_.template take<Unit>(kRowUnits * num_private);
    for (Unit** rows : {&rows1_, &rows2_, &gradient_rows_}) *rows = memory_.template take<Unit>(kRows * kHiddenUnits<T>);
    for (Unit** pairs : {&pairs1_, &pairs2_, &gradient_pairs_}) *pairs = memory_.template take<Unit>(kRowUnits * kHidden);
    columns2_ = memory_.template take<Unit>(kRows * kHiddenUnits<T>);
    outputs_ = memory_.template take<Floats>(kRows / kLanes * outputs);
    output_rows_ = memory_.template take<Unit>((outputs + 1) * kRowUnits);
    output_pairs_ = memory_.template take<Unit>(units<T>(outputs + 1) * kRows);
  }

  // Logits and values of rows first … first+count-1: vector n of sixteen rows is at outputs(group of sixteen)[n].
  void forward(size_t first, int count) {
    first_ = first, count_ = count;
    padded_ = (count + kPanel<T> - 1) / kPanel<T> * kPanel<T>, row_units_ = padded_ / T::kNumbers;
    load_private();
    const Weights<T>& w = weights_;
    const auto relu = [this](Unit* rows, Unit* pairs) {
      return [=](int m, int column, auto& sum) {
        for (auto& row : sum) {
          for (Floats& x : row) x = maximum(x, Floats{});
        }
        keep(m, column, sum, rows, pairs);
      };
    };
    multiply<T>(Operand<T>(private_rows_, units<T>(w.num_private)), padded_, units<T>(w.num_private), w.private_forward,
                kPanels<T>, [&](int m, int column) { return load(shared_of(m) + column); }, relu(rows1_, pairs1_));
    multiply<T>(Operand<T>(rows1_, kHiddenUnits<T>), padded_, kHiddenUnits<T>, w.forward2, kPanels<T>,
                [&](int, int column) { return load(w.bias2 + column); }, relu(rows2_, pairs2_));
    for (int row = 0; row < padded_; row += kLanes) {
      for (int u = 0; u < kHiddenUnits<T>; u += kLanes) {
        Floats x[kLanes];
        for (int i = 0; i < kLanes; ++i) x[i] = load(rows2_ + (row + i) * kHiddenUnits<T> + u);
        transpose(x);
        Unit* const to = columns2_ + (row / kPanel<T> * kHiddenUnits<T> + u) * kPanel<T> + row % kPanel<T>;
        for (int i = 0; i < kLanes; ++i) store(to + i * kPanel<T>, x[i]);
      }
    }
    multiply<T>(Operand<T>(w.rows3, kHiddenUnits<T>), w.num_outputs, kHiddenUnits<T>, columns2_, padded_ / kPanel<T>,
                [&](int n, int) { return splat<Floats>(w.bias3[n]); },
                [&](int n, int row, auto& sum) {
                  for (auto& output : sum) {
                    for (int v = 0; v < T::kTileVectors; ++v) outputs(row / kLanes + v)[n] = output[v];
                    ++n;
                  }
                });
  }

  int num_lanes() const { return padded_; }
  Floats* outputs(int group) { return outputs_ + group * weights_.num_outputs; }

  // Adds the gradients of the block to `sums`, where private_weight is (num_private, 128), and to `shared` (groups, 128);
  // those of the outputs stand in their place.
  void backward(const Layers<float>& sums, float* shared) {
    const Weights<T>& w = weights_;
    const int outputs_and_pad = w.num_outputs + w.num_outputs % 2;
    for (int n = 0; n < outputs_and_pad; n += 2) {
      Floats even_sum = {}, odd_sum = {};
      for (int row = 0; row < padded_; row += kLanes) {
        const Floats* const gradient = outputs(row / kLanes) + n;
        const Floats even = gradient[0], odd = n + 1 < w.num_outputs ? gradient[1] : Floats{};
        even_sum += even, odd_sum += odd;
        Unit* const to = output_rows_ + n * kRowUnits + row / T::kNumbers;
        T::keep(even, odd, to, to + kRowUnits, output_pairs_ + n / T::kNumbers * kRows + row, kRows);
      }
      sums.bias3[n] += fold(even_sum);
      if (n + 1 < w.num_outputs) sums.bias3[n + 1] += fold(odd_sum);
    }
    multiply_into<T>(sums.weight3, Operand<T>(output_rows_, kRowUnits), w.num_outputs, row_units_, pairs2_);

    const auto zero = [](int, int) { return Floats{}; };
    multiply<T>(Operand<T>(output_pairs_, 1, kRows), padded_, units<T>(w.num_outputs), w.backward3, kPanels<T>, zero,
                [&](int m, int column, auto& sum) {
                  mask(rows2_, m, column, sum);
                  add_rows(sums.bias2 + column, sum);
                  keep(m, column, sum, gradient_rows_, gradient_pairs_);
                });
    const Operand<T> gradient_pairs = {gradient_pairs_, 1, kPanel<T>, static_cast<size_t>(row_units_) * kPanel<T>};
    multiply_into<T>(sums.weight2, gradient_pairs, kHidden, row_units_, pairs1_);

    multiply<T>(Operand<T>(gradient_rows_, kHiddenUnits<T>), padded_, kHiddenUnits<T>, w.backward2, kPanels<T>, zero,
                [&](int m, int column, auto& sum) {
                  mask(rows1_, m, column, sum);
                  add_groups(shared, m, column, sum);
                  keep(m, column, sum, rows2_, pairs2_);  // both have served
                });
    const Operand<T> inputs(private_pairs_, 1, w.num_private);
    multiply_into<T>(sums.private_weight, inputs, w.num_private, row_units_, pairs2_);
  }

 private:
  static constexpr int kRowUnits = kRows / T::kNumbers;

  static Floats load(const void* from) { return (Floats)_mm512_loadu_ps(from); }
  static void store(void* to, Floats x) { _mm512_storeu_ps(to, (__m512)x); }

  size_t group_of(int m) const { return (first_ + (m < count_ ? m : count_ - 1)) / inputs_.rows_per_group; }
  const float* shared_of(int m) const { return inputs_.shared + group_of(m) * kHidden; }

  void load_private() {
    const int width = weights_.num_private, width_units = units<T>(width);
    using Stored = typename T::Stored;
    const auto row = [&](int m) {
      return inputs_.private_rows + (first_ + (m < count_ ? m : count_ - 1)) * width;
    };
    for (int m = 0; m < padded_ && width; ++m) {
      Unit* const to = private_rows_ + m * width_units;
      to[width_units - 1] = 0;
      memcpy(to, row(m), width * sizeof(Stored));
    }
    for (int m = 0; m < padded_; m += T::kNumbers) {
      for (int p = 0; p < width; ++p) {
        private_pairs_[m / T::kNumbers * width + p] = T::pair(row(m) + p, row(m + T::kNumbers - 1) + p);
      }
    }
  }

  template <int M> void keep(int m, int column, Floats (&sum)[M][T::kTileVectors], Unit* rows, Unit* pairs) const {
    for (int i = 0; i + 1 < M; i += 2) {  // M is even: blocks are padded to whole tiles
      Unit* const row = rows + (m + i) * kHiddenUnits<T> + column / T::kNumbers;
      Unit* const pair = pairs + column * row_units_ + (m + i) / T::kNumbers * kPanel<T>;
      for (int v = 0; v < T::kTileVectors; ++v) {
        Unit* const at = row + v * kLanes / T::kNumbers;
        T::keep(sum[i][v], sum[i + 1][v], at, at + kHiddenUnits<T>, pair + v * kLanes, kPanel<T>);
      }
    }
  }
  template <int M> static void mask(const Unit* activation, int m, int column, Floats (&sum)[M][T::kTileVectors]) {
    for (int i = 0; i < M; ++i) {
      for (int v = 0; v < T::kTileVectors; ++v) {
        const __mmask16 active = T::positive(activation + (m + i) * kHiddenUnits<T>, column + v * kLanes);
        sum[i][v] = (Floats)_mm512_maskz_mov_ps(active, (__m512)sum[i][v]);
      }
    }
  }
  template <int M> static void add_rows(float* to, Floats (&sum)[M][T::kTileVectors]) {
    for (int v = 0; v < T::kTileVectors; ++v) {
      Floats total = sum[0][v];
      for (int i = 1; i < M; ++i) total += sum[i][v];
      store(to + v * kLanes, load(to + v * kLanes) + total);
    }
  }
  template <int M> void add_groups(float* shared, int m, int column, Floats (&sum)[M][T::kTileVectors]) const {
    if (group_of(m) == group_of(m + M - 1)) {
      add_rows(shared + group_of(m) * kHidden + column, sum);
      return;
    }
    for (int i = 0; i < M; ++i) {
      Floats one[1][T::kTileVectors];
      for (int v = 0; v < T::kTileVectors; ++v) one[0][v] = sum[i][v];
      add_rows(shared + group_of(m + i) * kHidden + column, one);
    }
  }

  const Weights<T>& weights_;
  const Inputs<T>& inputs_;
  Memory memory_;
  Unit *private_rows_, *private_pairs_, *rows1_, *pairs1_, *rows2_, *pairs2_, *columns2_, *gradient_rows_, *gradient_pairs_;
  Unit *output_rows_, *output_pairs_;
  Floats* outputs_;
  size_t first_ = 0;
  int count_ = 0, padded_ = 0, row_units_ = 0;
};

}  // namespace rbc
#endif
