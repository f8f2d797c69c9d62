// The ConvNet block's ops where the input has few channels: a student's images by all threads, each
// an image at a time. Images' shares of a gradient are added up in the order of the images.

#include "patch_ops.h"

#include <ATen/Dispatch.h>

#include <algorithm>
#include <vector>

#include "convolution.h"
#include "patch_kernels.h"

namespace fastmtt {
namespace {

constexpr int64_t kSharesBytes = int64_t(1) << 24;  // of images whose gradients wait to be added

template <typename T>
T* take(Arena& arena, int64_t count) {
  return static_cast<T*>(arena.take(count * sizeof(T)));
}

template <typename T>
PatchRoom<T> make_room(
    Arena& arena, const PatchGrid<T>& g, const PatchKernels<T>& kernels, const Pixel* pixels) {
  const auto values = [&](int64_t count) { return take<T>(arena, count); };
  const auto doubles = [&](int64_t count) { return take<double>(arena, count); };
  const auto factor = [&] { return values(g.outs * g.depth); };
  const auto back = [&] { return values(g.tap_panels * g.outs * kLanes<T>); };
  const int64_t strip = kStripPanels * kStrip * kLanes<T>;
  return {
      .pixels = pixels,
      .x = values(g.panels * g.rows * kLanes<T>),
      .gx = values(g.tap_panels * g.rows * kLanes<T>),
      .ga = values((g.height + 2) * (g.width + 2) * g.in),
      .sums = doubles(kernels.sums(g)),
      .covariance = doubles(g.depth * g.depth),
      .cu = doubles(g.outs * g.depth),
      .cu_dot = doubles(g.outs * g.depth),
      .rstd = doubles(g.outs),
      .gain = doubles(g.outs),
      .gain_dot = doubles(g.outs),
      .value = factor(),
      .tangent = factor(),
      .xhat = factor(),
      .xhat_dot = factor(),
      .by_u = factor(),
      .by_u_dot = factor(),
      .rest = values(g.tap_panels * g.depth * kLanes<T>),
      .back = back(),
      .back_dot = back(),
      .y = values(strip),
      .y_dot = values(strip),
      .g = values(strip),
      .q = values(kSums * g.outs * g.depth),
      .q_dot = values(kSums * g.outs * g.depth),
      .operands = arena.take(kernels.operand_bytes(g)),
  };
}

template <typename T>
struct PatchBuffers {
  PatchBuffers(
      Arena& arena, const PatchGrid<T>& g, const PatchKernels<T>& kernels, const Block& block,
      int64_t chunk)
      : pixels(take<Pixel>(arena, g.area)),
        u(take<double>(arena, g.outs * g.depth)),
        u_dot(take<double>(arena, g.outs * g.depth)),
        flipped(take<T>(arena, g.tap_panels * g.outs * kLanes<T>)),
        flipped_dot(take<T>(arena, g.tap_panels * g.outs * kLanes<T>)),
        total(take<double>(arena, g.taps * g.out)),
        gw(take<T>(arena, chunk * g.taps * g.out)),
        shares(arena, block) {
    for (int i = 0; i < at::get_num_threads(); ++i) {
      own.push_back(make_room(arena, g, kernels, pixels));
    }
  }
  Pixel* pixels;
  double *u, *u_dot;
  T *flipped, *flipped_dot;
  double* total;
  T* gw;
  AffineShares shares;
  std::vector<PatchRoom<T>> own;  // a thread's each
};

// Pools after one another, each its four pixels; then the pixels in none.
template <typename T>
void number_pixels(const PatchGrid<T>& g, Pixel* pixels) {
  const auto put = [&](int64_t y, int64_t x) {
    *pixels++ = {static_cast<int32_t>(y), static_cast<int32_t>(x)};
  };
  const int64_t height = g.height / 2 * 2, width = g.width / 2 * 2;
  for (int64_t y = 0; y < height; y += 2) {
    for (int64_t x = 0; x < width; x += 2) {
      for (int64_t i = 0; i < kPool; ++i) put(y + i / 2, x + i % 2);
    }
  }
  for (int64_t y = 0; y < g.height; ++y) {
    for (int64_t x = y < height ? width : 0; x < g.width; ++x) put(y, x);
  }
}

// Filters [taps][out] to rows from `first` on.
template <typename T>
void put_rows(const PatchGrid<T>& g, const T* w, int64_t first, double* u) {
  for (int64_t k = 0; k < g.taps; ++k) {
    for (int64_t c = 0; c < g.out; ++c) {
      u[(c / kEight * g.depth + first + k) * kEight + c % kEight] = w[k * g.out + c];
    }
  }
}

template <typename T>
void put_flipped(const PatchGrid<T>& g, const T* w, T* flipped) {
  constexpr int64_t kLength = kLanes<T>;
  std::fill_n(flipped, g.tap_panels * g.outs * kLength, T(0));
  for (int64_t k = 0; k < g.taps; ++k) {
    for (int64_t c = 0; c < g.out; ++c) {
      flipped[(k / kLength * g.outs + c) * kLength + k % kLength] = w[k * g.out + c];
    }
  }
}

// A student's part of a tensor, or null.
template <typename T>
const T* part(const Tensor& t, int64_t student) {
  return t.defined() ? read<T>(t)[student] : nullptr;
}
template <typename T>
T* result(const Tensor& t, int64_t student) {
  return t.defined() ? write<T>(t)[student] : nullptr;
}

template <typename T>
PatchFilters<T> make_filters(
    const PatchGrid<T>& g, const PatchTensors& t, int64_t s, const PatchBuffers<T>& buffers) {
  std::fill_n(buffers.u, g.outs * g.depth, 0.0);
  put_rows(g, part<T>(t.w, s), 0, buffers.u);
  put_flipped(g, part<T>(t.w, s), buffers.flipped);
  if (t.w_dot.defined()) {
    std::fill_n(buffers.u_dot, g.outs * g.depth, 0.0);
    put_rows(g, part<T>(t.w_dot, s), 0, buffers.u_dot);
    if (t.a_dot.defined()) put_rows(g, part<T>(t.w, s), g.taps + 1, buffers.u_dot);
    put_flipped(g, part<T>(t.w_dot, s), buffers.flipped_dot);
  }
  return {
      buffers.u, buffers.u_dot, buffers.flipped, buffers.flipped_dot, part<T>(t.gamma, s),
      part<T>(t.beta, s), part<T>(t.gamma_dot, s), part<T>(t.beta_dot, s)};
}

// Image `i` of a student; `share` is its place among those whose gradients wait.
template <typename T>
PatchImage<T> make_image(
    const Block& block, const PatchGrid<T>& g, const PatchTensors& t, int64_t s, int64_t i,
    int64_t share, const PatchBuffers<T>& buffers) {
  const auto input = [&](auto* at) { return at == nullptr ? at : block.image(at, i); };
  const auto output = [&](auto* at) { return at == nullptr ? at : block.output_image(at, i); };
  const auto pooled = [&](auto* at) { return at == nullptr ? at : block.pooled_image(at, i); };
  const auto statistic = [&](auto* at) { return at == nullptr ? at : at + i * g.out; };
  const bool parameters = t.gw.defined();
  return {
      .a = input(part<T>(t.a, s)),
      .a_dot = input(part<T>(t.a_dot, s)),
      .gp = pooled(part<T>(t.gp, s)),
      .gp_dot = pooled(part<T>(t.gp_dot, s)),
      .p = pooled(result<T>(t.p, s)),
      .xhat = output(result<T>(t.xhat, s)),
      .rstd = statistic(result<T>(t.rstd, s)),
      .p_dot = pooled(result<T>(t.p_dot, s)),
      .xhat_dot = output(result<T>(t.xhat_dot, s)),
      .rstd_dot = statistic(result<T>(t.rstd_dot, s)),
      .gw = parameters ? buffers.gw + share * g.taps * g.out : nullptr,
      .ggamma = parameters ? buffers.shares.gamma(i) : nullptr,
      .gbeta = parameters ? buffers.shares.beta(i) : nullptr,
      .ga = input(result<T>(t.ga, s)),
      .ga_dot = input(result<T>(t.ga_dot, s)),
  };
}

template <typename T>
auto kernel_of(PatchOp op, const PatchKernels<T>& kernels) {
  switch (op) {
    case PatchOp::forward: return kernels.forward;
    case PatchOp::jvp: return kernels.jvp;
    case PatchOp::backward: return kernels.backward;
    case PatchOp::backward_jvp: return kernels.backward_jvp;
  }
  TORCH_INTERNAL_ASSERT(false);
}

template <typename T>
void compute(PatchOp op, const Block& block, const PatchTensors& t, Tensor room) {
  const PatchGrid<T> g(block.height, block.width, block.in, block.out, t.a_dot.defined());
  const PatchKernels<T>& kernels = patch_kernels<T>(block.bf16);
  const auto kernel = kernel_of(op, kernels);
  const int64_t weights = g.taps * g.out;
  const int64_t most = std::max<int64_t>(at::get_num_threads(), kSharesBytes / (weights * sizeof(T)));
  const int64_t chunk = std::min(block.batch, t.gw.defined() ? most : block.batch);
  const auto buffers = carve<PatchBuffers<T>>(
      room, g, kernels, block, t.gw.defined() ? chunk : 0);
  block.check_apart(room);
  number_pixels(g, buffers.pixels);
  for (int64_t s = 0; s < block.students; ++s) {
    const PatchFilters<T> filters = make_filters(g, t, s, buffers);
    std::fill_n(buffers.total, weights, 0.0);
    for (int64_t first = 0; first < block.batch; first += chunk) {
      const int64_t count = std::min(chunk, block.batch - first);
      parallel(count, [&](int64_t i) {
        kernel(
            g, filters, make_image(block, g, t, s, first + i, i, buffers),
            buffers.own[at::get_thread_num()]);
      });
      if (!t.gw.defined()) continue;
      at::parallel_for(0, weights, 512, [&](int64_t begin, int64_t end) {
        for (int64_t i = 0; i < count; ++i) {
          const T* share = buffers.gw + i * weights;
          for (int64_t k = begin; k < end; ++k) buffers.total[k] += share[k];
        }
      });
    }
    if (!t.gw.defined()) continue;
    T* gw = write<T>(t.gw)[s];
    for (int64_t k = 0; k < weights; ++k) gw[k] = static_cast<T>(buffers.total[k]);
    buffers.shares.add_up(write<T>(t.ggamma)[s], write<T>(t.gbeta)[s]);
  }
}

}  // namespace

bool few_channels(const Block& block) {
  return block.in < (block.like.scalar_type() == at::kDouble ? kLanes<double> : kLanes<float>);
}

void compute_by_patches(
    PatchOp op, const Block& block, const PatchTensors& tensors,
    const std::optional<Tensor>& scratch) {
  AT_DISPATCH_FLOATING_TYPES(block.like.scalar_type(), "fastmtt::conv_block", [&] {
    compute<scalar_t>(op, block, tensors, or_fresh(scratch));
  });
}

}  // namespace fastmtt
