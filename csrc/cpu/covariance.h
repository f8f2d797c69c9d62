// Means of patches and their covariance, from sums over the image itself: two columns of patches are
// the image twice, so many pixels apart, and most pairs of columns are equally far apart.
//
// Summed over all pixels p, x[p + d] x[p + d'] with zeros outside of the image is the image's
// correlation at d' - d, but that p stays inside: where both d and d' look above, the last row takes
// no part, where both look below, not the first, and likewise for columns of pixels.

#pragma once

#include "patch_kernels.h"
#include "products.h"

namespace fastmtt {
namespace FASTMTT_ISA {
namespace {

// Lines of pixels, `channels` numbers each, in double, with zeros on either side.
struct Lines {
  const double* data;
  int64_t count, stride, pixels, channels;
};

// Correlations of lines `down` apart: of channel c with what is `shift` numbers further, which is
// another channel, or another pixel's.
class Correlation {
 public:
  static constexpr int64_t kAtOnce = 6;  // shifts, for the adder's latency

  static int64_t most(int64_t channels) { return 3 * channels - 1; }
  static int64_t numbers(int64_t channels) {
    return parts(2 * most(channels) + 1, kAtOnce) * kAtOnce * channels;
  }
  // Numbers beside a line that must be zero: shifts of as many, and of those beyond the last.
  static int64_t border(int64_t channels) {
    return parts(most(channels) + kAtOnce + kEight, kEight) * kEight;
  }

  Correlation(const Lines& lines, int64_t down, double* sums)
      : channels_(lines.channels), sums_(sums) {
    const int64_t length = lines.pixels * channels_, shifts = 2 * most(channels_) + 1;
    int64_t period = channels_;  // eights after which lanes hold the same channels again
    while (period % 2 == 0 && channels_ / period < kEight) period /= 2;
    for (int64_t i = 0; i < numbers(channels_); ++i) sums[i] = 0;
    for (int64_t first = 0; first < shifts; first += kAtOnce) {
      for (int64_t phase = 0; phase < period * kEight && phase < length; phase += kEight) {
        Panel<double> totals[kAtOnce] = {};
        for (int64_t j = phase; j < length; j += period * kEight) {
          const double* a = lines.data + j;
          const double* b = a + down * lines.stride + first - most(channels_);
          for (int64_t y = 0; y + down < lines.count; ++y, a += lines.stride, b += lines.stride) {
            const auto here = Panel<double>::load(a);
            FASTMTT_UNROLL for (int i = 0; i < kAtOnce; ++i) {
              totals[i] = fused(here, Panel<double>::load(b + i), totals[i]);
            }
          }
        }
        FASTMTT_UNROLL for (int i = 0; i < kAtOnce; ++i) {
          double lanes[kEight];
          totals[i].store(lanes);
          int64_t channel = phase % channels_;
          for (int64_t l = 0; l < kEight; ++l) {
            sums[(first + i) * channels_ + channel] += lanes[l];
            channel = channel + 1 < channels_ ? channel + 1 : 0;
          }
        }
      }
    }
  }

  // Of channel c with channel e, `across` pixels further.
  double at(int64_t across, int64_t c, int64_t e) const {
    return sums_[(across * channels_ + e - c + most(channels_)) * channels_ + c];
  }

 private:
  int64_t channels_;
  double* sums_;
};

template <typename T>
struct Covariance {
  using Grid = PatchGrid<T>;

  // The image's numbers in double, its first and last column of pixels as lines, correlations.
  struct Sizes {
    explicit Sizes(const Grid& g)
        : channels(g.tangents() ? 2 * g.in : g.in),
          border(Correlation::border(channels)),
          stride(parts(g.width * channels, kEight) * kEight + 2 * border),
          column(parts(g.height * channels, kEight) * kEight + 2 * border) {}
    int64_t image(const Grid& g) const { return g.height * stride; }
    int64_t correlations() const { return 7 * Correlation::numbers(channels); }
    int64_t channels, border, stride, column;
  };
  static int64_t numbers(const Grid& g) {
    const Sizes sizes(g);
    return sizes.image(g) + 2 * sizes.column + sizes.correlations() + sizes.stride;
  }

  // means: [depth], covariance: [depth / 8][depth][8], zero where there are no patches.
  static void compute(
      const Grid& g, const PatchImage<T>& image, double* room, double* means, double* covariance) {
    __builtin_memset(means, 0, g.depth * sizeof(double));
    __builtin_memset(covariance, 0, g.depth * g.depth * sizeof(double));
    if (g.tangents()) add(g, g, image, room, means, covariance);
    // what belongs to the image alone has the same bits without a tangent
    const Grid alone(g.height, g.width, g.in, g.out, false);
    add(alone, g, image, room, means, covariance);
  }

 private:
  // Of the columns of `g`, to where they are among those of `all`.
  static void add(
      const Grid& g, const Grid& all, const PatchImage<T>& image, double* room, double* means,
      double* covariance) {
    const Sizes sizes(g);
    const int64_t ch = sizes.channels, size = Correlation::numbers(ch);
    double* wide = room + sizes.border;
    double *first = room + sizes.image(g) + sizes.border, *last = first + sizes.column;
    double* sums = room + sizes.image(g) + 2 * sizes.column;
    __builtin_memset(room, 0, (sizes.image(g) + 2 * sizes.column) * sizeof(double));
    copy(g, sizes, image, wide, first, last);
    const Lines rows = {wide, g.height, sizes.stride, g.width, ch};
    const auto line = [&](const double* data, int64_t pixels) {
      return Lines{data, 1, 0, pixels, ch};
    };
    const double* bottom = wide + (g.height - 1) * sizes.stride;
    const Correlation whole[3] = {
        {rows, 0, sums}, {rows, 1, sums + size}, {rows, 2, sums + 2 * size}};
    const Correlation edges[2][2] = {
        {{line(bottom, g.width), 0, sums + 3 * size}, {line(wide, g.width), 0, sums + 4 * size}},
        {{line(last, g.height), 0, sums + 5 * size}, {line(first, g.height), 0, sums + 6 * size}}};
    const auto corner = [&](bool top, bool left, int64_t c) {
      return (top ? wide : bottom)[(left ? 0 : g.width - 1) * ch + c];
    };

    // x[p + d] x[p + d'], d = (y, x) of taps 0, 1, 2 in either direction
    const auto sum = [&](int64_t y, int64_t x, int64_t c, int64_t y2, int64_t x2, int64_t e) {
      const int64_t down = y2 - y, across = x2 - x;
      double total = down < 0 ? whole[-down].at(-across, e, c) : whole[down].at(across, c, e);
      const bool row = down == 0 && y != 1, column = across == 0 && x != 1;
      if (row) total -= edges[0][y / 2].at(across, c, e);
      if (column) total -= edges[1][x / 2].at(down, c, e);
      if (row && column) total += corner(y == 2, x == 2, c) * corner(y == 2, x == 2, e);
      return total;
    };
    means_of(g, sizes, wide, sums + sizes.correlations(), means);
    const double share = 1.0 / static_cast<double>(g.area);
    const auto put = [&](int64_t row, int64_t column, double value) {
      covariance[(column / kEight * all.depth + row) * kEight + column % kEight] = value;
    };
    for (int64_t i = 0; i < g.used; ++i) {
      if (i == g.taps) continue;
      const Column a(g, i);
      for (int64_t j = 0; j <= i; ++j) {
        if (j == g.taps) continue;
        const Column b(g, j);
        const double about =
            share * sum(a.y, a.x, a.channel, b.y, b.x, b.channel) - means[i] * means[j];
        put(i, j, about);
        put(j, i, about);
      }
    }
  }

  // A column of patches: its tap, and its channel among those of the image and of its tangent.
  struct Column {
    Column(const Grid& g, int64_t k) {
      const int64_t of_own = k > g.taps ? k - g.taps - 1 : k, tap = of_own / g.in;
      y = tap / 3;
      x = tap % 3;
      channel = of_own % g.in + (k > g.taps ? g.in : 0);
    }
    int64_t y, x, channel;
  };

  static void copy(
      const Grid& g, const Sizes& sizes, const PatchImage<T>& image, double* wide, double* first,
      double* last) {
    const int64_t ch = sizes.channels;
    for (int64_t y = 0; y < g.height; ++y) {
      double* to = wide + y * sizes.stride;
      const T* row = image.a + y * g.width * g.in;
      if (!g.tangents()) {
        for (int64_t k = 0; k < g.width * g.in; ++k) to[k] = row[k];
      } else {
        const T* dots = image.a_dot + y * g.width * g.in;
        for (int64_t x = 0; x < g.width; ++x) {
          for (int64_t c = 0; c < g.in; ++c) {
            to[x * ch + c] = row[x * g.in + c];
            to[x * ch + g.in + c] = dots[x * g.in + c];
          }
        }
      }
      for (int64_t c = 0; c < ch; ++c) {
        first[y * ch + c] = to[c];
        last[y * ch + c] = to[(g.width - 1) * ch + c];
      }
    }
  }

  // What the taps see: above a pixel all lines but the last, left of it all pixels but the last.
  static void means_of(
      const Grid& g, const Sizes& sizes, const double* wide, double* line, double* means) {
    const int64_t ch = sizes.channels, length = g.width * ch;
    const double *top = wide, *bottom = wide + (g.height - 1) * sizes.stride;
    for (int64_t j = 0; j < length; j += kEight) {
      Panel<double> total = Panel<double>::all(0);
      for (int64_t y = 0; y < g.height; ++y) {
        total = total + Panel<double>::load(wide + y * sizes.stride + j);
      }
      total.store(line + j);
    }
    for (int64_t y = 0; y < 3; ++y) {
      const double* left_out = y == 0 ? bottom : top;
      double sums[2 * kLanes<T>] = {};
      const auto seen = [&](int64_t k) { return line[k] - (y == 1 ? 0 : left_out[k]); };
      for (int64_t k = 0; k < length; k += ch) {
        for (int64_t c = 0; c < ch; ++c) sums[c] += seen(k + c);
      }
      for (int64_t k = 0; k < g.used; ++k) {
        const Column column(g, k);
        if (k == g.taps || column.y != y) continue;
        const int64_t c = column.channel;
        const double edge = column.x == 0 ? seen(length - ch + c) : column.x == 2 ? seen(c) : 0;
        means[k] = (sums[c] - edge) / static_cast<double>(g.area);
      }
    }
  }
};

}  // namespace
}  // namespace FASTMTT_ISA
}  // namespace fastmtt
