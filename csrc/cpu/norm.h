// Instance norm, ReLU and 2x2 average pool of one panel of an image, their backward and the
// tangents of both: whatever the ConvNet block does between its products. The panel lies in the
// first-level cache. fastmtt/ops/reference.py has the formulas; here they are per channel, with
//   u = gn - mean(gn) - xhat * mean(gn * xhat),   gn the cotangent of the norm's affine output,
// so that the cotangent of the convolution's output is rstd * gamma * u.

#pragma once

#include "lifting.h"

namespace fastmtt {
namespace FASTMTT_ISA {
namespace {

constexpr double kEps = 1e-5;

// Per-channel sums over pixels, in double.
template <typename T>
struct Total {
  double lane[kLanes<T>] = {};

  FASTMTT_INLINE_HERE void add(const Panel<T>& row) {
    T lanes[kLanes<T>];
    row.store(lanes);
    for (int l = 0; l < kLanes<T>; ++l) lane[l] += lanes[l];
  }
  FASTMTT_INLINE_HERE Panel<T> mean(int64_t count) const {
    T lanes[kLanes<T>];
    for (int l = 0; l < kLanes<T>; ++l) lanes[l] = static_cast<T>(lane[l] / count);
    return Panel<T>::load(lanes);
  }
};

// Sums over a row of pixels in T, in two chains that hide the adder's latency, added to totals.
template <typename T, int K>
struct RowSums {
  Panel<T> chain[2][K] = {};

  FASTMTT_INLINE_HERE void add_to(Total<T>* totals) const {
    FASTMTT_UNROLL for (int k = 0; k < K; ++k) totals[k].add(chain[0][k] + chain[1][k]);
  }
};

// The affine output, whose sign is the ReLU's mask: every pass has to see the same.
template <typename T>
FASTMTT_INLINE_HERE Panel<T> affine(
    const Panel<T>& xhat, const Panel<T>& gamma, const Panel<T>& beta) {
  return fused(xhat, gamma, beta);
}

// Of a pool's four pixels, in one order: a recomputed output has the same bits.
template <typename T>
FASTMTT_INLINE_HERE Panel<T> average(const Panel<T>* n) {
  return T(0.25) * ((n[0] + n[1]) + (n[2] + n[3]));
}

template <typename Op>
struct Norm {
  using T = typename Op::Value;
  using Row = Panel<T>;
  static constexpr int64_t kLength = Row::kLength;

  // A panel's pixels lie a whole pixel apart in an image [H,W,C], too far for the processor to see
  // what comes next: it is told.
  static constexpr int64_t kAhead = 16;
  FASTMTT_INLINE_HERE static Row take(
      const Grid& g, const T* image, int64_t count, int64_t y, int64_t x) {
    const T* pixel = image + (y * g.width + x) * g.out;
    __builtin_prefetch(pixel + kAhead * g.out);
    return Row::load(pixel, count);
  }
  FASTMTT_INLINE_HERE static void give(
      const Grid& g, const Row& value, T* image, int64_t count, int64_t y, int64_t x) {
    T* pixel = image + (y * g.width + x) * g.out;
    __builtin_prefetch(pixel + kAhead * g.out, 1);
    value.store(pixel, count);
  }

  FASTMTT_INLINE_HERE static Row at(const Grid& g, const T* panel, int64_t y, int64_t x) {
    return Row::load(panel + (y * g.width + x) * kLength);
  }
  FASTMTT_INLINE_HERE static int64_t pooled_at(const Grid& g, int64_t y, int64_t x) {
    return (y / 2 * g.pooled_width() + x / 2) * g.out;
  }

  struct Statistics {
    Row mean, rstd;
  };

  // In one pass: each row of pixels about the mean so far, rows joined as Chan, Golub and LeVeque
  // (1983) do. No difference of large sums is taken.
  static Statistics statistics(const Grid& g, const T* z) {
    double mean[kLength] = {}, squares[kLength] = {};
    Row about = Row::load(z);
    for (int64_t y = 0; y < g.height; ++y) {
      const T* row = z + y * g.width * kLength;
      RowSums<T, 2> sums;
      for_row(g.width, [&](int64_t x, int chain) FASTMTT_HERE {
        const Row off = Row::load(row + x * kLength) - about;
        sums.chain[chain][0] = sums.chain[chain][0] + off;
        sums.chain[chain][1] = fused(off, off, sums.chain[chain][1]);
      });
      Total<T> totals[2];
      sums.add_to(totals);
      T middle[kLength];
      about.store(middle);
      for (int l = 0; l < kLength; ++l) {
        const double rest = totals[0].lane[l] / g.width;
        const double step = middle[l] + rest - mean[l];
        mean[l] += step / (y + 1);
        squares[l] += totals[1].lane[l] + (step * step * y / (y + 1) - rest * rest) * g.width;
        middle[l] = static_cast<T>(mean[l]);
      }
      about = Row::load(middle);
    }
    T means[kLength], rstds[kLength];
    for (int l = 0; l < kLength; ++l) {
      means[l] = static_cast<T>(mean[l]);
      rstds[l] = static_cast<T>(1 / __builtin_sqrt(squares[l] / g.area() + kEps));
    }
    return {Row::load(means), Row::load(rstds)};
  }

  // work(x, chain) for the pixels of a row, in two chains.
  template <typename Work>
  FASTMTT_INLINE_HERE static void for_row(int64_t width, const Work& work) {
    for (int64_t x = 0; x + 1 < width; x += 2) {
      work(x, 0);
      work(x + 1, 1);
    }
    if (width % 2 == 1) work(width - 1, 0);
  }

  // pool(y, x) for the first of every pool's four pixels, rest(y, x) for pixels in no pool.
  template <typename Pool, typename Rest>
  FASTMTT_INLINE_HERE static void for_pools(const Grid& g, const Pool& pool, const Rest& rest) {
    const int64_t height = 2 * g.pooled_height(), width = 2 * g.pooled_width();
    for (int64_t y = 0; y < height; y += 2) {
      for (int64_t x = 0; x < width; x += 2) pool(y, x);
    }
    for (int64_t y = 0; y < g.height; ++y) {
      for (int64_t x = y < height ? width : 0; x < g.width; ++x) rest(y, x);
    }
  }

  static void normalise(Grid g, Normalise<T> n) {
    const T* z = Lifting<Op>::lower(g, n.m, n.row, n.panel, n.scratch);
    const auto [mean, rstd] = statistics(g, z);
    rstd.store(n.rstd, n.count);
    const Row gamma = Row::load(n.gamma, n.count), beta = Row::load(n.beta, n.count);
    const auto put = [&](int64_t y, int64_t x) FASTMTT_HERE {
      const Row xhat = (at(g, z, y, x) - mean) * rstd;
      give(g, xhat, n.xhat, n.count, y, x);
      return xhat;
    };
    for_pools(
        g,
        [&](int64_t y, int64_t x) FASTMTT_HERE {
          Row active[4];
          FASTMTT_UNROLL for (int k = 0; k < 4; ++k) {
            active[k] = positive(affine(put(y + k / 2, x + k % 2), gamma, beta));
          }
          average(active).store(n.p + pooled_at(g, y, x), n.count);
        },
        [&](int64_t y, int64_t x) FASTMTT_HERE { put(y, x); });
  }

  static void normalise_jvp(Grid g, Normalise<T> n, NormaliseJvp<T> j) {
    const int64_t size = g.area() * kLength;
    T* xhat = n.scratch;
    const T* z_dot = Lifting<Op>::lower(g, j.m_dot, n.row, n.panel, xhat + size);
    const bool fresh = n.m.data != nullptr;
    const T* z = fresh ? Lifting<Op>::lower(g, n.m, n.row, n.panel, xhat + 2 * size) : nullptr;
    const Row none = Row::all(0);
    const Statistics found =
        fresh ? statistics(g, z) : Statistics{none, Row::load(n.rstd, n.count)};
    const Row rstd = found.rstd;
    Total<T> totals[2];
    const auto sum = [&](const auto& value) FASTMTT_HERE {
      for (int64_t y = 0; y < g.height; ++y) {
        RowSums<T, 2> sums;
        for_row(g.width, [&](int64_t x, int chain) FASTMTT_HERE {
          const Row here = value(y, x), dot = at(g, z_dot, y, x);
          here.store(xhat + (y * g.width + x) * kLength);
          sums.chain[chain][0] = sums.chain[chain][0] + dot;
          sums.chain[chain][1] = fused(dot, here, sums.chain[chain][1]);
        });
        sums.add_to(totals);
      }
    };
    if (fresh) {
      rstd.store(n.rstd, n.count);
      sum([&](int64_t y, int64_t x) FASTMTT_HERE {
        const Row value = (at(g, z, y, x) - found.mean) * rstd;
        give(g, value, n.xhat, n.count, y, x);
        return value;
      });
    } else {
      sum([&](int64_t y, int64_t x) FASTMTT_HERE {
        return take(g, n.xhat, n.count, y, x);
      });
    }
    const Row mean = totals[0].mean(g.area()), correlation = totals[1].mean(g.area());
    (none - rstd * rstd * correlation).store(j.rstd_dot, n.count);
    const Row gamma = Row::load(n.gamma, n.count), beta = Row::load(n.beta, n.count);
    const Row gamma_dot = Row::load(j.gamma_dot, n.count);
    const Row beta_dot = Row::load(j.beta_dot, n.count);
    const Row minus_mean = none - rstd * mean, minus_correlation = none - rstd * correlation;
    const auto put = [&](int64_t y, int64_t x, const Row& here) FASTMTT_HERE {
      const Row dot = fused(rstd, at(g, z_dot, y, x), fused(minus_correlation, here, minus_mean));
      give(g, dot, j.xhat_dot, n.count, y, x);
      return dot;
    };
    for_pools(
        g,
        [&](int64_t y, int64_t x) FASTMTT_HERE {
          Row active[4], tangent[4];
          FASTMTT_UNROLL for (int k = 0; k < 4; ++k) {
            const Row here = at(g, xhat, y + k / 2, x + k % 2);
            const Row dot = put(y + k / 2, x + k % 2, here);
            const Row value = affine(here, gamma, beta);
            active[k] = positive(value);
            tangent[k] = where_positive(value, fused(dot, gamma, affine(here, gamma_dot, beta_dot)));
          }
          average(active).store(n.p + pooled_at(g, y, x), n.count);
          average(tangent).store(j.p_dot + pooled_at(g, y, x), n.count);
        },
        [&](int64_t y, int64_t x) FASTMTT_HERE { put(y, x, at(g, xhat, y, x)); });
  }

  // add(y, x, pooled offset, sums) for the pixels that a pool reads.
  template <int K, typename Add>
  FASTMTT_INLINE_HERE static void sum_pools(const Grid& g, Total<T>* totals, const Add& add) {
    for (int64_t y = 0; y < 2 * g.pooled_height(); ++y) {
      RowSums<T, K> sums;
      int64_t pooled = pooled_at(g, y, 0);
      for (int64_t x = 0; x < 2 * g.pooled_width(); x += 2, pooled += g.out) {
        add(y, x, pooled, sums.chain[0]);
        add(y, x + 1, pooled, sums.chain[1]);
      }
      sums.add_to(totals);
    }
  }

  // write(pixel's offset in a panel, pooled offset) where a pool reads, rest(offset) elsewhere
  template <typename Write, typename Rest>
  FASTMTT_INLINE_HERE static void for_pixels(const Grid& g, const Write& write, const Rest& rest) {
    for (int64_t y = 0; y < g.height; ++y) {
      const int64_t pools = y < 2 * g.pooled_height() ? 2 * g.pooled_width() : 0;
      int64_t pixel = y * g.width * kLength, pooled = pooled_at(g, y, 0);
      int64_t x = 0;
      for (; x < pools; x += 2, pixel += 2 * kLength, pooled += g.out) {
        write(pixel, pooled);
        write(pixel + kLength, pooled);
      }
      for (; x < g.width; ++x, pixel += kLength) rest(pixel);
    }
  }

  // A pool's cotangent goes to its four pixels in quarters: sums are taken of the whole.
  static void share(const Total<T>& total, int64_t count, double* to) {
    for (int64_t l = 0; l < count; ++l) to[l] = 0.25 * total.lane[l];
  }

  // A pixel of an image, copied to the panel that later passes read.
  FASTMTT_INLINE_HERE static Row gathered(
      const Grid& g, const T* image, int64_t count, int64_t y, int64_t x, T* panel) {
    const Row value = take(g, image, count, y, x);
    value.store(panel + (y * g.width + x) * kLength);
    return value;
  }
  // The pixels that no pool reads.
  static void gather_rest(const Grid& g, const T* image, int64_t count, T* panel) {
    for_pools(
        g, [](int64_t, int64_t) FASTMTT_HERE {},
        [&](int64_t y, int64_t x) FASTMTT_HERE { gathered(g, image, count, y, x, panel); });
  }

  // A cotangent of the convolution's output, linear in gp' (a pool's cotangent where the ReLU is
  // open, else 0) and xhat, and its factors:
  //   gz = gp gp' + xhat xhat + rest = gain (gp' / 4 - mean(gn) - xhat mean(gn * xhat))
  struct Factors {
    Row gp, xhat, rest;
    Factors(const Row& gain, const Total<T>* totals, int64_t area)
        : gp(T(0.25) * gain),
          xhat(Row::all(0) - gp * totals[1].mean(area)),
          rest(Row::all(0) - gp * totals[0].mean(area)) {}
  };

  static void backward(Grid g, Backward<T> b) {
    T* xhat = b.scratch;
    T* gz = Lifting<Op>::place_for(g, b.z, b.row, b.panel, xhat + g.area() * kLength);
    const Row gamma = Row::load(b.gamma, b.count), beta = Row::load(b.beta, b.count);
    const auto open = [&](const Row& here, int64_t pooled) FASTMTT_HERE {
      return where_positive(affine(here, gamma, beta), Row::load(b.gp + pooled, b.count));
    };
    Total<T> totals[2];
    sum_pools<2>(g, totals, [&](int64_t y, int64_t x, int64_t pooled, Row* sums) FASTMTT_HERE {
      const Row here = gathered(g, b.xhat, b.count, y, x, xhat);
      const Row gn = open(here, pooled);
      sums[0] = sums[0] + gn;
      sums[1] = fused(gn, here, sums[1]);
    });
    gather_rest(g, b.xhat, b.count, xhat);
    share(totals[0], b.count, b.gbeta);
    share(totals[1], b.count, b.ggamma);
    const Factors f(Row::load(b.rstd, b.count) * gamma, totals, g.area());
    for_pixels(
        g,
        [&](int64_t at, int64_t pooled) FASTMTT_HERE {
          const Row here = Row::load(xhat + at);
          fused(f.gp, open(here, pooled), fused(f.xhat, here, f.rest)).store(gz + at);
        },
        [&](int64_t at) FASTMTT_HERE {
          fused(f.xhat, Row::load(xhat + at), f.rest).store(gz + at);
        });
    Lifting<Op>::lower_transposed(g, gz, b.z, b.z_pairs, b.row, b.panel);
  }

  static void backward_jvp(Grid g, Backward<T> b, BackwardJvp<T> j) {
    const int64_t size = g.area() * kLength;
    T *xhat = b.scratch, *xhat_dot = xhat + size;
    T* gz = Lifting<Op>::place_for(g, b.z, b.row, b.panel, xhat + 2 * size);
    T* gz_dot = Lifting<Op>::place_for(g, j.z_dot, b.row, b.panel, xhat + 3 * size);
    const Row gamma = Row::load(b.gamma, b.count), beta = Row::load(b.beta, b.count);
    const auto open = [&](const Row& here, int64_t pooled, Row* gn) FASTMTT_HERE {
      const Row value = affine(here, gamma, beta);
      gn[0] = where_positive(value, Row::load(b.gp + pooled, b.count));
      gn[1] = where_positive(value, Row::load(j.gp_dot + pooled, b.count));
    };
    Total<T> totals[4];
    sum_pools<4>(g, totals, [&](int64_t y, int64_t x, int64_t pooled, Row* sums) FASTMTT_HERE {
      const Row here = gathered(g, b.xhat, b.count, y, x, xhat);
      const Row dot = gathered(g, j.xhat_dot, b.count, y, x, xhat_dot);
      Row gn[2];
      open(here, pooled, gn);
      sums[0] = sums[0] + gn[0];
      sums[1] = fused(gn[0], here, sums[1]);
      sums[2] = sums[2] + gn[1];
      sums[3] = fused(gn[1], here, fused(gn[0], dot, sums[3]));
    });
    gather_rest(g, b.xhat, b.count, xhat);
    gather_rest(g, j.xhat_dot, b.count, xhat_dot);
    share(totals[2], b.count, b.gbeta);
    share(totals[3], b.count, b.ggamma);
    const Row rstd = Row::load(b.rstd, b.count), rstd_dot = Row::load(j.rstd_dot, b.count);
    const Row gain = rstd * gamma;
    const Row gain_dot = fused(rstd, Row::load(j.gamma_dot, b.count), rstd_dot * gamma);
    const Factors f(gain, totals, g.area());
    const Factors by_gain(gain_dot, totals, g.area()), by_sums(gain, totals + 2, g.area());
    const Row xhat_factor = by_gain.xhat + by_sums.xhat, rest = by_gain.rest + by_sums.rest;
    const auto write = [&](int64_t at, const Row& gn, const Row& gn_dot) FASTMTT_HERE {
      const Row here = Row::load(xhat + at), dot = Row::load(xhat_dot + at);
      fused(f.gp, gn, fused(f.xhat, here, f.rest)).store(gz + at);
      const Row moved = fused(f.xhat, dot, fused(xhat_factor, here, rest));
      fused(by_gain.gp, gn, fused(f.gp, gn_dot, moved)).store(gz_dot + at);
    };
    for_pixels(
        g,
        [&](int64_t at, int64_t pooled) FASTMTT_HERE {
          Row gn[2];
          open(Row::load(xhat + at), pooled, gn);
          write(at, gn[0], gn[1]);
        },
        [&](int64_t at) FASTMTT_HERE { write(at, Row::all(0), Row::all(0)); });
    Lifting<Op>::lower_transposed(g, gz, b.z, b.z_pairs, b.row, b.panel);
    Lifting<Op>::lower_transposed(g, gz_dot, j.z_dot, j.z_dot_pairs, b.row, b.panel);
  }
};

}  // namespace
}  // namespace FASTMTT_ISA
}  // namespace fastmtt
