// Instance norm, ReLU and 2x2 average pool of one panel of an image, and their tangents: whatever
// the ConvNet block does after its products. fastmtt/ops/reference_block.py has the formulas.

#pragma once

#include "passes.h"

namespace fastmtt {
namespace FASTMTT_ISA {
namespace {

constexpr double kEps = 1e-5;

template <typename Op>
struct Norm : Passes<Op> {
  using typename Passes<Op>::T;
  using typename Passes<Op>::Row;
  using Passes<Op>::kLength;
  using Passes<Op>::at;
  using Passes<Op>::for_pools;
  using Passes<Op>::for_row;
  using Passes<Op>::give;
  using Passes<Op>::pooled_at;
  using Passes<Op>::take;

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
};

}  // namespace
}  // namespace FASTMTT_ISA
}  // namespace fastmtt
