// The backward of pool, ReLU and instance norm, and its tangent. fastmtt/ops/reference_block.py has
// the formulas; here they are per channel, with gn the cotangent of the norm's affine output and
//   u = gn - mean(gn) - xhat mean(gn xhat),   so that gz = rstd gamma u.

#pragma once

#include <cmath>
#include <cstdint>

#include "kernel.h"
#include "planes.h"

namespace fastmtt::cuda {

template <typename T, bool kTangent, bool kWhole>
struct NormBackward {
  static constexpr int kThreads = kPlaneThreads, kStages = 2;
  static constexpr int kResident = kPlaneResident<T, kTangent>;
  static constexpr int kCount = kOwn<T>, kKinds = kTangent ? 2 : 1;  // value, tangent
  static constexpr int kColumns = 4;                        // channels of the second stage's item,
  static constexpr int kLanes = kThreads / (2 * kColumns);  // images that it reads side by side
  static constexpr int kTurns = 8;                          // and one after another, not waiting
  using Own = T[kCount];
  using Part = cuda::Part<T, kWhole>;
  struct Values {
    Own x[kKinds][4], g[kKinds];
  };
  enum { kGain = 2 * kKinds, kGainDot, kGamma, kBeta, kResults };  // after the means
  struct Shared {
    PlaneSums<T, 2 * kKinds, 2 * kKinds, kResults> sums;
    double lanes[kThreads];
  };
  using Sums = decltype(Shared::sums);
  struct Thread {
    Values held[kHeld];
  };

  // Some channels of an image: gz, its tangent, and its part of the parameters' gradients.
  FASTMTT_ANYWHERE int64_t items(Stage<0>) const { return planes.items(); }
  template <class Block>
  FASTMTT_BODY void run(Stage<0>, Block& block, int64_t item) const {
    auto& sums = block.shared.sums;
    block.each([&](int thread, Thread& mine) { sum(Part(planes, item, thread), mine, sums); });
    sums.add(block, planes, sums.plain(planes), [&](int thread, Thread&, const auto& sum) {
      finish(Part(planes, item, thread), sums, sum);
    });
    block.each([&](int thread, Thread& mine) { write(Part(planes, item, thread), mine, sums); });
  }

  // The parameters' gradients of some channels: sums over a student's images.
  FASTMTT_ANYWHERE int64_t items(Stage<1>) const {
    return ggamma.data == nullptr ? 0 : planes.students * pieces_of(planes.channels, kColumns);
  }
  template <class Block>
  FASTMTT_BODY void run(Stage<1>, Block& block, int64_t item) const {
    const int64_t first = take(item, pieces_of(planes.channels, kColumns)) * kColumns;
    const int64_t student = item;
    auto& lanes = block.shared.lanes;
    block.each([&](int thread, Thread&) {
      const int64_t channel = first + thread % kColumns;
      const int k = thread / kColumns % 2;
      double sum = 0;
      for (int64_t n = thread / (2 * kColumns); n < planes.batch; n += kTurns * kLanes) {
        double share[kTurns];
        FASTMTT_UNROLL for (int turn = 0; turn < kTurns; ++turn) {
          const int64_t image = n + turn * kLanes;
          const bool has = image < planes.batch && channel < planes.channels;
          share[turn] = has ? *place(student, image, k, channel) : 0;
        }
        for (const double each : share) sum += each;
      }
      lanes[thread] = sum;
    });
    block.each([&](int thread, Thread&) {
      const int64_t channel = first + thread % kColumns;
      if (thread >= 2 * kColumns || channel >= planes.channels) return;
      double sum = 0;
      for (int n = thread; n < kThreads; n += 2 * kColumns) sum += lanes[n];
      (thread < kColumns ? gbeta : ggamma)[student][channel] = static_cast<T>(sum);
    });
  }

  // An image's part of the gradient of beta (k = 0) or gamma.
  FASTMTT_BODY double* place(int64_t student, int64_t image, int k, int64_t channel) const {
    return shares + ((student * planes.batch + image) * 2 + k) * planes.channels + channel;
  }

  // Reads a window's xhat and its pool's cotangent, and their tangents.
  FASTMTT_BODY auto reading(const Part& part) const {
    const T* xs[] = {part.in(xhat, planes.area()), part.in(xhat_dot, planes.area())};
    const T* gs[] = {part.in(gp, planes.pools()), part.in(gp_dot, planes.pools())};
    return [=](auto stage, const Window& window, Values& values) {
      FASTMTT_UNROLL for (int kind = 0; kind < kKinds; ++kind) {
        if (stage == 0) {
          part.load(xs[kind], window, values.x[kind]);
        } else {
          for (T& g : values.g[kind]) g = 0;
          if (!window.holds(3)) continue;  // cut by an edge: in no pool
          part.load(gs[kind] + part.pooled(window), values.g[kind]);
        }
      }
    };
  }

  FASTMTT_BODY void sum(const Part& part, Thread& mine, Sums& sums) const {
    const auto read = reading(part);
    part.keep(mine.held, read);
    Own g, b, sum[2 * kKinds] = {};
    part.load_parameter(gamma, g);
    part.load_parameter(beta, b);
    take_known(part, sums);
    part.visit(mine.held, read, [&](const Window&, const Values& values) {
      FASTMTT_UNROLL for (int corner = 0; corner < 4; ++corner) {  // beyond the plane all is zero
        FASTMTT_UNROLL for (int i = 0; i < kCount; ++i) {
          const T x = values.x[0][corner][i], gn = opened(g, b, values, 0, corner, i);
          sum[0][i] += gn;
          sum[1][i] = std::fma(gn, x, sum[1][i]);
          if constexpr (kTangent) {
            const T gn_dot = opened(g, b, values, 1, corner, i);
            sum[2][i] += gn_dot;
            sum[3][i] = std::fma(gn_dot, x, std::fma(gn, values.x[1][corner][i], sum[3][i]));
          }
        }
      }
    });
    FASTMTT_UNROLL for (int k = 0; k < 2 * kKinds; ++k) sums.put(k, part.thread, sum[k]);
  }

  // gn or its tangent at a corner of a window: of its pool's cotangent a quarter.
  static FASTMTT_BODY T
  opened(const Own& gamma, const Own& beta, const Values& values, int kind, int corner, int i) {
    const T n = affine(values.x[0][corner][i], gamma[i], beta[i]);
    return closed(n) ? T(0) : T(0.25) * values.g[kind][i];
  }

  // Of a channel, rstd gamma and its tangent; loaded while the planes are under way.
  FASTMTT_BODY void take_known(const Part& part, Sums& sums) const {
    const int channel = part.first + part.thread;
    if (part.thread >= planes.group() || channel >= planes.channels) return;
    const auto at = [&](int k) -> T& { return sums.results[k][part.thread]; };
    const T g = gamma[part.student][channel], r = *part.sum_of(rstd);
    at(kGamma) = g;
    at(kBeta) = beta[part.student][channel];
    at(kGain) = r * g;
    if constexpr (kTangent) {
      at(kGainDot) = std::fma(r, gamma_dot[part.student][channel], *part.sum_of(rstd_dot) * g);
    }
  }

  // A channel's means, and the image's part of the parameters' gradients.
  FASTMTT_BODY void finish(const Part& part, Sums& sums, const double (&sum)[2 * kKinds]) const {
    FASTMTT_UNROLL for (int k = 0; k < 2 * kKinds; ++k) {
      sums.results[k][part.thread] = T(sum[k] * planes.inverse_area);
    }
    const int channel = part.first + part.thread;
    if (ggamma.data == nullptr || channel >= planes.channels) return;
    FASTMTT_UNROLL for (int k = 0; k < 2; ++k) {
      *place(part.student, part.image, k, channel) = sum[2 * (kKinds - 1) + k];
    }
  }

  FASTMTT_BODY void write(const Part& part, Thread& mine, const Sums& sums) const {
    Own mean[2 * kKinds], gain, gain_dot, g, b;
    FASTMTT_UNROLL for (int k = 0; k < 2 * kKinds; ++k) {
      sums.result(k, planes, part.thread, mean[k]);
    }
    sums.result(kGamma, planes, part.thread, g);
    sums.result(kBeta, planes, part.thread, b);
    sums.result(kGain, planes, part.thread, gain);
    if constexpr (kTangent) sums.result(kGainDot, planes, part.thread, gain_dot);
    T *to = part.in(gz, planes.area()), *to_dot = part.in(gz_dot, planes.area());
    part.visit(mine.held, reading(part), [&](const Window& window, const Values& values) {
      FASTMTT_UNROLL for (int corner = 0; corner < 4; ++corner) {
        if (!window.holds(corner)) continue;
        Own value, value_dot;
        FASTMTT_UNROLL for (int i = 0; i < kCount; ++i) {
          const T x = values.x[0][corner][i];
          const T u = std::fma(-x, mean[1][i], opened(g, b, values, 0, corner, i) - mean[0][i]);
          value[i] = gain[i] * u;
          if constexpr (kTangent) {
            const T gn_dot = opened(g, b, values, 1, corner, i), x_dot = values.x[1][corner][i];
            const T u_dot = std::fma(
                -x, mean[3][i], std::fma(-x_dot, mean[1][i], gn_dot - mean[2][i]));
            value_dot[i] = std::fma(gain_dot[i], u, gain[i] * u_dot);
          }
        }
        if (to != nullptr) part.store(value, to + part.corner(window, corner));
        if constexpr (kTangent) {
          if (to_dot != nullptr) part.store(value_dot, to_dot + part.corner(window, corner));
        }
      }
    });
  }

  Planes<T> planes;
  Students<const T> gp, gp_dot, xhat, xhat_dot, rstd, rstd_dot, gamma, gamma_dot, beta;
  Students<T> gz, gz_dot;      // null where not wanted
  Students<T> ggamma, gbeta;   // or, of a tangent, their tangents; null where not wanted
  double* shares;              // [S,B,2,C], each image's part of the two
};

}  // namespace fastmtt::cuda
