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
  static constexpr int kResident = kTangent && sizeof(T) == 8 ? 1 : 2;  // float64 holds more
  static constexpr int kCount = kOwn<T>, kKinds = kTangent ? 2 : 1;  // value, tangent
  static constexpr int kColumns = 32, kLanes = kThreads / kColumns;   // of the second stage
  using Own = T[kCount];
  using Part = cuda::Part<T, kWhole>;
  struct Values {
    Own x[kKinds][4], g[kKinds];
  };
  struct Shared {
    PlaneSums<T, 2 * kKinds> sums;
    double lanes[2][kThreads];
  };
  struct Thread {
    Values held[kHeld];
    Own gamma, beta;
  };

  // Some channels of an image: gz, its tangent, and its part of the parameters' gradients.
  FASTMTT_ANYWHERE int64_t items(Stage<0>) const { return planes.items(); }
  template <class Block>
  FASTMTT_BODY void run(Stage<0>, Block& block, int64_t item) const {
    auto& sums = block.shared.sums;
    block.each([&](int thread, Thread& mine) {
      const Part part(planes, item, thread);
      const auto read = reading(part);
      part.load_parameter(gamma, mine.gamma);
      part.load_parameter(beta, mine.beta);
      Own sum[2 * kKinds] = {};
      part.fill(mine.held, read);
      part.visit(mine.held, read, [&](const Window&, const Values& values) {
        FASTMTT_UNROLL for (int corner = 0; corner < 4; ++corner) {  // beyond the plane all is zero
          FASTMTT_UNROLL for (int i = 0; i < kCount; ++i) {
            const T x = values.x[0][corner][i], gn = opened(mine, values, 0, corner, i);
            sum[0][i] += gn;
            sum[1][i] = std::fma(gn, x, sum[1][i]);
            if constexpr (kTangent) {
              const T gn_dot = opened(mine, values, 1, corner, i);
              sum[2][i] += gn_dot;
              sum[3][i] = std::fma(gn_dot, x, std::fma(gn, values.x[1][corner][i], sum[3][i]));
            }
          }
        }
      });
      FASTMTT_UNROLL for (int k = 0; k < 2 * kKinds; ++k) sums.put(k, thread, sum[k]);
    });
    sums.add(block, planes);
    block.each([&](int thread, Thread& mine) {
      const Part part(planes, item, thread);
      share(part, sums);
      write(part, mine, sums);
    });
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
      double sum[2] = {};
      for (int64_t image = thread / kColumns; image < planes.batch; image += kLanes) {
        if (channel >= planes.channels) break;
        FASTMTT_UNROLL for (int k = 0; k < 2; ++k) sum[k] += *place(student, image, k, channel);
      }
      FASTMTT_UNROLL for (int k = 0; k < 2; ++k) lanes[k][thread] = sum[k];
    });
    block.each([&](int thread, Thread&) {
      const int64_t channel = first + thread % kColumns;
      const int k = thread / kColumns;
      if (k >= 2 || channel >= planes.channels) return;
      double sum = 0;
      for (int lane = 0; lane < kLanes; ++lane) {
        sum += lanes[k][lane * kColumns + thread % kColumns];
      }
      (k == 0 ? gbeta : ggamma)[student][channel] = static_cast<T>(sum);
    });
  }

  // An image's part of the gradient of beta (k = 0) or gamma.
  FASTMTT_BODY double* place(int64_t student, int64_t image, int k, int64_t channel) const {
    return shares + ((student * planes.batch + image) * 2 + k) * planes.channels + channel;
  }

  // Reads a window's xhat and its pool's cotangent, a quarter for each pixel, and their tangents.
  FASTMTT_BODY auto reading(const Part& part) const {
    return [this, &part](const Window& window, Values& values) {
      FASTMTT_UNROLL for (int kind = 0; kind < kKinds; ++kind) {
        part.load(part.in(kind == 0 ? xhat : xhat_dot, planes.area()), window, values.x[kind]);
        for (T& g : values.g[kind]) g = 0;
        if (!window.holds(3)) continue;  // cut by an edge: in no pool
        part.load(part.in(kind == 0 ? gp : gp_dot, planes.pools()), window.pooled, values.g[kind]);
        for (T& g : values.g[kind]) g *= T(0.25);
      }
    };
  }

  // gn or its tangent.
  static FASTMTT_BODY T
  opened(const Thread& mine, const Values& values, int kind, int corner, int i) {
    const T n = affine(values.x[0][corner][i], mine.gamma[i], mine.beta[i]);
    return closed(n) ? T(0) : values.g[kind][i];
  }

  template <class Sums>
  FASTMTT_BODY void share(const Part& part, const Sums& sums) const {
    if (ggamma.data == nullptr) return;
    const int first = part.channel - part.thread % planes.lanes * kCount;
    for (int n = part.thread; n < 2 * planes.group(); n += kThreads) {
      const int k = n / planes.group(), channel = n % planes.group();
      if (first + channel >= planes.channels) continue;
      *place(part.student, part.image, k, first + channel) =
          sums.sum(2 * (kKinds - 1) + k, planes, channel);
    }
  }

  template <class Sums>
  FASTMTT_BODY void write(const Part& part, Thread& mine, const Sums& sums) const {
    Own mean[2 * kKinds], gain, gain_dot;
    FASTMTT_UNROLL for (int k = 0; k < 2 * kKinds; ++k) sums.means(k, planes, part.thread, mean[k]);
    gains(part, mine, gain, gain_dot);
    T *to = part.in(gz, planes.area()), *to_dot = part.in(gz_dot, planes.area());
    part.visit(mine.held, reading(part), [&](const Window& window, const Values& values) {
      FASTMTT_UNROLL for (int corner = 0; corner < 4; ++corner) {
        if (!window.holds(corner)) continue;
        Own value, value_dot;
        FASTMTT_UNROLL for (int i = 0; i < kCount; ++i) {
          const T x = values.x[0][corner][i];
          const T u = std::fma(-x, mean[1][i], opened(mine, values, 0, corner, i) - mean[0][i]);
          value[i] = gain[i] * u;
          if constexpr (kTangent) {
            const T gn_dot = opened(mine, values, 1, corner, i), x_dot = values.x[1][corner][i];
            const T u_dot = std::fma(
                -x, mean[3][i], std::fma(-x_dot, mean[1][i], gn_dot - mean[2][i]));
            value_dot[i] = std::fma(gain_dot[i], u, gain[i] * u_dot);
          }
        }
        if (to != nullptr) part.store(value, to, window.pixel(corner));
        if constexpr (kTangent) {
          if (to_dot != nullptr) part.store(value_dot, to_dot, window.pixel(corner));
        }
      }
    });
  }

  // rstd gamma and its tangent.
  FASTMTT_BODY void gains(
      const Part& part, const Thread& mine, Own& gain, Own& gain_dot) const {
    Own r;
    part.load_statistic(rstd, r);
    FASTMTT_UNROLL for (int i = 0; i < kCount; ++i) gain[i] = r[i] * mine.gamma[i];
    if constexpr (kTangent) {
      Own r_dot, g_dot;
      part.load_statistic(rstd_dot, r_dot);
      part.load_parameter(gamma_dot, g_dot);
      FASTMTT_UNROLL for (int i = 0; i < kCount; ++i) {
        gain_dot[i] = std::fma(r[i], g_dot[i], r_dot[i] * mine.gamma[i]);
      }
    }
  }

  Planes<T> planes;
  Students<const T> gp, gp_dot, xhat, xhat_dot, rstd, rstd_dot, gamma, gamma_dot, beta;
  Students<T> gz, gz_dot;      // null where not wanted
  Students<T> ggamma, gbeta;   // or, of a tangent, their tangents; null where not wanted
  double* shares;              // [S,B,2,C], each image's part of the two
};

}  // namespace fastmtt::cuda
