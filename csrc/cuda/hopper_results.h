// What the multiplying warps write: the sums, or what norm, ReLU and pool make of them.

#pragma once

#include "hopper_statistics.h"

namespace fastmtt::cuda::hopper {

// The sums as they are.
template <class P>
FASTMTT_BODY void put_sums(
    const Sums<P>& sums, const Place<P>& place, const Work<P>& work, const Convolution& to) {
  constexpr int kDown = P::kSide * kChannels;
#pragma unroll
  for (int t = 0; t < P::kTiles; ++t) {
    const Position<P> at(work, place, t);
    if (!at.present) continue;
#pragma unroll
    for (int part = 0; part < P::kParts; ++part) {
      const auto& z = sums.at[P::kParts * t + part];
      float* pixel = (P::kMode == kTangent || part == 1 ? to.z_dot : to.z) + at.pixel;
#pragma unroll
      for (int j = 0; j < kChannels / 8; ++j) {
        const float above[2] = {z[4 * j], z[4 * j + 1]}, below[2] = {z[4 * j + 2], z[4 * j + 3]};
        put_pair(pixel + place.channel(j), above);
        put_pair(pixel + kDown + place.channel(j), below);
      }
    }
  }
}

// A student's vectors as LayOut puts them.
enum Vector { kGamma, kBeta, kGammaDot, kBetaDot };

FASTMTT_BODY float2 pair_of(const Convolution& call, Vector vector, int student, int channel) {
  const int64_t place = int64_t(vector) * call.students + student;
  return __ldg(reinterpret_cast<const float2*>(call.vectors + place * kChannels + channel));
}

// Two columns' n = relu(gamma xhat + beta), of which a thread has a window's left or right half: it
// puts the mean over the window of one, and its neighbour that of the other.
template <class P>
FASTMTT_BODY void put_pooled(float* to, const Place<P>& place, int j, const float (&n)[2][2]) {
  const bool odd = place.right % 2;
  float mean[2];
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    const float sent = odd ? n[0][e] : n[1][e];
    mean[e] = ((odd ? n[1][e] : n[0][e]) + __shfl_xor_sync(~0u, sent, 4)) * 0.25f;
  }
  put_pair(to + place.channel(j + odd), mean);
}

// From z, or z_dot where xhat is known, and what was found: all that the block gives.
template <class P>
FASTMTT_BODY void finish(
    Sums<P>& sums, const Shared<P>& shared, const Place<P>& place, const Work<P>& work,
    const Convolution& to) {
  constexpr bool kDots = P::kMode != kPrimal, kKnown = P::kMode == kTangent;
  constexpr int kDown = P::kSide * kChannels;
  const auto& found = shared.statistics->found[place.set];
  const int student = work.student();
#pragma unroll
  for (int t = 0; t < P::kTiles; ++t) {
    const int plane = set_plane<P>(t);
    const Position<P> at(work, place, t);
    if (!at.present) continue;  // a whole warp's
#pragma unroll
    for (int j = 0; j < kChannels / 8; j += 2) {
      float n[2][2] = {}, n_dot[2][2] = {};
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int channel = place.channel(j + h);
        const float2 g = pair_of(to, kGamma, student, channel);
        const float2 b = pair_of(to, kBeta, student, channel);
        const float2 rstd = pair_at(&found[kRstd][plane][channel]);
        float2 g_dot, b_dot, mean_dot, correlation;
        if constexpr (kDots) {
          g_dot = pair_of(to, kGammaDot, student, channel);
          b_dot = pair_of(to, kBetaDot, student, channel);
          mean_dot = pair_at(&found[kMeanDot][plane][channel]);
          correlation = pair_at(&found[kCorrelation][plane][channel]);
        }
#pragma unroll
        for (int below = 0; below < 2; ++below) {
          const int k = 4 * (j + h) + 2 * below;
          const int64_t pixel = at.pixel + below * kDown + channel;
          float xhat[2], xhat_dot[2];
          if constexpr (kKnown) {
            const float2 known = pair_at(to.xhat + pixel);
            xhat[0] = known.x, xhat[1] = known.y;
          } else {
            const auto& z = sums.at[P::kParts * t];
            xhat[0] = z[k] * rstd.x, xhat[1] = z[k + 1] * rstd.y;
            put_pair(to.xhat + pixel, xhat);
          }
          const float m[2] = {xhat[0] * g.x + b.x, xhat[1] * g.y + b.y};
          n[h][0] += fmaxf(m[0], 0.0f);
          n[h][1] += fmaxf(m[1], 0.0f);
          if constexpr (kDots) {
            const auto& z_dot = sums.at[P::kParts * t + P::kParts - 1];
            xhat_dot[0] = rstd.x * (z_dot[k] - mean_dot.x - xhat[0] * correlation.x);
            xhat_dot[1] = rstd.y * (z_dot[k + 1] - mean_dot.y - xhat[1] * correlation.y);
            put_pair(to.xhat_dot + pixel, xhat_dot);
            n_dot[h][0] += m[0] > 0 ? xhat[0] * g_dot.x + b_dot.x + xhat_dot[0] * g.x : 0.0f;
            n_dot[h][1] += m[1] > 0 ? xhat[1] * g_dot.y + b_dot.y + xhat_dot[1] * g.y : 0.0f;
          }
        }
      }
      put_pooled(to.p + at.window, place, j, n);
      if constexpr (kDots) put_pooled(to.p_dot + at.window, place, j, n_dot);
    }
  }
}

}  // namespace fastmtt::cuda::hopper
