// What the ConvNet block's ops are made of, compiled once for each instruction set.
//
// A convolution is a bilinear algorithm. `lift` turns images into matrices V, one a position, of
// rows x channels; filters become matrices U likewise; the products M = V U are `lowered` to the
// output's images. Every derivative of the convolution is one of the same products with its
// factors transposed:
//
//   forward           M = V U          z  = lower(M)
//   input gradient   gV = Z U^T        ga = lift^T(gV)        where Z = lower^T(gz)
//   weight gradient  gU = V^T Z        gw = (filters to U)^T(gU)
//
// The algorithm is Winograd's F(4x4, 3x3), with 36 positions and a row for each 4x4 tile of the
// output. Where there are few input channels there is another (patch_kernels.h).
//
// Matrices lie in panels of 64 bytes of channels: [position][panel][row][lane]. A panel of an image
// fits the first-level cache, so that the norm, the ReLU and the pool are passes over that.

#pragma once

#include <cstdint>

namespace fastmtt {

constexpr int64_t kPanelBytes = 64;
constexpr double kEps = 1e-5;  // of the norm's variance

// Inline always: what is compiled with one instruction set's flags must not serve the others.
[[gnu::always_inline]] inline int64_t parts(int64_t n, int64_t length) {
  return (n + length - 1) / length;
}

template <typename T>
constexpr int64_t kLanes = kPanelBytes / sizeof(T);

constexpr int64_t kPoints = 6;  // of the Winograd transform, in each direction
constexpr int64_t kTile = 4;

// One convolution: its images, and how they become rows.
struct Grid {
  int64_t height, width;    // of images and outputs
  int64_t in, out;          // channels
  int64_t positions;        // matrices
  int64_t down, across;     // tiles in either direction
  int64_t rows;             // of an image, with padding to the kernels' `group`
  int64_t depth;            // columns of V: `in`, with padding to `group`

  int64_t area() const { return height * width; }
  int64_t pooled_height() const { return height / 2; }
  int64_t pooled_width() const { return width / 2; }
};

// Matrices in panels. Strides in elements; a row is one panel wide.
template <typename E>
struct Panels {
  E* data = nullptr;
  int64_t position = 0, panel = 0;
};

// Operands of products, whose element type is the kernels' own.
using Operand = Panels<void>;

struct Product {
  Operand a, b;
};

// What belongs to one image and one panel of channels. Images are [H,W,C] with `count` of the
// panel's channels present; pointers stand at the panel's first channel. `scratch` holds
// kScratch panels of the image.
constexpr int64_t kScratch = 4;

template <typename T>
struct Normalise {
  Panels<const T> m;  // products to lower, or null where xhat is given
  int64_t row, panel;  // of the products
  int64_t count;
  const T *gamma, *beta;
  T *xhat, *rstd;
  T* p;
  T* scratch;
};

template <typename T>
struct NormaliseJvp {
  Panels<const T> m_dot;
  const T *gamma_dot, *beta_dot;
  T *xhat_dot, *rstd_dot, *p_dot;
};

template <typename T>
struct Backward {
  int64_t row, panel, count;
  const T *gp, *xhat, *rstd, *gamma, *beta;
  Operand z, z_pairs;       // null where not wanted
  double *ggamma, *gbeta;   // this image's share
  T* scratch;
};

template <typename T>
struct BackwardJvp {
  const T *gp_dot, *xhat_dot, *rstd_dot, *gamma_dot;
  Operand z_dot, z_dot_pairs;
};

template <typename T>
struct Kernels {
  // Operands hold elements of `element` bytes; products go through `group` of them at a time, and
  // an operand whose rows are summed over has them interleaved by `group` ("pairs"). In one whose
  // columns are, `beside` panels lie side by side: [position][panel / beside][row][beside][lane].
  int64_t element, group, beside;
  // Products are fastest for `rows_at_once` rows or multiples of that: with fewer, too little is done
  // with the filters that are fetched for them. `cache` is what of the second-level cache a thread's
  // group of images may take; that of `rows_at_once` rows takes what it needs.
  int64_t rows_at_once, cache;

  // c[n][m] = (c[n][m] if add) + sum over products and k of a[m,k] b[k,n], for rows m of one position
  void (*multiply)(
      const Product* products, int64_t count, int64_t position, int64_t begin, int64_t end,
      int64_t depth, int64_t panels, Panels<T> c, bool add);
  // c[n][m] = (c[n][m] if add) + sum over products and rows k of a[k,m] b[k,n], for m in the panels
  // begin .. end of a
  void (*multiply_transposed)(
      const Product* products, int64_t count, int64_t position, int64_t begin, int64_t end,
      int64_t rows, int64_t panels, Panels<T> c, bool add);

  // One panel of an image [H,W,in] to rows, paired or not.
  void (*lift)(const Grid&, const T* image, int64_t panel, Operand v, int64_t row, bool pairs);
  void (*lift_transposed)(
      const Grid&, Panels<const T> gv, int64_t row, int64_t panel, int64_t count, T* ga,
      T* scratch);
  // Filters [3,3,in,out] to a panel of U's columns, or of its transpose's, and a panel's length of rows
  // of U's cotangent back to filters'.
  void (*filters)(const Grid&, const T* w, int64_t panel, Operand u);
  void (*filters_flipped)(const Grid&, const T* w, int64_t panel, Operand u);
  void (*filters_transposed)(const Grid&, Panels<const T> gu, int64_t block, T* gw);

  // By value: what lies elsewhere would have to be read again after every store.
  void (*normalise)(Grid, Normalise<T>);
  void (*normalise_jvp)(Grid, Normalise<T>, NormaliseJvp<T>);
  void (*backward)(Grid, Backward<T>);
  void (*backward_jvp)(Grid, Backward<T>, BackwardJvp<T>);
};

// The kernels for this processor; with bf16, operands are rounded to bfloat16 and summed in float.
template <typename T>
const Kernels<T>& kernels(bool bf16);

}  // namespace fastmtt
