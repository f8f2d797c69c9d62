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

// totals[k] = sum over the pixels of term(y, x, out)[k]: a row's in T, in kAtOnce chains that hide
// the adder's latency, rows in double.
template <typename T, int K, typename Term>
FASTMTT_INLINE_HERE void sum_pixels(
    int64_t height, int64_t width, Total<T>* totals, const Term& term) {
  constexpr int kAtOnce = K == 1 ? 4 : 2;
  for (int64_t y = 0; y < height; ++y) {
    Panel<T> sums[kAtOnce][K];
    for (auto& chain : sums) {
      for (auto& sum : chain) sum = Panel<T>::all(0);
    }
    int64_t x = 0;
    for (; x + kAtOnce <= width; x += kAtOnce) {
      FASTMTT_UNROLL for (int i = 0; i < kAtOnce; ++i) {
        Panel<T> terms[K];
        term(y, x + i, terms);
        FASTMTT_UNROLL for (int k = 0; k < K; ++k) sums[i][k] = sums[i][k] + terms[k];
      }
    }
    for (; x < width; ++x) {
      Panel<T> terms[K];
      term(y, x, terms);
      for (int k = 0; k < K; ++k) sums[0][k] = sums[0][k] + terms[k];
    }
    for (int k = 0; k < K; ++k) {
      for (int i = 1; i < kAtOnce; ++i) sums[0][k] = sums[0][k] + sums[i][k];
      totals[k].add(sums[0][k]);
    }
  }
}

// The affine output, whose sign is the ReLU's mask: every pass has to see the same.
template <typename T>
FASTMTT_INLINE_HERE Panel<T> affine(
    const Panel<T>& xhat, const Panel<T>& gamma, const Panel<T>& beta) {
  return xhat * gamma + beta;
}

// Of a pool's four pixels, in one order: a recomputed output has the same bits.
template <typename T>
FASTMTT_INLINE_HERE Panel<T> average(const Panel<T>* n) {
  return T(0.25) * ((n[0] + n[1]) + (n[2] + n[3]));
}

template <typename T>
FASTMTT_INLINE_HERE Panel<T> quarter(const Panel<T>& x) {
  return T(0.25) * x;
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

  // In one pass: each row of pixels about its own mean, rows joined as Chan, Golub and LeVeque
  // (1983) do. No difference of large sums is taken.
  static Statistics statistics(const Grid& g, const T* z) {
    double mean[kLength] = {}, squares[kLength] = {};
    for (int64_t y = 0; y < g.height; ++y) {
      const T* row = z + y * g.width * kLength;
      Total<T> sum[1], about[2];
      sum_pixels<T, 1>(1, g.width, sum, [&](int64_t, int64_t x, Row* out) FASTMTT_HERE {
        out[0] = Row::load(row + x * kLength);
      });
      const Row middle = sum[0].mean(g.width);
      sum_pixels<T, 2>(1, g.width, about, [&](int64_t, int64_t x, Row* out) FASTMTT_HERE {
        out[0] = Row::load(row + x * kLength) - middle;
        out[1] = out[0] * out[0];
      });
      T middles[kLength];
      middle.store(middles);
      for (int l = 0; l < kLength; ++l) {
        const double rest = about[0].lane[l] / g.width;  // the middle is rounded
        const double step = middles[l] + rest - mean[l];
        mean[l] += step / (y + 1);
        squares[l] += about[1].lane[l] + (step * step * y / (y + 1) - rest * rest) * g.width;
      }
    }
    T means[kLength], rstds[kLength];
    for (int l = 0; l < kLength; ++l) {
      means[l] = static_cast<T>(mean[l]);
      rstds[l] = static_cast<T>(1 / __builtin_sqrt(squares[l] / g.area() + kEps));
    }
    return {Row::load(means), Row::load(rstds)};
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

  static void normalise(const Grid& g, const Normalise<T>& n) {
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

  static void normalise_jvp(const Grid& g, const Normalise<T>& n, const NormaliseJvp<T>& j) {
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
      sum_pixels<T, 2>(g.height, g.width, totals, [&](int64_t y, int64_t x, Row* out) FASTMTT_HERE {
        const Row here = value(y, x);
        here.store(xhat + (y * g.width + x) * kLength);
        out[0] = at(g, z_dot, y, x);
        out[1] = out[0] * here;
      });
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
    const auto put = [&](int64_t y, int64_t x, const Row& here) FASTMTT_HERE {
      const Row dot = rstd * (at(g, z_dot, y, x) - mean - here * correlation);
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
            tangent[k] = where_positive(value, affine(here, gamma_dot, beta_dot) + dot * gamma);
          }
          average(active).store(n.p + pooled_at(g, y, x), n.count);
          average(tangent).store(j.p_dot + pooled_at(g, y, x), n.count);
        },
        [&](int64_t y, int64_t x) FASTMTT_HERE { put(y, x, at(g, xhat, y, x)); });
  }

  // write(pixel's offset in a panel, pooled offset) where the pool reads, rest(offset) elsewhere
  template <typename Write, typename Rest>
  FASTMTT_INLINE_HERE static void for_pixels(const Grid& g, const Write& write, const Rest& rest) {
    for (int64_t y = 0; y < g.height; ++y) {
      const int64_t pooled = y < 2 * g.pooled_height() ? 2 * g.pooled_width() : 0;
      for (int64_t x = 0; x < pooled; ++x) {
        write((y * g.width + x) * kLength, pooled_at(g, y, x));
      }
      for (int64_t x = pooled; x < g.width; ++x) rest((y * g.width + x) * kLength);
    }
  }

  static void share(const Total<T>& total, int64_t count, double* to) {
    for (int64_t l = 0; l < count; ++l) to[l] = total.lane[l];
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

  static void backward(const Grid& g, const Backward<T>& b) {
    T* xhat = b.scratch;
    T* gz = Lifting<Op>::place_for(g, b.z, b.row, b.panel, xhat + g.area() * kLength);
    const Row gamma = Row::load(b.gamma, b.count), beta = Row::load(b.beta, b.count);
    const auto gn_at = [&](const Row& here, int64_t pooled) FASTMTT_HERE {
      return where_positive(
          affine(here, gamma, beta), quarter(Row::load(b.gp + pooled, b.count)));
    };
    Total<T> totals[2];
    sum_pixels<T, 2>(
        2 * g.pooled_height(), 2 * g.pooled_width(), totals,
        [&](int64_t y, int64_t x, Row* out) FASTMTT_HERE {
          const Row here = gathered(g, b.xhat, b.count, y, x, xhat);
          out[0] = gn_at(here, pooled_at(g, y, x));
          out[1] = out[0] * here;
        });
    gather_rest(g, b.xhat, b.count, xhat);
    share(totals[0], b.count, b.gbeta);
    share(totals[1], b.count, b.ggamma);
    const Row mean = totals[0].mean(g.area()), correlation = totals[1].mean(g.area());
    const Row scale = Row::load(b.rstd, b.count) * gamma;
    for_pixels(
        g,
        [&](int64_t at, int64_t pooled) FASTMTT_HERE {
          const Row here = Row::load(xhat + at);
          (scale * (gn_at(here, pooled) - mean - here * correlation)).store(gz + at);
        },
        [&](int64_t at) FASTMTT_HERE {
          (scale * (Row::all(0) - mean - Row::load(xhat + at) * correlation)).store(gz + at);
        });
    Lifting<Op>::lower_transposed(g, gz, b.z, b.z_pairs, b.row, b.panel);
  }

  static void backward_jvp(const Grid& g, const Backward<T>& b, const BackwardJvp<T>& j) {
    const int64_t size = g.area() * kLength;
    T *xhat = b.scratch, *xhat_dot = xhat + size;
    T* gz = Lifting<Op>::place_for(g, b.z, b.row, b.panel, xhat + 2 * size);
    T* gz_dot = Lifting<Op>::place_for(g, j.z_dot, b.row, b.panel, xhat + 3 * size);
    const Row gamma = Row::load(b.gamma, b.count), beta = Row::load(b.beta, b.count);
    const auto cotangents = [&](const Row& here, int64_t pooled, Row* out) FASTMTT_HERE {
      const Row value = affine(here, gamma, beta);
      out[0] = where_positive(value, quarter(Row::load(b.gp + pooled, b.count)));
      out[1] = where_positive(value, quarter(Row::load(j.gp_dot + pooled, b.count)));
    };
    Total<T> totals[4];
    sum_pixels<T, 4>(
        2 * g.pooled_height(), 2 * g.pooled_width(), totals,
        [&](int64_t y, int64_t x, Row* out) FASTMTT_HERE {
          const Row here = gathered(g, b.xhat, b.count, y, x, xhat);
          const Row dot = gathered(g, j.xhat_dot, b.count, y, x, xhat_dot);
          Row gn[2];
          cotangents(here, pooled_at(g, y, x), gn);
          out[0] = gn[0];
          out[1] = gn[0] * here;
          out[2] = gn[1];
          out[3] = gn[1] * here + gn[0] * dot;
        });
    gather_rest(g, b.xhat, b.count, xhat);
    gather_rest(g, j.xhat_dot, b.count, xhat_dot);
    share(totals[2], b.count, b.gbeta);
    share(totals[3], b.count, b.ggamma);
    const Row mean = totals[0].mean(g.area()), correlation = totals[1].mean(g.area());
    const Row mean_dot = totals[2].mean(g.area()), correlation_dot = totals[3].mean(g.area());
    const Row rstd = Row::load(b.rstd, b.count), rstd_dot = Row::load(j.rstd_dot, b.count);
    const Row scale = rstd * gamma;
    const Row scale_dot = rstd_dot * gamma + rstd * Row::load(j.gamma_dot, b.count);
    const auto write = [&](int64_t at, const Row* gn) FASTMTT_HERE {
      const Row here = Row::load(xhat + at), dot = Row::load(xhat_dot + at);
      const Row u = gn[0] - mean - here * correlation;  // as in backward: the same bits
      const Row u_dot = gn[1] - mean_dot - dot * correlation - here * correlation_dot;
      (scale * u).store(gz + at);
      (scale_dot * u + scale * u_dot).store(gz_dot + at);
    };
    for_pixels(
        g,
        [&](int64_t at, int64_t pooled) FASTMTT_HERE {
          Row gn[2];
          cotangents(Row::load(xhat + at), pooled, gn);
          write(at, gn);
        },
        [&](int64_t at) FASTMTT_HERE {
          const Row none[2] = {Row::all(0), Row::all(0)};
          write(at, none);
        });
    Lifting<Op>::lower_transposed(g, gz, b.z, b.z_pairs, b.row, b.panel);
    Lifting<Op>::lower_transposed(g, gz_dot, j.z_dot, j.z_dot_pairs, b.row, b.panel);
  }
};

}  // namespace
}  // namespace FASTMTT_ISA
}  // namespace fastmtt
