// The ConvNet block on few input channels, as a network's first: what of it is compiled for each
// instruction set. An image is one call.
//
// Such a block is all memory where its outputs are stored, and nothing where they are not. Let X be
// the 3x3 patches of an image's n pixels, a row each, every column about its mean, and U the filters.
// Up to the ReLU all is linear in X, and the statistics are in its covariance C = X^T X / n:
//
//   z - mean = X U      var = U^T C U (a channel's)      xhat = X A, A = U rstd
//   with filters' tangent:   xhat_dot = X B, B = rstd (U_dot - A corr), corr = A^T C U_dot
//
// so that the affine output is one product with filters of the image's own. Backward, with G the
// pooled cotangent where the ReLU is open, everything follows from Q = X^T G and C: what the norm
// subtracts are sums that these hold. An image's tangent, where it has one, lies beside it in X, with
// the filters below their tangent: formulas stay.
//
// X's rows are in the order of the pools, four pixels each; then come pixels in no pool, then zeros.
// A column of ones follows the image's patches: what is added to a product is a row of its other
// factor. A tangent's patches come after that, so that no bit of what is not theirs
// depends on them, if they are finite.

#pragma once

#include "kernels.h"

namespace fastmtt {

constexpr int64_t kStrip = 64;  // rows of X at a time, 16 pools
constexpr int64_t kPool = 4;    // pixels
constexpr int64_t kSums = 4;    // in T, of what is then summed in double
// Panels of output channels at a time: what belongs to them and a strip fits the first-level cache.
constexpr int64_t kStripPanels = 2;

// Its members are inline always: what is compiled with one instruction set's flags must not serve
// the others.
template <typename T>
struct PatchGrid {
  [[gnu::always_inline]] PatchGrid(
      int64_t height, int64_t width, int64_t in, int64_t out, bool tangents)
      : height(height),
        width(width),
        in(in),
        out(out),
        taps(9 * in),
        used(tangents ? 2 * taps + 1 : taps + 1),
        area(height * width),
        pools((height / 2) * (width / 2)),
        strips(parts(area, kStrip)),
        rows(strips * kStrip),
        depth(parts(used, 2 * kLanes<T>) * 2 * kLanes<T>),
        panels(depth / kLanes<T>),
        tap_panels(parts(taps, kLanes<T>)),
        out_panels(parts(out, kLanes<T>)),
        outs(out_panels * kLanes<T>) {}

  [[gnu::always_inline]] bool tangents() const { return used > taps + 1; }

  int64_t height, width, in, out;
  int64_t taps, used;                // columns of patches: an image's; with ones and a tangent's
  int64_t area, pools, strips, rows;
  int64_t depth, panels;             // of X: columns, padded
  int64_t tap_panels, out_panels;
  int64_t outs;                      // output channels, padded
};

struct Pixel {
  int32_t y, x;
};

constexpr int64_t kEight = kLanes<double>;

// A student's filters, made once. In double: [outs / 8][depth][8], zero but for patches' rows.
template <typename T>
struct PatchFilters {
  double *u = nullptr, *u_dot = nullptr;  // u_dot: with u in the rows of a tangent's patches
  T *flipped = nullptr, *flipped_dot = nullptr;  // transposed: [tap_panels][outs][lane]
  const T *gamma = nullptr, *beta = nullptr, *gamma_dot = nullptr, *beta_dot = nullptr;
};

// An image [H,W,C], its cotangents, and where its results go; null: not there, or not wanted.
template <typename T>
struct PatchImage {
  const T *a = nullptr, *a_dot = nullptr, *gp = nullptr, *gp_dot = nullptr;
  T *p = nullptr, *xhat = nullptr, *rstd = nullptr;
  T *p_dot = nullptr, *xhat_dot = nullptr, *rstd_dot = nullptr;
  T* gw = nullptr;  // this image's share of the (tangent of the) weights' cotangent, [taps][out]
  double *ggamma = nullptr, *gbeta = nullptr;  // ... and of the norm's, [out]
  T *ga = nullptr, *ga_dot = nullptr;
};

// A thread's memory for one image. Factors of X are [out_panels][depth][lane].
template <typename T>
struct PatchRoom {
  const Pixel* pixels;       // of rows
  T *x, *gx;                 // [panels][rows][lane], gx: tap_panels
  T* ga;                     // an image with a border of one
  double *sums, *covariance;  // the kernels' own; [depth / 8][depth][8]
  double *cu, *cu_dot;       // covariance times u and u_dot, as these
  double *rstd, *gain, *gain_dot;  // [outs]; gain is gamma rstd
  T *value, *tangent, *xhat, *xhat_dot;  // factors: of the affine output, of xhat, and tangents
  T *by_u, *by_u_dot, *rest;  // factors; rest: [tap_panels][depth][lane]
  T *back, *back_dot;        // [tap_panels][outs][lane]
  T *y, *y_dot, *g;          // [kStripPanels][kStrip][lane]
  T *q, *q_dot;              // kSums factors: X^T G of every kSums-th strip
  void* operands;            // the kernels' own
};

template <typename T>
struct PatchKernels {
  int64_t (*sums)(const PatchGrid<T>&);           // how many numbers
  int64_t (*operand_bytes)(const PatchGrid<T>&);  // in T itself: none
  void (*forward)(const PatchGrid<T>&, const PatchFilters<T>&, PatchImage<T>, PatchRoom<T>);
  void (*jvp)(const PatchGrid<T>&, const PatchFilters<T>&, PatchImage<T>, PatchRoom<T>);
  void (*backward)(const PatchGrid<T>&, const PatchFilters<T>&, PatchImage<T>, PatchRoom<T>);
  void (*backward_jvp)(const PatchGrid<T>&, const PatchFilters<T>&, PatchImage<T>, PatchRoom<T>);
};

// With bf16 and a processor that has tiles, factors are sums of two bfloat16 numbers each: what that
// leaves out is 2^-16 of a product. Elsewhere they are exact. Rounded to one, as larger convolutions'
// are, meta-gradients would err more than twice as much as autocast's.
template <typename T>
const PatchKernels<T>& patch_kernels(bool bf16);

}  // namespace fastmtt
