// Convolutions of 128 channels on planes of 16x16 or 8x8 by Hopper's tensor cores in tf32: alone,
// or with the block's norm, ReLU and pool behind them.
//
// A Convolution is what hopper_conv.cu launches, by a plan of the table below. It reads copies of
// the parameters, which LayOut makes.

#pragma once

#include "kernel.h"
#include "tile.h"

namespace fastmtt::cuda::hopper {

constexpr int kChannels = 128, kTaps = 9;

// What is computed: z = conv(x, w); z_dot = conv(x, w_dot) + conv(x_dot, w) with it; z_dot alone.
enum Mode { kPrimal, kBoth, kTangent };

// How a call is divided: tuning takes the fastest of its mode and side.
struct Division {
  int mode;
  int side;     // of a plane
  int tiles;    // of 64 pixels, a warpgroup
  int groups;   // warpgroups that multiply
  int cluster;  // blocks that share what is read of the weights
};
constexpr Division kPlans[] = {
    {kPrimal, 16, 2, 2, 1},  {kPrimal, 8, 2, 2, 1},  {kPrimal, 8, 1, 1, 2},  {kPrimal, 8, 1, 1, 4},
    {kBoth, 16, 1, 2, 2},    {kBoth, 8, 1, 2, 1},    {kBoth, 8, 1, 1, 2},    {kBoth, 8, 1, 1, 4},
    {kTangent, 16, 2, 2, 2}, {kTangent, 8, 2, 2, 1}, {kTangent, 8, 1, 1, 4},
};
constexpr int kPlanCount = sizeof(kPlans) / sizeof(kPlans[0]);

// Activations are [S,B,side,side,128] and begin at multiples of 16 bytes. With a norm, xhat and
// rstd are results, or in mode kTangent known.
struct Convolution {
  int plan;
  bool norm;
  int students, images;
  const float *x, *x_dot;
  const float *weights, *vectors;  // by LayOut
  float *z, *z_dot;                // without a norm
  float *p, *p_dot, *xhat, *xhat_dot, *rstd, *rstd_dot;  // with one
};

// A parameter of all students, each one's numbers `stride` after those of the one before.
struct Parameter {
  const float* data;
  int64_t stride;
};

struct Parameters {
  Parameter w, gamma, beta;  // of the last two no data, where no norm follows
};

// To the nearest number of 10 bits behind the first; what is no number stays none.
FASTMTT_BODY float rounded_to_tf32(float x) {
  union {
    float number;
    uint32_t bits;
  } of{x};
  of.bits = (of.bits + 0x1000u) & ~0x1fffu;
  return x == x ? of.number : x;
}

// Weights [3,3,Cin,Cout] of each student -> [9,Cout,Cin] rounded to tf32, or, transposed for the
// input gradient, [9,Cin,Cout] with the taps turned round. Gamma and beta as they are, but aligned.
struct LayOut : Plain {
  static constexpr int kThreads = 256, kSide = 32, kDown = kThreads / kSide;
  static constexpr int kTilesOfSide = kChannels / kSide, kTiles = kTilesOfSide * kTilesOfSide;
  static constexpr int64_t kMatrix = kChannels * kChannels;
  struct Shared {
    float tile[kSide][kSide + 1];
  };

  FASTMTT_ANYWHERE int64_t items(Stage<0>) const {
    return int64_t(parts) * students * kTaps * kTiles;
  }

  // An item is a tile of one tap.
  template <class Block>
  FASTMTT_BODY void run(Stage<0>, Block& block, int64_t item) const {
    const bool first = item % (kTaps * kTiles) == 0;
    const int row = static_cast<int>(take(item, kTilesOfSide)) * kSide;
    const int column = static_cast<int>(take(item, kTilesOfSide)) * kSide;
    const int tap = static_cast<int>(take(item, kTaps));
    const int64_t student = take(item, students), part = item;
    const Parameters& of = part == 0 ? primal : tangent;
    const float* from = of.w.data + student * of.w.stride + tap * kMatrix;
    const int to_tap = transposed ? kTaps - 1 - tap : tap;
    float* to = weights + ((part * students + student) * kTaps + to_tap) * kMatrix;
    block.each([&](int thread, auto&) {
      for (int down = 0; down < kSide; down += kDown) {
        const int i = down + thread / kSide, j = thread % kSide;
        const float x = from[(row + i) * kChannels + column + j];
        block.shared.tile[i][j] = rounded_to_tf32(x);
      }
    });
    block.each([&](int thread, auto&) {
      const auto& tile = block.shared.tile;
      for (int down = 0; down < kSide; down += kDown) {
        const int i = down + thread / kSide, j = thread % kSide;
        if (transposed) {
          to[(row + i) * kChannels + column + j] = tile[i][j];
        } else {
          to[(column + i) * kChannels + row + j] = tile[j][i];
        }
      }
      if (first && of.gamma.data != nullptr) {
        const int channel = thread % kChannels;
        const Parameter& vector = thread < kChannels ? of.gamma : of.beta;
        const int64_t place = (2 * part + thread / kChannels) * students + student;
        vectors[place * kChannels + channel] = vector.data[student * vector.stride + channel];
      }
    });
  }

  Parameters primal, tangent;
  int parts, students;  // parts: 2 with the tangents
  bool transposed;
  float* weights;  // [parts,S,9,128,128]
  float* vectors;  // [parts,2,S,128]
};

}  // namespace fastmtt::cuda::hopper
