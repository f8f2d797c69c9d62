// Products of small matrices in register tiles: inner products of rows, linear combinations of
// rows. Each element is added up in one order, however the rows and columns are shared out.

#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "rows.h"
#include "vector_of.h"
#include "widest.h"

namespace fastmtt {

// Rows of a tile: with 32 registers 5 x 5 sums stay in them, with 16 there is room for 2 x 5.
template <int kBytes>
constexpr int kTileRows = kBytes == 64 ? 5 : 2;
constexpr int kTileColumns = 5;

// sums[r][c] = <a[r], b[c]> over n columns.
template <typename T, int kBytes, int R, int C>
FASTMTT_INLINE inline void inner_tile(
    const T* const (&a)[R], const T* const (&b)[C], int64_t n, T (&sums)[R][C]) {
  using Vector = VectorOf<T, kBytes>;
  typename Vector::type acc[R][C] = {};
  int64_t j = 0;
  for (; j + Vector::kCount <= n; j += Vector::kCount) {
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) {
      const auto y = Vector::at(b[c] + j);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) acc[r][c] += Vector::at(a[r] + j) * y;
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) {
      T lane[Vector::kCount];
      __builtin_memcpy(lane, &acc[r][c], kBytes);
      for (int64_t half = Vector::kCount / 2; half > 0; half /= 2) {
        for (int64_t k = 0; k < half; ++k) lane[k] += lane[k + half];
      }
      sums[r][c] = lane[0];
    }
  }
  for (; j < n; ++j) {
    for (int r = 0; r < R; ++r) {
      for (int c = 0; c < C; ++c) sums[r][c] += a[r][j] * b[c][j];
    }
  }
}

// out[i, k] += <a[i], b[k]> over n columns; out is dense. A tile reaching past the last row repeats
// it.
template <typename T, int kBytes>
FASTMTT_INLINE inline void add_inner_products(
    Rows<T> a, int64_t a_count, Rows<T> b, int64_t b_count, int64_t n, T* out) {
  constexpr int R = kTileRows<kBytes>, C = kTileColumns;
  constexpr int64_t kColumns = 4096 / sizeof(T);  // so few that a tile's rows stay in the cache
  for (int64_t begin = 0; begin < n; begin += kColumns) {
    const int64_t count = std::min(kColumns, n - begin);
    for (int64_t k = 0; k < b_count; k += C) {
      for (int64_t i = 0; i < a_count; i += R) {
        const T *left[R], *right[C];
        for (int r = 0; r < R; ++r) left[r] = a[std::min(i + r, a_count - 1)] + begin;
        for (int c = 0; c < C; ++c) right[c] = b[std::min(k + c, b_count - 1)] + begin;
        T sums[R][C];
        inner_tile<T, kBytes, R, C>(left, right, count, sums);
        for (int r = 0; r < R && i + r < a_count; ++r) {
          for (int c = 0; c < C && k + c < b_count; ++c) out[(i + r) * b_count + k + c] += sums[r][c];
        }
      }
    }
  }
}

// Numbers c(i, k) by which row k enters combination i.
template <typename T>
struct Coefficients {
  const T* data;
  int64_t row, term;
};

// out[i] += sum over k < terms of c(i, k) * from[k], V vectors of columns, for R rows i at a time.
template <typename T, int kBytes, int V>
FASTMTT_INLINE inline void combine_columns(
    Coefficients<T> c, Rows<T> from, int64_t terms, T* out, int64_t out_stride, int64_t count) {
  using Vector = VectorOf<T, kBytes>;
  constexpr int R = 5;
  for (int64_t i = 0; i < count; i += R) {
    const T* factor[R];
    for (int r = 0; r < R; ++r) factor[r] = c.data + std::min(i + r, count - 1) * c.row;
    typename Vector::type acc[R][V] = {};
    for (int64_t k = 0; k < terms; ++k) {
      const T* row = from[k];
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const T x = factor[r][k * c.term];
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) acc[r][v] += x * Vector::at(row + v * Vector::kCount);
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      if (i + r >= count) break;
      T* to = out + (i + r) * out_stride;
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) {
        auto& place = *reinterpret_cast<typename Vector::type*>(to + v * Vector::kCount);
        place += acc[r][v];
      }
    }
  }
}

// The same for all columns from begin to end.
template <typename T, int kBytes>
FASTMTT_INLINE inline void add_combinations(
    Coefficients<T> c, Rows<T> from, int64_t terms, T* out, int64_t out_stride, int64_t count,
    int64_t begin, int64_t end) {
  constexpr int64_t kTerms = 128;  // added up apart: their rows stay in the cache, their sums short
  int64_t j = begin;
  const auto sweep = [&](auto bytes, auto vectors) FASTMTT_INLINE {
    constexpr int64_t kWidth = vectors * VectorOf<T, bytes>::kCount;
    for (; j + kWidth <= end; j += kWidth) {
      for (int64_t k = 0; k < terms; k += kTerms) {
        combine_columns<T, bytes, vectors>(
            {c.data + k * c.term, c.row, c.term}, {from[k] + j, from.stride},
            std::min(kTerms, terms - k), out + j, out_stride, count);
      }
    }
  };
  using Wide = std::integral_constant<int, kBytes>;
  using Single = std::integral_constant<int, sizeof(T)>;
  using One = std::integral_constant<int, 1>;
  sweep(Wide(), std::integral_constant<int, kBytes == 64 ? 4 : 2>());
  sweep(Wide(), One());
  sweep(Single(), One());
}

}  // namespace fastmtt
