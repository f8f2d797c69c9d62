// Images and filters to the matrices of products, and back: kernels.h says what for.

#pragma once

#include <type_traits>

#include "transforms.h"

namespace fastmtt {
namespace FASTMTT_ISA {
namespace {

template <typename Op>
struct Lifting {
  using T = typename Op::Value;
  using E = typename Op::Element;
  using Row = Panel<T>;
  static constexpr int64_t kLength = Row::kLength;
  static constexpr int kGroup = Op::kGroup;

  static E* at(const Operand& x, int64_t position, int64_t panel, int64_t row) {
    return static_cast<E*>(x.data) + position * x.position + panel * x.panel + row * kLength;
  }

  static int64_t present(int64_t channels, int64_t panel) {
    const int64_t left = channels - panel * kLength;
    return left < kLength ? left : kLength;
  }

  // kGroup rows of one position, one after another or interleaved.
  FASTMTT_INLINE_HERE static void put(
      const Row* rows, const Operand& v, int64_t position, int64_t panel, int64_t row, bool pairs) {
    E* to = at(v, position, panel, row);
    if (pairs) return Op::store_group(rows, to);
    FASTMTT_UNROLL for (int i = 0; i < kGroup; ++i) Op::store(rows[i], to + i * kLength);
  }

  // --- images ---------------------------------------------------------------------------------

  static void lift(
      const Grid& g, const T* image, int64_t panel, Operand v, int64_t row, bool pairs) {
    if (g.direct) return lift_patches(g, image, v, row, pairs);
    const int64_t count = present(g.in, panel);
    image += panel * kLength;
    for (int64_t tile = 0; tile < g.rows; tile += kGroup) {
      Row points[kPoints * kPoints][kGroup];
      for (int i = 0; i < kGroup; ++i) {
        const int64_t top = (tile + i) / g.across * kTile - 1;
        const int64_t left = (tile + i) % g.across * kTile - 1;
        transform<ToPoints, T>(
            [&](int dy, int dx) FASTMTT_HERE {
              const int64_t y = top + dy, x = left + dx;
              const bool inside = y >= 0 && y < g.height && x >= 0 && x < g.width;
              return inside ? Row::load(image + (y * g.width + x) * g.in, count) : Row::all(0);
            },
            [&](int y, int x, const Row& value) FASTMTT_HERE {
              points[y * kPoints + x][i] = value;
            });
      }
      for (int64_t q = 0; q < kPoints * kPoints; ++q) put(points[q], v, q, panel, row + tile, pairs);
    }
  }

  // Every pixel's 3x3 patch as a row: tap after tap, each with all its channels.
  static void lift_patches(
      const Grid& g, const T* image, const Operand& v, int64_t row, bool pairs) {
    const int64_t panels = (9 * g.in + kLength - 1) / kLength;
    T patch[kGroup][9 * kLength] = {};  // direct convolutions have less than a panel of channels
    for (int64_t pixel = 0; pixel < g.rows; pixel += kGroup) {
      for (int i = 0; i < kGroup; ++i) {
        const int64_t y = (pixel + i) / g.width, x = (pixel + i) % g.width;
        T* to = patch[i];
        for (int64_t dy = -1; dy <= 1; ++dy) {
          for (int64_t dx = -1; dx <= 1; ++dx) {
            const bool inside = y < g.height && y + dy >= 0 && y + dy < g.height && x + dx >= 0 &&
                                x + dx < g.width;
            const T* from = image + ((y + dy) * g.width + x + dx) * g.in;
            for (int64_t c = 0; c < g.in; ++c) *to++ = inside ? from[c] : T(0);
          }
        }
      }
      for (int64_t panel = 0; panel < panels; ++panel) {
        Row rows[kGroup];
        for (int i = 0; i < kGroup; ++i) rows[i] = Row::load(patch[i] + panel * kLength);
        put(rows, v, 0, panel, row + pixel, pairs);
      }
    }
  }

  static void lift_transposed(
      const Grid& g, Panels<const T> gv, int64_t row, int64_t panel, int64_t count, T* ga,
      T* scratch) {
    if (g.direct) return lift_patches_transposed(g, gv, row, ga);
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

  static void lift_patches_transposed(const Grid& g, Panels<const T> gv, int64_t row, T* ga) {
    for (int64_t i = 0; i < g.area() * g.in; ++i) ga[i] = 0;
    for (int64_t y = 0; y < g.height; ++y) {
      for (int64_t x = 0; x < g.width; ++x) {
        const T* from = gv.data + (row + y * g.width + x) * kLength;
        int64_t k = 0;
        for (int64_t dy = -1; dy <= 1; ++dy) {
          for (int64_t dx = -1; dx <= 1; ++dx) {
            const bool inside = y + dy >= 0 && y + dy < g.height && x + dx >= 0 &&
                                x + dx < g.width;
            T* to = ga + ((y + dy) * g.width + x + dx) * g.in;
            for (int64_t c = 0; c < g.in; ++c, ++k) {
              if (inside) to[c] += from[k / kLength * gv.panel + k % kLength];
            }
          }
        }
      }
    }
  }

  // Lowered products: one panel of an image's outputs [pixel][lane].
  static const T* lower(
      const Grid& g, Panels<const T> m, int64_t row, int64_t panel, T* scratch) {
    const T* from = m.data + panel * m.panel + row * kLength;
    if (g.direct) return from;
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

  // Where to write cotangents of outputs: where rows of a direct convolution are the same numbers,
  // to their own place.
  static T* place_for(const Grid& g, const Operand& z, int64_t row, int64_t panel, T* scratch) {
    if constexpr (std::is_same_v<Op, Exact<T>>) {
      if (g.direct && z.data != nullptr) return at(z, 0, panel, row);
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
    if (g.direct) {
      if (gz == place_for(g, z, row, panel, nullptr)) return;
      for (int64_t pixel = 0; pixel < g.rows; pixel += kGroup) {
        Row rows[kGroup];
        for (int i = 0; i < kGroup; ++i) {
          rows[i] = pixel + i < g.area() ? Row::load(gz + (pixel + i) * kLength) : Row::all(0);
        }
        put_both(rows, 0, row + pixel);
      }
      return;
    }
    for (int64_t tile = 0; tile < g.rows; tile += kGroup) {
      Row points[kPoints * kPoints][kGroup];
      for (int i = 0; i < kGroup; ++i) {
        const int64_t top = (tile + i) / g.across * kTile, left = (tile + i) % g.across * kTile;
        transform<FromOutputs, T>(
            [&](int dy, int dx) FASTMTT_HERE {
              const int64_t y = top + dy, x = left + dx;
              const bool inside = y < g.height && x < g.width;
              return inside ? Row::load(gz + (y * g.width + x) * kLength) : Row::all(0);
            },
            [&](int y, int x, const Row& value) FASTMTT_HERE {
              points[y * kPoints + x][i] = value;
            });
      }
      for (int64_t q = 0; q < kPoints * kPoints; ++q) put_both(points[q], q, row + tile);
    }
  }

  // --- filters --------------------------------------------------------------------------------

  // One panel of U's columns from kGroup filters at a time; load(tap, k) gives a panel of them.
  template <typename Load>
  FASTMTT_INLINE_HERE static void filters_to(
      int64_t depth, int64_t panel, const Operand& u, const Load& load) {
    for (int64_t k = 0; k < depth; k += kGroup) {
      Row points[kPoints * kPoints][kGroup];
      for (int i = 0; i < kGroup; ++i) {
        transform<ToFilter, T>(
            [&](int y, int x) FASTMTT_HERE { return load(y * 3 + x, k + i); },
            [&](int y, int x, const Row& value) FASTMTT_HERE {
              points[y * kPoints + x][i] = value;
            });
      }
      for (int64_t q = 0; q < kPoints * kPoints; ++q) put(points[q], u, q, panel, k, true);
    }
  }

  static void filters(const Grid& g, const T* w, int64_t panel, Operand u) {
    const int64_t count = present(g.out, panel);
    w += panel * kLength;
    if (g.direct) {
      for (int64_t k = 0; k < g.depth; k += kGroup) {
        Row rows[kGroup];
        for (int i = 0; i < kGroup; ++i) {
          rows[i] = k + i < 9 * g.in ? Row::load(w + (k + i) * g.out, count) : Row::all(0);
        }
        put(rows, u, 0, panel, k, true);
      }
      return;
    }
    filters_to(g.depth, panel, u, [&](int64_t tap, int64_t k) FASTMTT_HERE {
      return k < g.in ? Row::load(w + (tap * g.in + k) * g.out, count) : Row::all(0);
    });
  }

  // U^T: rows are output channels, a panel holds input channels (direct: taps and channels).
  static void filters_flipped(const Grid& g, const T* w, int64_t panel, Operand u) {
    const int64_t rows = (g.out + kGroup - 1) / kGroup * kGroup;
    const int64_t count = present(g.direct ? 9 * g.in : g.in, panel);
    const auto column = [&](const T* from, int64_t o) FASTMTT_HERE {
      T lanes[kLength] = {};
      if (o < g.out) {
        for (int64_t l = 0; l < count; ++l) lanes[l] = from[(panel * kLength + l) * g.out + o];
      }
      return Row::load(lanes);
    };
    if (g.direct) {
      for (int64_t o = 0; o < rows; o += kGroup) {
        Row columns[kGroup];
        for (int i = 0; i < kGroup; ++i) columns[i] = column(w, o + i);
        put(columns, u, 0, panel, o, true);
      }
      return;
    }
    filters_to(rows, panel, u, [&](int64_t tap, int64_t o) FASTMTT_HERE {
      return column(w + tap * g.in * g.out, o);
    });
  }

  static void filters_transposed(const Grid& g, Panels<const T> gu, int64_t panel, T* gw) {
    const int64_t count = present(g.out, panel);
    gw += panel * kLength;
    const T* from = gu.data + panel * gu.panel;
    if (g.direct) {
      for (int64_t k = 0; k < 9 * g.in; ++k) {
        Row::load(from + k * kLength).store(gw + k * g.out, count);
      }
      return;
    }
    for (int64_t k = 0; k < g.in; ++k) {
      transform<FromFilter, T>(
          [&](int y, int x) FASTMTT_HERE {
            return Row::load(from + (y * kPoints + x) * gu.position + k * kLength);
          },
          [&](int y, int x, const Row& value) FASTMTT_HERE {
            value.store(gw + ((y * 3 + x) * g.in + k) * g.out, count);
          });
    }
  }
};

}  // namespace
}  // namespace FASTMTT_ISA
}  // namespace fastmtt
