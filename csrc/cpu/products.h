// Products of matrices in panels: every multiply-add of a convolution happens here.

#pragma once

#include "panels.h"

namespace fastmtt {
namespace FASTMTT_ISA {
namespace {

// The largest block of rows whose sums fit the registers beside what they are made of.
template <typename T>
constexpr int rows_for(int panels) {
  const int natives = panels * Panel<T>::kNatives;
  const int registers = FASTMTT_REGISTERS - 1 - natives;
  return registers / natives;
}

constexpr int kWidest = FASTMTT_REGISTERS == 32 ? 4 : 1;  // panels at a time

template <typename T>
FASTMTT_INLINE_HERE void add_products(T x, const Panel<T>& b, typename Panel<T>::Native* sums) {
  const auto all = Panel<T>::same(x);
  FASTMTT_UNROLL for (int i = 0; i < Panel<T>::kNatives; ++i) {
    sums[i] = fused(all, b.v[i], sums[i]);
  }
}

// One step of kGroup terms: a holds kGroup elements, b a panel of them.
template <typename T>
FASTMTT_INLINE_HERE void multiply_add(
    Exact<T>, const T* a, const Panel<T>& b, typename Panel<T>::Native* sums) {
  add_products(*a, b, sums);
}

#ifdef FASTMTT_BFLOAT16
FASTMTT_INLINE_HERE void multiply_add(
    Bfloat16, const uint16_t* a, const Panel<float>& b, Panel<float>::Native* sums) {
  int pair;
  __builtin_memcpy(&pair, a, sizeof pair);
  const __m512i pairs = _mm512_set1_epi32(pair);
  sums[0] = Floats(_mm512_dpbf16_ps(__m512(sums[0]), __m512bh(pairs), __m512bh(b.v[0])));
}
#endif

// Where a panel begins, and how far rows are apart, in an operand whose columns are summed over.
template <typename Op>
constexpr int64_t kRow = Op::kBeside * Panel<typename Op::Value>::kLength;
template <typename Op>
FASTMTT_INLINE_HERE int64_t panel_at(int64_t panel, int64_t stride) {
  constexpr int64_t kBeside = Op::kBeside, kLength = Panel<typename Op::Value>::kLength;
  return panel / kBeside * kBeside * stride + panel % kBeside * kLength;
}

// Rows x Columns panels of c; Transposed: a's rows are summed over.
template <typename Op, int Rows, int Columns, bool Transposed>
[[gnu::noinline]] void multiply_block(
    int64_t depth, const typename Op::Element* a, int64_t a_panel, const typename Op::Element* b,
    int64_t b_panel, typename Op::Value* c, int64_t c_panel, bool add) {
  using T = typename Op::Value;
  using Row = Panel<T>;
  constexpr int64_t kLength = Row::kLength, kStep = Op::kGroup;
  for (int64_t first = 0; first < depth; first += Op::kChain) {
    const int64_t last = first + Op::kChain < depth ? first + Op::kChain : depth;
    typename Row::Native sums[Rows][Columns * Row::kNatives] = {};
    for (int64_t k0 = first; k0 < last; k0 += kLength) {
      const int64_t steps = ((k0 + kLength < last ? k0 + kLength : last) - k0) / kStep;
      const auto* from = a + (Transposed ? k0 * kLength : panel_at<Op>(k0 / kLength, a_panel));
      const auto* to = b + k0 * kLength;
      for (int64_t k = 0; k < steps; ++k) {
        Row columns[Columns];
        FASTMTT_UNROLL for (int n = 0; n < Columns; ++n) {
          columns[n] = Row::load(
              reinterpret_cast<const T*>(to + n * b_panel + k * kLength * kStep));
        }
        FASTMTT_UNROLL for (int m = 0; m < Rows; ++m) {
          const auto* x =
              from + (Transposed ? (k * kLength + m) * kStep : m * kRow<Op> + k * kStep);
          FASTMTT_UNROLL for (int n = 0; n < Columns; ++n) {
            multiply_add(Op(), x, columns[n], &sums[m][n * Row::kNatives]);
          }
        }
      }
    }
    const bool join = add || first > 0;
    FASTMTT_UNROLL for (int m = 0; m < Rows; ++m) {
      FASTMTT_UNROLL for (int n = 0; n < Columns; ++n) {
        T* out = c + n * c_panel + m * kLength;
        Row total;
        FASTMTT_UNROLL for (int i = 0; i < Row::kNatives; ++i) {
          total.v[i] = sums[m][n * Row::kNatives + i];
        }
        (join ? Row::load(out) + total : total).store(out);
      }
    }
  }
}

template <typename E>
E* at(const Operand& operand, int64_t position, int64_t panel, int64_t offset = 0) {
  return static_cast<E*>(operand.data) + position * operand.position + panel * operand.panel +
         offset;
}

// Rows begin .. end of `Columns` panels of c from the n-th on.
template <typename Op, int Rows, int Columns>
void multiply_rows(
    const Product* products, int64_t count, int64_t position, int64_t begin, int64_t end,
    int64_t depth, int64_t n, Panels<typename Op::Value> c, bool add) {
  using E = typename Op::Element;
  constexpr int64_t kLength = Panel<typename Op::Value>::kLength;
  int64_t m = begin;
  for (; m + Rows <= end; m += Rows) {
    for (int64_t i = 0; i < count; ++i) {
      const auto& [a, b] = products[i];
      multiply_block<Op, Rows, Columns, false>(
          depth, at<const E>(a, position, 0, m * kRow<Op>), a.panel, at<const E>(b, position, n),
          b.panel, c.data + position * c.position + n * c.panel + m * kLength, c.panel,
          add || i > 0);
    }
  }
  if constexpr (Rows > 1) {
    if (m < end) {
      multiply_rows<Op, Rows - 1, Columns>(
          products, count, position, m, end, depth, n, c, add);
    }
  }
}

template <typename Op, int Columns>
void multiply_columns(
    const Product* products, int64_t count, int64_t position, int64_t begin, int64_t end,
    int64_t depth, int64_t n, int64_t panels, Panels<typename Op::Value> c, bool add) {
  for (; n + Columns <= panels; n += Columns) {
    multiply_rows<Op, rows_for<typename Op::Value>(Columns), Columns>(
        products, count, position, begin, end, depth, n, c, add);
  }
  if constexpr (Columns > 1) {
    if (n < panels) {
      multiply_columns<Op, Columns - 1>(
          products, count, position, begin, end, depth, n, panels, c, add);
    }
  }
}

template <typename Op>
void multiply(
    const Product* products, int64_t count, int64_t position, int64_t begin, int64_t end,
    int64_t depth, int64_t panels, Panels<typename Op::Value> c, bool add) {
  multiply_columns<Op, kWidest>(products, count, position, begin, end, depth, 0, panels, c, add);
}

// A block's rows are lanes of one panel of a: a divisor of their number.
constexpr int kTransposedRows = FASTMTT_REGISTERS == 32 ? 8 : FASTMTT_VECTOR_BYTES == 32 ? 4 : 2;
constexpr int kTransposedWidest = FASTMTT_REGISTERS == 32 ? 3 : 1;

template <typename Op, int Columns>
void multiply_transposed_columns(
    const Product* products, int64_t count, int64_t position, int64_t begin, int64_t end,
    int64_t rows, int64_t n, int64_t panels, Panels<typename Op::Value> c, bool add) {
  using E = typename Op::Element;
  constexpr int64_t kLength = Panel<typename Op::Value>::kLength;
  for (; n + Columns <= panels; n += Columns) {
    for (int64_t m = begin * kLength; m < end * kLength; m += kTransposedRows) {
      for (int64_t i = 0; i < count; ++i) {
        const auto& [a, b] = products[i];
        multiply_block<Op, kTransposedRows, Columns, true>(
            rows, at<const E>(a, position, m / kLength, m % kLength * Op::kGroup), a.panel,
            at<const E>(b, position, n), b.panel,
            c.data + position * c.position + n * c.panel + m * kLength, c.panel, add || i > 0);
      }
    }
  }
  if constexpr (Columns > 1) {
    if (n < panels) {
      multiply_transposed_columns<Op, Columns - 1>(
          products, count, position, begin, end, rows, n, panels, c, add);
    }
  }
}

template <typename Op>
void multiply_transposed(
    const Product* products, int64_t count, int64_t position, int64_t begin, int64_t end,
    int64_t rows, int64_t panels, Panels<typename Op::Value> c, bool add) {
  multiply_transposed_columns<Op, kTransposedWidest>(
      products, count, position, begin, end, rows, 0, panels, c, add);
}

}  // namespace
}  // namespace FASTMTT_ISA
}  // namespace fastmtt
