// Products of matrices of bfloat16 in AMX's tile registers: the places of `multiply` and
// `multiply_transposed` (kernels.h) on processors that have them.
//
// A tile holds 16 rows of 64 bytes: sums of 16 x 16 floats, or up to 32 terms of 16 rows or columns.
// One instruction multiplies two of those into one of these, and takes as long for fewer terms: two
// panels side by side fill a tile.

#pragma once

#include "products.h"

namespace fastmtt {
namespace FASTMTT_ISA {
namespace {

constexpr int64_t kSide = 16;   // rows and columns of sums in a tile
constexpr int64_t kPairs = 16;  // most pairs of terms in a tile
constexpr int64_t kTerms = 2 * kPairs;
constexpr int64_t kRowBytes = 64;

// What was stored as vectors is in memory before a tile is loaded from there: the compiler does not
// see that a tile's load reads memory.
FASTMTT_INLINE_HERE void before_tiles() { __asm__ volatile("" ::: "memory"); }

// Shapes of the eight tiles, for as long as this lives in a thread.
class Shapes {
 public:
  struct alignas(64) Layout {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t bytes[16] = {};
    uint8_t rows[16] = {};
  };
  explicit Shapes(const Layout& layout) {
    before_tiles();
    _tile_loadconfig(&layout);
  }
  ~Shapes() { _tile_release(); }
  Shapes(const Shapes&) = delete;
  Shapes& operator=(const Shapes&) = delete;
};

inline void shape(Shapes::Layout& layout, int tile, int64_t rows, int64_t bytes) {
  layout.rows[tile] = static_cast<uint8_t>(rows);
  layout.bytes[tile] = static_cast<uint16_t>(bytes);
}

// Tiles 0 to 3 are sums: up to 2 by 2 in `multiply`, 1 by 4 where rows are summed over. Their
// numbers are part of the instructions, hence the macros.
#define FASTMTT_FOR_SUMS(each) each(0) each(1) each(2) each(3)

// kRows x kColumns tiles of sums, c's rows from `m` and panels from `n` on, over all products,
// `terms` at a time.
template <int kRows, int kColumns>
FASTMTT_INLINE_HERE void multiply_tiles(
    const Product* products, int64_t count, int64_t position, int64_t m, int64_t depth,
    int64_t terms, int64_t n, Panels<float> c, bool add) {
  using E = Bfloat16::Element;
  float* out = c.data + position * c.position + n * c.panel + m * kSide;
#define FASTMTT_BEGIN(i)                                                                  \
  if constexpr (i / 2 < kRows && i % 2 < kColumns) {                                      \
    if (add) {                                                                            \
      _tile_loadd(i, out + i % 2 * c.panel + i / 2 * kSide * kSide, kRowBytes);           \
    } else {                                                                              \
      _tile_zero(i);                                                                      \
    }                                                                                     \
  }
  FASTMTT_FOR_SUMS(FASTMTT_BEGIN)
#undef FASTMTT_BEGIN
  for (int64_t i = 0; i < count; ++i) {
    const auto& [a, b] = products[i];
    const E* from = at<const E>(a, position, 0, m * kTerms);
    const E* to = at<const E>(b, position, n);
    for (int64_t k = 0; k < depth; k += terms, to += terms * kSide) {
      const E* rows = from + panel_at<Bfloat16>(k / kSide, a.panel);
      _tile_loadd(4, rows, kRowBytes);
      if constexpr (kRows > 1) _tile_loadd(5, rows + kSide * kTerms, kRowBytes);
      _tile_loadd(6, to, kRowBytes);
      if constexpr (kColumns > 1) _tile_loadd(7, to + b.panel, kRowBytes);
      _tile_dpbf16ps(0, 4, 6);
      if constexpr (kColumns > 1) _tile_dpbf16ps(1, 4, 7);
      if constexpr (kRows > 1) _tile_dpbf16ps(2, 5, 6);
      if constexpr (kRows > 1 && kColumns > 1) _tile_dpbf16ps(3, 5, 7);
    }
  }
#define FASTMTT_END(i)                                                                    \
  if constexpr (i / 2 < kRows && i % 2 < kColumns) {                                      \
    _tile_stored(i, out + i % 2 * c.panel + i / 2 * kSide * kSide, kRowBytes);            \
  }
  FASTMTT_FOR_SUMS(FASTMTT_END)
#undef FASTMTT_END
}

// Tiles of `rows` rows: all of them, or those left over at the end.
template <int kRows>
void multiply_tile_rows(
    const Product* products, int64_t count, int64_t position, int64_t m, int64_t depth,
    int64_t terms, int64_t panels, Panels<float> c, bool add) {
  int64_t n = 0;
  for (; n + 2 <= panels; n += 2) {
    multiply_tiles<kRows, 2>(products, count, position, m, depth, terms, n, c, add);
  }
  if (n < panels) multiply_tiles<kRows, 1>(products, count, position, m, depth, terms, n, c, add);
}

inline Shapes::Layout row_tiles(int64_t rows, int64_t terms) {
  Shapes::Layout layout;
  for (int tile = 0; tile < 4; ++tile) shape(layout, tile, rows, kRowBytes);
  for (int tile = 4; tile < 6; ++tile) shape(layout, tile, rows, 2 * terms);
  for (int tile = 6; tile < 8; ++tile) shape(layout, tile, terms / 2, kRowBytes);
  return layout;
}

// As `multiply`. What a row's sums are does not depend on the rows beside it.
inline void multiply_in_tiles(
    const Product* products, int64_t count, int64_t position, int64_t begin, int64_t end,
    int64_t depth, int64_t panels, Panels<float> c, bool add) {
  if (depth % kSide != 0) {  // a panel's unused lanes may hold anything
    multiply<Bfloat16>(products, count, position, begin, end, depth, panels, c, add);
    return;
  }
  const int64_t terms = depth % kTerms == 0 ? kTerms : kSide;
  before_tiles();
  int64_t m = begin;
  if (m + kSide <= end) {
    const Shapes whole(row_tiles(kSide, terms));
    for (; m + 2 * kSide <= end; m += 2 * kSide) {
      multiply_tile_rows<2>(products, count, position, m, depth, terms, panels, c, add);
    }
    if (m + kSide <= end) {
      multiply_tile_rows<1>(products, count, position, m, depth, terms, panels, c, add);
      m += kSide;
    }
  }
  if (m < end) {
    const Shapes rest(row_tiles(end - m, terms));
    multiply_tile_rows<1>(products, count, position, m, depth, terms, panels, c, add);
  }
}

// Pairs of rows [pairs][16 columns] as rows of pairs [16 columns][pairs], zero beyond `pairs`.
FASTMTT_INLINE_HERE void transpose_pairs(const uint16_t* from, int64_t pairs, float* to) {
  Panel<float> rows[kPairs];
  FASTMTT_UNROLL for (int i = 0; i < kPairs; ++i) {
    rows[i] = i < pairs ? Panel<float>::load(reinterpret_cast<const float*>(from) + i * kSide)
                        : Panel<float>::all(0);
  }
  transpose(rows);
  FASTMTT_UNROLL for (int i = 0; i < kSide; ++i) rows[i].store(to + i * kSide);
}

// One panel of a's columns, up to four of b's.
template <int kColumns>
FASTMTT_INLINE_HERE void multiply_transposed_tiles(
    const Product* products, int64_t count, int64_t position, int64_t m, int64_t rows, int64_t n,
    Panels<float> c, bool add) {
  using E = Bfloat16::Element;
  alignas(64) float turned[kSide * kPairs];
  float* out = c.data + position * c.position + n * c.panel + m * kSide * kSide;
#define FASTMTT_BEGIN(i)                                      \
  if constexpr (i < kColumns) {                               \
    if (add) {                                                \
      _tile_loadd(i, out + i * c.panel, kRowBytes);           \
    } else {                                                  \
      _tile_zero(i);                                          \
    }                                                         \
  }
  FASTMTT_FOR_SUMS(FASTMTT_BEGIN)
#undef FASTMTT_BEGIN
  for (int64_t i = 0; i < count; ++i) {
    const auto& [a, b] = products[i];
    const E* from = at<const E>(a, position, m);
    const E* to = at<const E>(b, position, n);
    int64_t k = 0;
    for (; k + 2 * kPairs <= rows; k += 2 * kPairs) {
      transpose_pairs(from + k * kSide, kPairs, turned);
      before_tiles();
      _tile_loadd(4, turned, kRowBytes);
#define FASTMTT_ADD(i)                                              \
  if constexpr (i < kColumns) {                                     \
    _tile_loadd(5, to + i * b.panel + k * kSide, kRowBytes);        \
    _tile_dpbf16ps(i, 4, 5);                                        \
  }
      FASTMTT_FOR_SUMS(FASTMTT_ADD)
#undef FASTMTT_ADD
    }
    if (k == rows) continue;
    transpose_pairs(from + k * kSide, (rows - k) / 2, turned);
    before_tiles();
    _tile_loadd(6, turned, kRowBytes);
#define FASTMTT_ADD(i)                                              \
  if constexpr (i < kColumns) {                                     \
    _tile_loadd(7, to + i * b.panel + k * kSide, kRowBytes);        \
    _tile_dpbf16ps(i, 6, 7);                                        \
  }
    FASTMTT_FOR_SUMS(FASTMTT_ADD)
#undef FASTMTT_ADD
  }
#define FASTMTT_END(i) \
  if constexpr (i < kColumns) _tile_stored(i, out + i * c.panel, kRowBytes);
  FASTMTT_FOR_SUMS(FASTMTT_END)
#undef FASTMTT_END
}

// As `multiply_transposed`. Tiles 6 and 7 are for the last rows, where they do not fill one.
inline void multiply_transposed_in_tiles(
    const Product* products, int64_t count, int64_t position, int64_t begin, int64_t end,
    int64_t rows, int64_t panels, Panels<float> c, bool add) {
  Shapes::Layout layout;
  for (int tile = 0; tile < 6; ++tile) shape(layout, tile, kSide, kRowBytes);
  if (const int64_t left = rows % (2 * kPairs); left > 0) {
    shape(layout, 6, kSide, left * 2);
    shape(layout, 7, left / 2, kRowBytes);
  }
  before_tiles();
  const Shapes shapes(layout);
  for (int64_t m = begin; m < end; ++m) {
    int64_t n = 0;
    for (; n + 4 <= panels; n += 4) {
      multiply_transposed_tiles<4>(products, count, position, m, rows, n, c, add);
    }
    for (; n < panels; ++n) {
      multiply_transposed_tiles<1>(products, count, position, m, rows, n, c, add);
    }
  }
}

}  // namespace
}  // namespace FASTMTT_ISA
}  // namespace fastmtt
