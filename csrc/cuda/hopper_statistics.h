// Means over planes of what warps have in registers: those of the norm, and of its tangent.
//
// Of each of its tiles a thread has two pixels, one above the other, and 32 channels:
// at[4 * j + 2 * below + e] is of channel(j) + e.

#pragma once

#include "hopper_multiplying.h"

namespace fastmtt::cuda::hopper {

constexpr float kEps = 1e-5f;

// Eight lanes have one sum each for kCount channels: then each has an eighth of them, whole.
template <int kCount>
FASTMTT_BODY void halve(float (&values)[32], int lane, int bit) {
  const bool upper = lane & bit;
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const float kept = upper ? values[i + kCount] : values[i];
    const float sent = upper ? values[i] : values[i + kCount];
    values[i] = kept + __shfl_xor_sync(~0u, sent, bit);
  }
}

FASTMTT_BODY float2 pair_at(const float* vector) {
  return *reinterpret_cast<const float2*>(vector);
}

FASTMTT_BODY void put_pair(float* to, const float (&values)[2]) {
  // nvcc would split some; without a clobber, as nothing here reads what is written here
  asm volatile("st.global.v2.f32 [%0], {%1, %2};" ::"l"(to), "f"(values[0]), "f"(values[1]));
}

// term(t, j): what the thread adds to the sums over tile t's plane of channel(j) and the next.
template <class P, class Term>
FASTMTT_BODY void put_partial(
    const Shared<P>& shared, const Place<P>& place, int value, const Term& term) {
#pragma unroll
  for (int plane = 0; plane < P::kSetPlanes; ++plane) {
    float values[32];
#pragma unroll
    for (int j = 0; j < kChannels / 8; ++j) {
      float2 sum = term(plane, j);
      if (P::kSide == 16) {
#pragma unroll
        for (int t = 1; t < P::kTiles; ++t) {
          const float2 more = term(t, j);
          sum.x += more.x, sum.y += more.y;
        }
      }
      values[2 * j] = sum.x, values[2 * j + 1] = sum.y;
    }
    halve<16>(values, place.lane, 16);
    halve<8>(values, place.lane, 8);
    halve<4>(values, place.lane, 4);
    const int warp = P::kSets == 1 ? place.in_set / 32 : place.warp;
    float* to = shared.statistics->partial[place.set][value][plane][warp];
#pragma unroll
    for (int s = 0; s < 2; ++s) {
      *reinterpret_cast<float2*>(to + place.channel(2 * place.right + s)) =
          make_float2(values[2 * s], values[2 * s + 1]);
    }
  }
}

// Sums over planes of what all put, for one channel a thread: finish(plane, channel, sums).
template <class P, int kRound, class Finish>
FASTMTT_BODY void join(
    const Shared<P>& shared, const Place<P>& place, int rank, int turn, const Finish& finish) {
  auto& statistics = *shared.statistics;
  sync(1 + place.set, P::kSetThreads);
  if (place.in_set < kChannels) {
    const int channel = place.in_set;
    float sums[P::kSetPlanes][P::kValues];
#pragma unroll
    for (int plane = 0; plane < P::kSetPlanes; ++plane) {
#pragma unroll
      for (int value = 0; value < P::kValues; ++value) {
        float sum = 0;
#pragma unroll
        for (int warp = 0; warp < P::kSetWarps; ++warp) {
          sum += statistics.partial[place.set][value][plane][warp][channel];
        }
        sums[plane][value] = sum;
      }
    }
    if constexpr (P::kSplit) {
      float(&mail)[P::kValues][kChannels] = statistics.mail[kRound];
      const uint32_t barrier = shared_address(&shared.barriers->mail[kRound]);
      if (channel == 0) expect(barrier, sizeof(mail));
#pragma unroll
      for (int value = 0; value < P::kValues; ++value) {
        send(
            of_block(shared_address(&mail[value][channel]), rank ^ 1), sums[0][value],
            of_block(barrier, rank ^ 1));
      }
      wait(barrier, turn);
#pragma unroll
      for (int value = 0; value < P::kValues; ++value) sums[0][value] += mail[value][channel];
    }
#pragma unroll
    for (int plane = 0; plane < P::kSetPlanes; ++plane) finish(plane, channel, sums[plane]);
  }
  sync(1 + place.set, P::kSetThreads);
}

// Where a thread's upper pixel of a tile is in [S,B,H,W,C], and its window in [S,B,H/2,W/2,C].
template <class P>
struct Position {
  __device__ Position(const Work<P>& work, const Place<P>& place, int t) {
    const int image = work.image() + place.plane(t);
    const int y = work.row() + place.row(t) + 2 * place.warp;
    const int x = place.column(t) + place.right;
    const int64_t plane = int64_t(work.student()) * work.images + image;
    present = image < work.images;
    pixel = (plane * P::kArea + y * P::kSide + x) * kChannels;
    window = (plane * (P::kArea / 4) + y / 2 * (P::kSide / 2) + x / 2) * kChannels;
  }
  bool present;
  int64_t pixel, window;
};

// A set's first plane in [S,B,C], and how many of the student's are left from there on.
template <class P>
struct Planes {
  __device__ Planes(const Work<P>& work, const Place<P>& place) {
    const int image = work.image() + (P::kSide == 8 ? place.set * P::kTiles : 0);
    first = int64_t(work.student()) * work.images + image;
    present = work.images - image;
    tells = !P::kSplit || work.rank == 0;
  }
  int64_t first;
  int present;
  bool tells;
};

template <class P>
FASTMTT_BODY constexpr int set_plane(int t) {
  return P::kSide == 8 ? t : 0;
}

// Two channels' sums over a thread's two pixels of a tile.
FASTMTT_BODY float2 column(const float (&z)[64], int j) {
  return make_float2(z[4 * j] + z[4 * j + 2], z[4 * j + 1] + z[4 * j + 3]);
}

FASTMTT_BODY float2 column_product(const float (&y)[64], const float (&z)[64], int j) {
  const int k = 4 * j;
  return make_float2(y[k] * z[k] + y[k + 2] * z[k + 2], y[k + 1] * z[k + 1] + y[k + 3] * z[k + 3]);
}

// Mean and 1/std of z, which is centred in place, and of z_dot what its tangent takes.
template <class P>
FASTMTT_BODY void find(
    Sums<P>& sums, const Shared<P>& shared, const Place<P>& place, const Work<P>& work, int turn,
    const Convolution& to) {
  constexpr int kParts = P::kParts;
  constexpr float kShare = 1.0f / P::kArea;
  auto& found = shared.statistics->found[place.set];
  const Planes<P> planes(work, place);

  put_partial<P>(shared, place, 0, [&](int t, int j) { return column(sums.at[kParts * t], j); });
  if constexpr (P::kMode == kBoth) {
    put_partial<P>(
        shared, place, 1, [&](int t, int j) { return column(sums.at[kParts * t + 1], j); });
  }
  join<P, 0>(shared, place, work.rank, turn, [&](int plane, int channel, const auto& sum) {
    found[kMean][plane][channel] = sum[0] * kShare;
    if constexpr (P::kMode == kBoth) found[kMeanDot][plane][channel] = sum[1] * kShare;
  });
#pragma unroll
  for (int t = 0; t < P::kTiles; ++t) {
    auto& z = sums.at[kParts * t];
#pragma unroll
    for (int j = 0; j < kChannels / 8; ++j) {
      const float2 mean = pair_at(&found[kMean][set_plane<P>(t)][place.channel(j)]);
#pragma unroll
      for (int below = 0; below < 2; ++below) {
        z[4 * j + 2 * below] -= mean.x;
        z[4 * j + 2 * below + 1] -= mean.y;
      }
    }
  }
  put_partial<P>(shared, place, 0, [&](int t, int j) {
    return column_product(sums.at[kParts * t], sums.at[kParts * t], j);
  });
  if constexpr (P::kMode == kBoth) {
    put_partial<P>(shared, place, 1, [&](int t, int j) {
      return column_product(sums.at[kParts * t], sums.at[kParts * t + 1], j);
    });
  }
  join<P, 1>(shared, place, work.rank, turn, [&](int plane, int channel, const auto& sum) {
    const float rstd = 1.0f / sqrtf(sum[0] * kShare + kEps);
    const int64_t at = (planes.first + plane) * kChannels + channel;
    const bool tells = planes.tells && plane < planes.present;
    found[kRstd][plane][channel] = rstd;
    if (tells) to.rstd[at] = rstd;
    if constexpr (P::kMode == kBoth) {
      const float correlation = rstd * (sum[1] * kShare);
      found[kCorrelation][plane][channel] = correlation;
      if (tells) to.rstd_dot[at] = -rstd * rstd * correlation;
    }
  });
}

// The same where xhat and rstd are known.
template <class P>
FASTMTT_BODY void find_tangent(
    Sums<P>& sums, const Shared<P>& shared, const Place<P>& place, const Work<P>& work, int turn,
    const Convolution& to) {
  constexpr float kShare = 1.0f / P::kArea;
  auto& found = shared.statistics->found[place.set];
  const Planes<P> planes(work, place);

  put_partial<P>(shared, place, 0, [&](int t, int j) { return column(sums.at[t], j); });
  put_partial<P>(shared, place, 1, [&](int t, int j) {
    const Position<P> at(work, place, t);
    if (!at.present) return make_float2(0, 0);
    const float* xhat = to.xhat + at.pixel + place.channel(j);
    const float2 above = pair_at(xhat), below = pair_at(xhat + P::kSide * kChannels);
    const auto& z_dot = sums.at[t];
    return make_float2(
        above.x * z_dot[4 * j] + below.x * z_dot[4 * j + 2],
        above.y * z_dot[4 * j + 1] + below.y * z_dot[4 * j + 3]);
  });
  join<P, 0>(shared, place, work.rank, turn, [&](int plane, int channel, const auto& sum) {
    const int64_t at = (planes.first + plane) * kChannels + channel;
    const float rstd = plane < planes.present ? to.rstd[at] : 0.0f;
    const float correlation = sum[1] * kShare;
    found[kMeanDot][plane][channel] = sum[0] * kShare;
    found[kCorrelation][plane][channel] = correlation;
    found[kRstd][plane][channel] = rstd;
    if (planes.tells && plane < planes.present) to.rstd_dot[at] = -rstd * rstd * correlation;
  });
}

}  // namespace fastmtt::cuda::hopper
