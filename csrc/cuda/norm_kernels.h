// Instance norm, ReLU and 2x2 average pool of a convolution, and the tangents of the three.
// fastmtt/ops/reference_block.py has the formulas.

#pragma once

#include <cmath>
#include <cstdint>

#include "kernel.h"
#include "planes.h"

namespace fastmtt::cuda {

constexpr double kEps = 1e-5;

// z is read before xhat is written, pixel by pixel, so that they may be the same memory; z_dot and
// xhat_dot too. A tangent's z may be the normalised one already, with its rstd.
template <typename T, bool kTangent, bool kWhole>
struct Norm {
  static constexpr int kThreads = kPlaneThreads, kResident = kTangent ? 2 : 3, kStages = 1;
  static constexpr int kCount = kOwn<T>;
  using Own = T[kCount];
  using Part = cuda::Part<T, kWhole>;
  struct Values {
    Own z[4], z_dot[kTangent ? 4 : 1];
  };
  struct Shared {
    PlaneSums<T, kTangent ? 2 : 1> sums;
  };
  struct Thread {
    Values held[kHeld];
    Own mean, scale, rstd;  // xhat = (z - mean) scale
  };

  FASTMTT_ANYWHERE int64_t items(Stage<0>) const { return planes.items(); }

  template <class Block>
  FASTMTT_BODY void run(Stage<0>, Block& block, int64_t item) const {
    if (given) {
      block.each([&](int thread, Thread& mine) {
        const Part part(planes, item, thread);
        part.fill(mine.held, reading(part));
        part.load_statistic(known_rstd, mine.rstd);
        FASTMTT_UNROLL for (int i = 0; i < kCount; ++i) mine.mean[i] = 0, mine.scale[i] = 1;
      });
    } else {
      statistics(block, item);
    }
    if constexpr (kTangent) correlate(block, item);
    block.each([&](int thread, Thread& mine) {
      write(Part(planes, item, thread), mine, block.shared);
    });
  }

 private:
  // Reads a window of z, and of z_dot, which may be the sum of two.
  FASTMTT_BODY auto reading(const Part& part) const {
    return [this, &part](const Window& window, Values& values) {
      part.load(part.in(z, planes.area()), window, values.z);
      if constexpr (kTangent) {
        part.load(part.in(z_dot, planes.area()), window, values.z_dot);
        if (z_dot_more.data == nullptr) return;
        Own rest[4];
        part.load(part.in(z_dot_more, planes.area()), window, rest);
        FASTMTT_UNROLL for (int corner = 0; corner < 4; ++corner) {
          FASTMTT_UNROLL for (int i = 0; i < kCount; ++i) {
            values.z_dot[corner][i] += rest[corner][i];
          }
        }
      }
    };
  }

  // First the mean, then the squares about it: no difference of large sums is taken.
  template <class Block>
  FASTMTT_BODY void statistics(Block& block, int64_t item) const {
    auto& sums = block.shared.sums;
    block.each([&](int thread, Thread& mine) {
      const Part part(planes, item, thread);
      const auto read = reading(part);
      Own sum = {};
      part.fill(mine.held, read);
      part.visit(mine.held, read, [&](const Window&, const Values& values) {
        for (const Own& z : values.z) {
          FASTMTT_UNROLL for (int i = 0; i < kCount; ++i) sum[i] += z[i];
        }
      });
      sums.put(0, thread, sum);
    });
    sums.add(block, planes, 1);
    block.each([&](int thread, Thread& mine) {
      const Part part(planes, item, thread);
      sums.means(0, planes, thread, mine.mean);
      Own squares = {};
      part.visit(mine.held, reading(part), [&](const Window& window, const Values& values) {
        FASTMTT_UNROLL for (int corner = 0; corner < 4; ++corner) {
          if (!window.holds(corner)) continue;
          FASTMTT_UNROLL for (int i = 0; i < kCount; ++i) {
            const T off = values.z[corner][i] - mine.mean[i];
            squares[i] = std::fma(off, off, squares[i]);
          }
        }
      });
      sums.put(0, thread, squares);
    });
    sums.add(block, planes, 1);
    block.each([&](int thread, Thread& mine) {
      const Part part(planes, item, thread);
      sums.means(0, planes, thread, mine.rstd);
      for (T& r : mine.rstd) r = T(1) / std::sqrt(r + T(kEps));
      FASTMTT_UNROLL for (int i = 0; i < kCount; ++i) mine.scale[i] = mine.rstd[i];
      part.store_statistic(mine.rstd, rstd);
    });
  }

  // Means of z_dot and of xhat z_dot.
  template <class Block>
  FASTMTT_BODY void correlate(Block& block, int64_t item) const {
    auto& sums = block.shared.sums;
    block.each([&](int thread, Thread& mine) {
      const Part part(planes, item, thread);
      Own all = {}, products = {};
      part.visit(mine.held, reading(part), [&](const Window&, const Values& values) {
        FASTMTT_UNROLL for (int corner = 0; corner < 4; ++corner) {  // beyond the plane all is zero
          FASTMTT_UNROLL for (int i = 0; i < kCount; ++i) {
            const T dot = values.z_dot[corner][i];
            all[i] += dot;
            products[i] = std::fma(normalised(mine, values, corner, i), dot, products[i]);
          }
        }
      });
      sums.put(0, thread, all);
      sums.put(1, thread, products);
    });
    sums.add(block, planes);
  }

  static FASTMTT_BODY T normalised(const Thread& mine, const Values& values, int corner, int i) {
    return (values.z[corner][i] - mine.mean[i]) * mine.scale[i];
  }

  FASTMTT_BODY void write(const Part& part, Thread& mine, const Shared& shared) const {
    T *xhats = part.in(xhat, planes.area()), *ps = part.in(p, planes.pools());
    Own g, b;
    part.load_parameter(gamma, g);
    part.load_parameter(beta, b);
    const Tangent tangent(*this, part, mine, shared);
    part.visit(mine.held, reading(part), [&](const Window& window, const Values& values) {
      Own sum = {}, sum_dot = {};
      FASTMTT_UNROLL for (int corner = 0; corner < 4; ++corner) {
        if (!window.holds(corner)) continue;
        Own x, n_dot;
        FASTMTT_UNROLL for (int i = 0; i < kCount; ++i) x[i] = normalised(mine, values, corner, i);
        if (xhats != nullptr) part.store(x, xhats, window.pixel(corner));
        if constexpr (kTangent) {
          tangent.move(part, values.z_dot[corner], x, g, window.pixel(corner), n_dot);
        }
        FASTMTT_UNROLL for (int i = 0; i < kCount; ++i) {
          const T n = affine(x[i], g[i], b[i]);
          if (closed(n)) continue;
          sum[i] += n;
          if constexpr (kTangent) sum_dot[i] += n_dot[i];
        }
      }
      if (!window.holds(3)) return;  // cut by an edge: no pool
      for (T& s : sum) s *= T(0.25);
      part.store(sum, ps, window.pooled);
      if constexpr (kTangent) {
        for (T& s : sum_dot) s *= T(0.25);
        part.store(sum_dot, tangent.p_dots, window.pooled);
      }
    });
  }

  // What the tangent adds to the writing of a thread's part.
  struct Tangent {
    FASTMTT_BODY Tangent(
        const Norm& norm, const Part& part, const Thread& mine, const Shared& shared) {
      if constexpr (kTangent) {
        shared.sums.means(0, norm.planes, part.thread, mean);
        shared.sums.means(1, norm.planes, part.thread, correlation);
        Own rstd_dot;
        FASTMTT_UNROLL for (int i = 0; i < kCount; ++i) {
          rstd[i] = mine.rstd[i];
          rstd_dot[i] = -rstd[i] * rstd[i] * correlation[i];
        }
        part.store_statistic(rstd_dot, norm.rstd_dot);
        xhat_dots = part.in(norm.xhat_dot, norm.planes.area());
        p_dots = part.in(norm.p_dot, norm.planes.pools());
        part.load_parameter(norm.gamma_dot, gamma_dot);
        part.load_parameter(norm.beta_dot, beta_dot);
      }
    }
    // A pixel's xhat_dot, and from it that of the affine output.
    FASTMTT_BODY void move(
        const Part& part, const Own& z_dot, const Own& x, const Own& gamma, int pixel,
        Own& n_dot) const {
      Own x_dot;
      FASTMTT_UNROLL for (int i = 0; i < kCount; ++i) {
        x_dot[i] = rstd[i] * std::fma(-x[i], correlation[i], z_dot[i] - mean[i]);
        n_dot[i] = std::fma(x_dot[i], gamma[i], std::fma(x[i], gamma_dot[i], beta_dot[i]));
      }
      part.store(x_dot, xhat_dots, pixel);
    }

    Own mean, correlation, rstd, gamma_dot, beta_dot;
    T *xhat_dots, *p_dots;
  };

 public:
  Planes<T> planes;
  bool given;
  Students<const T> z, z_dot, z_dot_more;  // the last may be null
  Students<const T> gamma, gamma_dot, beta, beta_dot, known_rstd;
  Students<T> xhat, xhat_dot, rstd, rstd_dot, p, p_dot;
};

}  // namespace fastmtt::cuda
