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

  FASTMTT_INLINE_HERE static T* pixel(const Grid& g, T* panel, int64_t y, int64_t x) {
    return panel + (y * g.width + x) * kLength;
  }
  FASTMTT_INLINE_HERE static const T* pixel(const Grid& g, const T* panel, int64_t y, int64_t x) {
    return panel + (y * g.width + x) * kLength;
  }
  FASTMTT_INLINE_HERE static int64_t pooled_at(const Grid& g, int64_t y, int64_t x) {
    return (y / 2 * g.pooled_width() + x / 2) * g.out;
  }

  static void gather(const Grid& g, const T* image, int64_t count, T* panel) {
    for (int64_t i = 0; i < g.area(); ++i) {
      Row::load(image + i * g.out, count).store(panel + i * kLength);
    }
  }

  // visit(corners) for every pool's four pixels, as offsets of pixels; y and x of the first.
  template <typename Visit>
  FASTMTT_INLINE_HERE static void for_pools(const Grid& g, const Visit& visit) {
    for (int64_t y = 0; y + 1 < g.height; y += 2) {
      for (int64_t x = 0; x + 1 < g.width; x += 2) visit(y, x);
    }
  }

  // Lowered products -> xhat in the scratch's first part and in the image, rstd.
  static Row normalise_panel(const Grid& g, const Normalise<T>& n) {
    T* xhat = n.scratch;
    const T* z = Lifting<Op>::lower(g, n.m, n.row, n.panel, xhat);
    Total<T> total[1];
    sum_pixels<T, 1>(g.height, g.width, total, [&](int64_t y, int64_t x, Row* out) FASTMTT_HERE {
      out[0] = Row::load(pixel(g, z, y, x));
    });
    const Row mean = total[0].mean(g.area());
    Total<T> squares[1];
    sum_pixels<T, 1>(g.height, g.width, squares, [&](int64_t y, int64_t x, Row* out) FASTMTT_HERE {
      const Row centred = Row::load(pixel(g, z, y, x)) - mean;
      out[0] = centred * centred;
    });
    T lanes[kLength];
    for (int l = 0; l < kLength; ++l) {
      lanes[l] = static_cast<T>(1 / __builtin_sqrt(squares[0].lane[l] / g.area() + kEps));
    }
    const Row rstd = Row::load(lanes);
    rstd.store(n.rstd, n.count);
    for (int64_t i = 0; i < g.area(); ++i) {
      const Row value = (Row::load(z + i * kLength) - mean) * rstd;
      value.store(xhat + i * kLength);
      value.store(n.xhat + i * g.out, n.count);
    }
    return rstd;
  }

  static void normalise(const Grid& g, const Normalise<T>& n) {
    normalise_panel(g, n);
    if (n.p == nullptr) return;
    const Row gamma = Row::load(n.gamma, n.count), beta = Row::load(n.beta, n.count);
    const T* xhat = n.scratch;
    for_pools(g, [&](int64_t y, int64_t x) FASTMTT_HERE {
      Row active[4];
      FASTMTT_UNROLL for (int k = 0; k < 4; ++k) {
        const Row value = affine(Row::load(pixel(g, xhat, y + k / 2, x + k % 2)), gamma, beta);
        active[k] = positive(value);
      }
      average(active).store(n.p + pooled_at(g, y, x), n.count);
    });
  }

  static void normalise_jvp(const Grid& g, const Normalise<T>& n, const NormaliseJvp<T>& j) {
    T *xhat = n.scratch, *xhat_dot = n.scratch + g.area() * kLength;
    Row rstd;
    if (n.m.data != nullptr) {
      rstd = normalise_panel(g, n);
    } else {
      gather(g, n.xhat, n.count, xhat);
      rstd = Row::load(n.rstd, n.count);
    }
    const T* z_dot = Lifting<Op>::lower(g, j.m_dot, n.row, n.panel, xhat_dot);
    Total<T> totals[2];
    sum_pixels<T, 2>(g.height, g.width, totals, [&](int64_t y, int64_t x, Row* out) FASTMTT_HERE {
      out[0] = Row::load(pixel(g, z_dot, y, x));
      out[1] = out[0] * Row::load(pixel(g, xhat, y, x));
    });
    const Row mean = totals[0].mean(g.area()), correlation = totals[1].mean(g.area());
    (Row::all(0) - rstd * rstd * correlation).store(j.rstd_dot, n.count);
    for (int64_t i = 0; i < g.area(); ++i) {
      const Row centred = Row::load(z_dot + i * kLength) - mean;
      const Row value = rstd * (centred - Row::load(xhat + i * kLength) * correlation);
      value.store(xhat_dot + i * kLength);
      value.store(j.xhat_dot + i * g.out, n.count);
    }
    const Row gamma = Row::load(n.gamma, n.count), beta = Row::load(n.beta, n.count);
    const Row gamma_dot = Row::load(j.gamma_dot, n.count);
    const Row beta_dot = Row::load(j.beta_dot, n.count);
    for_pools(g, [&](int64_t y, int64_t x) FASTMTT_HERE {
      Row active[4], tangent[4];
      FASTMTT_UNROLL for (int k = 0; k < 4; ++k) {
        const Row here = Row::load(pixel(g, xhat, y + k / 2, x + k % 2));
        const Row dot = Row::load(pixel(g, xhat_dot, y + k / 2, x + k % 2));
        const Row value = affine(here, gamma, beta);
        active[k] = positive(value);
        tangent[k] = where_positive(value, affine(here, gamma_dot, beta_dot) + dot * gamma);
      }
      average(active).store(n.p + pooled_at(g, y, x), n.count);
      average(tangent).store(j.p_dot + pooled_at(g, y, x), n.count);
    });
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

  static void backward(const Grid& g, const Backward<T>& b) {
    T *xhat = b.scratch, *gz = b.scratch + g.area() * kLength;
    const Row gamma = Row::load(b.gamma, b.count), beta = Row::load(b.beta, b.count);
    gather(g, b.xhat, b.count, xhat);
    const auto gn_at = [&](const Row& here, int64_t pooled) FASTMTT_HERE {
      return where_positive(
          affine(here, gamma, beta), quarter(Row::load(b.gp + pooled, b.count)));
    };
    Total<T> totals[2];
    sum_pixels<T, 2>(
        2 * g.pooled_height(), 2 * g.pooled_width(), totals,
        [&](int64_t y, int64_t x, Row* out) FASTMTT_HERE {
          const Row here = Row::load(pixel(g, xhat, y, x));
          out[0] = gn_at(here, pooled_at(g, y, x));
          out[1] = out[0] * here;
        });
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
    T *xhat = b.scratch, *xhat_dot = xhat + size, *gz = xhat + 2 * size, *gz_dot = xhat + 3 * size;
    const Row gamma = Row::load(b.gamma, b.count), beta = Row::load(b.beta, b.count);
    gather(g, b.xhat, b.count, xhat);
    gather(g, j.xhat_dot, b.count, xhat_dot);
    const auto cotangents = [&](const Row& here, int64_t pooled, Row* out) FASTMTT_HERE {
      const Row value = affine(here, gamma, beta);
      out[0] = where_positive(value, quarter(Row::load(b.gp + pooled, b.count)));
      out[1] = where_positive(value, quarter(Row::load(j.gp_dot + pooled, b.count)));
    };
    Total<T> totals[4];
    sum_pixels<T, 4>(
        2 * g.pooled_height(), 2 * g.pooled_width(), totals,
        [&](int64_t y, int64_t x, Row* out) FASTMTT_HERE {
          const Row here = Row::load(pixel(g, xhat, y, x));
          Row gn[2];
          cotangents(here, pooled_at(g, y, x), gn);
          out[0] = gn[0];
          out[1] = gn[0] * here;
          out[2] = gn[1];
          out[3] = gn[1] * here + gn[0] * Row::load(pixel(g, xhat_dot, y, x));
        });
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
