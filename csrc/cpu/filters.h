// Filters [3,3,in,out] to the matrices of products, a panel of columns at a time, and the cotangents of
// those back, kLength rows at a time.

#pragma once

#include "operands.h"

namespace fastmtt {
namespace FASTMTT_ISA {
namespace {

template <typename Op>
struct Filters : Operands<Op> {
  using typename Operands<Op>::T;
  using typename Operands<Op>::Row;
  using Operands<Op>::kLength;
  using Operands<Op>::kGroup;
  using Operands<Op>::present;
  using Operands<Op>::put;
  static constexpr int64_t kAhead = 8;  // rows that are fetched before they are read

  // kGroup rows of a panel of U from row k on; load(tap, i) gives the i-th's taps.
  template <typename Load>
  FASTMTT_INLINE_HERE static void put_rows(
      const Grid& g, const Operand& u, int64_t panel, int64_t k, const Load& load) {
    Operands<Op>::template transform_group<ToFilter>(
        [&](int i, int y, int x) FASTMTT_HERE { return load(y * 3 + x, i); },
        [&](int q, const Row* rows) FASTMTT_HERE { put(rows, u, q, panel, k, true); });
  }

  static void to_rows(const Grid& g, const T* w, int64_t panel, Operand u) {
    const int64_t count = present(g.out, panel);
    for (int64_t k = 0; k < g.depth; k += kGroup) {
      put_rows(g, u, panel, k, [&](int64_t tap, int i) FASTMTT_HERE {
        if (k + i >= g.in) return Row::all(0);
        const T* from = w + (tap * g.in + k + i) * g.out + panel * kLength;
        __builtin_prefetch(from + kAhead * g.out);
        return Row::load(from, count);
      });
    }
  }

  // U^T, whose rows are output channels: `block` is a panel of input channels.
  static void to_columns(const Grid& g, const T* w, int64_t block, Operand u) {
    const int64_t rows = (g.out + kGroup - 1) / kGroup * kGroup, present_in = present(g.in, block);
    for (int64_t panel = 0; panel < parts(g.out, kLength); ++panel) {
      const int64_t count = present(g.out, panel), first = panel * kLength;
      Row square[9][kLength];
      for (int64_t tap = 0; tap < 9; ++tap) {
        for (int64_t l = 0; l < kLength; ++l) {
          const T* from = w + (tap * g.in + block * kLength + l) * g.out + first;
          square[tap][l] = l < present_in ? Row::load(from, count) : Row::all(0);
          __builtin_prefetch(from + kLength);
        }
        transpose(square[tap]);
      }
      for (int64_t k = 0; k < kLength && first + k < rows; k += kGroup) {
        put_rows(g, u, block, first + k, [&](int64_t tap, int i) FASTMTT_HERE {
          return square[tap][k + i];
        });
      }
    }
  }

  static void from_rows(const Grid& g, Panels<const T> gu, int64_t block, T* gw) {
    const int64_t count = present(g.in, block);
    for (int64_t panel = 0; panel < parts(g.out, kLength); ++panel) {
      const int64_t present_out = present(g.out, panel);
      for (int64_t k = block * kLength; k < block * kLength + count; ++k) {
        const T* from = gu.data + panel * gu.panel + k * kLength;
        T* to = gw + k * g.out + panel * kLength;
        transform<FromFilter, T>(
            [&](int y, int x) FASTMTT_HERE {
              return Row::load(from + (y * kPoints + x) * gu.position);
            },
            [&](int y, int x, const Row& value) FASTMTT_HERE {
              value.store(to + (y * 3 + x) * g.in * g.out, present_out);
            });
      }
    }
  }
};

}  // namespace
}  // namespace FASTMTT_ISA
}  // namespace fastmtt
