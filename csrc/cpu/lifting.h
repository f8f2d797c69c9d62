// Images to the matrices of products, and back: kernels.h says what for.

#pragma once

#include "operands.h"

namespace fastmtt {
namespace FASTMTT_ISA {
namespace {

template <typename Op>
struct Lifting : Operands<Op> {
  using typename Operands<Op>::T;
  using typename Operands<Op>::Row;
  using Operands<Op>::kLength;
  using Operands<Op>::kGroup;
  using Operands<Op>::present;
  using Operands<Op>::put;

  // Where kGroup tiles' outputs begin.
  struct Corners {
    Corners(const Grid& g, int64_t tile) {
      for (int i = 0; i < kGroup; ++i) {
        top[i] = (tile + i) / g.across * kTile;
        left[i] = (tile + i) % g.across * kTile;
      }
    }
    int64_t top[kGroup], left[kGroup];
  };

  static void lift(
      const Grid& g, const T* image, int64_t panel, Operand v, int64_t row, bool pairs) {
    const int64_t count = present(g.in, panel);
    image += panel * kLength;
    for (int64_t tile = 0; tile < g.rows; tile += kGroup) {
      const Corners at(g, tile);
      Operands<Op>::template transform_group<ToPoints>(
          [&](int i, int dy, int dx) FASTMTT_HERE {
            const int64_t y = at.top[i] - 1 + dy, x = at.left[i] - 1 + dx;
            const bool inside = y >= 0 && y < g.height && x >= 0 && x < g.width;
            if (!inside) return Row::all(0);
            const T* pixel = image + (y * g.width + x) * g.in;
            __builtin_prefetch(pixel + kLength);  // the next panel's
            return Row::load(pixel, count);
          },
          [&](int q, const Row* rows) FASTMTT_HERE { put(rows, v, q, panel, row + tile, pairs); });
    }
  }

  static void lift_transposed(
      const Grid& g, Panels<const T> gv, int64_t row, int64_t panel, int64_t count, T* ga,
      T* scratch) {
    // the tiles' squares with a border of one: every pixel of them has a place
    const int64_t width = g.across * kTile + 2;
    const int64_t size = (g.down * kTile + 2) * width * kLength;
    __builtin_memset(scratch, 0, size * sizeof(T));
    for (int64_t tile = 0; tile < g.down * g.across; ++tile) {
      const T* from = gv.data + panel * gv.panel + (row + tile) * kLength;
      T* to = scratch + (tile / g.across * kTile * width + tile % g.across * kTile) * kLength;
      transform<FromPoints, T>(
          [&](int y, int x) FASTMTT_HERE {
            return Row::load(from + (y * kPoints + x) * gv.position);
          },
          [&](int y, int x, const Row& value) FASTMTT_HERE {
            T* pixel = to + (y * width + x) * kLength;
            (Row::load(pixel) + value).store(pixel);
          });
    }
    for (int64_t y = 0; y < g.height; ++y) {
      for (int64_t x = 0; x < g.width; ++x) {
        Row::load(scratch + ((y + 1) * width + x + 1) * kLength)
            .store(ga + (y * g.width + x) * g.in, count);
      }
    }
  }

  // Lowered products: one panel of an image's outputs [pixel][lane].
  static const T* lower(
      const Grid& g, Panels<const T> m, int64_t row, int64_t panel, T* scratch) {
    const T* from = m.data + panel * m.panel + row * kLength;
    for (int64_t tile = 0; tile < g.down * g.across; ++tile, from += kLength) {
      const int64_t top = tile / g.across * kTile, left = tile % g.across * kTile;
      transform<ToOutputs, T>(
          [&](int y, int x) FASTMTT_HERE {
            return Row::load(from + (y * kPoints + x) * m.position);
          },
          [&](int dy, int dx, const Row& value) FASTMTT_HERE {
            const int64_t y = top + dy, x = left + dx;
            if (y < g.height && x < g.width) value.store(scratch + (y * g.width + x) * kLength);
          });
    }
    return scratch;
  }

  // Cotangents of outputs [pixel][lane] to rows: plain, in pairs, or both.
  static void lower_transposed(
      const Grid& g, const T* gz, const Operand& z, const Operand& z_pairs, int64_t row,
      int64_t panel) {
    const auto put_both = [&](const Row* rows, int64_t position, int64_t at) FASTMTT_HERE {
      if (z.data != nullptr) put(rows, z, position, panel, at, false);
      if (z_pairs.data != nullptr) put(rows, z_pairs, position, panel, at, true);
    };
    for (int64_t tile = 0; tile < g.rows; tile += kGroup) {
      const Corners at(g, tile);
      Operands<Op>::template transform_group<FromOutputs>(
          [&](int i, int dy, int dx) FASTMTT_HERE {
            const int64_t y = at.top[i] + dy, x = at.left[i] + dx;
            const bool inside = y < g.height && x < g.width;
            return inside ? Row::load(gz + (y * g.width + x) * kLength) : Row::all(0);
          },
          [&](int q, const Row* rows) FASTMTT_HERE { put_both(rows, q, row + tile); });
    }
  }
};

}  // namespace
}  // namespace FASTMTT_ISA
}  // namespace fastmtt
