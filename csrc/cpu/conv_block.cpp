// The ConvNet block on the CPU: conv3x3 -> instance norm -> ReLU -> 2x2 average pool, its backward
// and the tangents of both. Images go through in chunks small enough for the last-level cache: a
// chunk's convolutions, then all the rest in one pass over each image (norm_pass.h). Of the large
// tensors only results reach memory.

#include <ATen/Dispatch.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/add.h>
#include <torch/library.h>

#include <array>
#include <optional>
#include <tuple>

#include "block.h"
#include "convolution.h"
#include "norm_pass.h"

namespace fastmtt {
namespace {

// xhat and rstd of a chunk, and its p unless that is undefined.
template <typename T>
void normalise_chunk(
    const Block& block, const Chunk& chunk, const Tensor& a, const Tensor& filters,
    const Tensor& gamma, const Tensor& beta, const Tensor& xhat, const Tensor& rstd,
    const Tensor& p) {
  const Tensor convolved = convolve(chunk.of(a), filters);
  const auto z = read<T>(convolved, chunk.count);
  const T* gammas = read<T>(gamma, block.students)[chunk.student];
  const T* betas = read<T>(beta, block.students)[chunk.student];
  const auto xhats = write<T>(xhat, block.images()), rstds = write<T>(rstd, block.images());
  const auto pooled = p.defined() ? write<T>(p, block.images()) : Parts<T>{nullptr, 0};
  for_images<T>(block, chunk, [&](int64_t i, int64_t image, Scratch<T>& scratch)
                                    FASTMTT_INLINE {
    normalise<T>(
        block.plane, z[i], gammas, betas, xhats[image], rstds[image], pooled[image], scratch);
  });
}

std::tuple<Tensor, Tensor, Tensor> conv_block(
    const Tensor& a_in, const Tensor& w, const Tensor& gamma_in, const Tensor& beta_in) {
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  const Block block("conv_block", a_in, w);
  const Tensor a = a_in.contiguous();
  const Tensor gamma = block.checked_affine("gamma", gamma_in);
  const Tensor beta = block.checked_affine("beta", beta_in);
  Tensor p = block.empty_pooled(), xhat = block.empty_output(), rstd = block.empty_statistic();
  AT_DISPATCH_FLOATING_TYPES(a.scalar_type(), "fastmtt::conv_block", [&] {
    for (int64_t s = 0; s < block.students; ++s) {
      const Tensor k = filters(w[s]);
      for_chunks(block, s, [&](const Chunk& chunk) {
        normalise_chunk<scalar_t>(block, chunk, a, k, gamma, beta, xhat, rstd, p);
      });
    }
  });
  return {p, xhat, rstd};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> conv_block_backward(
    const Tensor& gp_in, const Tensor& a_in, const Tensor& w, const Tensor& gamma_in,
    const Tensor& beta_in, const Tensor& xhat_in, const Tensor& rstd_in,
    std::array<bool, 2> needs) {
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  const Block block("conv_block_backward", a_in, w);
  const bool need_a = needs[0], need_parameters = needs[1];
  const Tensor a = a_in.contiguous(), gp = block.checked_pooled("gp", gp_in);
  const Tensor gamma = block.checked_affine("gamma", gamma_in);
  const Tensor beta = block.checked_affine("beta", beta_in);
  const Tensor xhat = block.checked_output("xhat", xhat_in);
  const Tensor rstd = block.checked_statistic("rstd", rstd_in);
  const int64_t images = block.images();
  Tensor ga = block.empty_input(need_a), gw = block.empty_weights(need_parameters);
  AffineGradients affine(block);
  AT_DISPATCH_FLOATING_TYPES(a.scalar_type(), "fastmtt::conv_block_backward", [&] {
    using T = scalar_t;
    const auto gps = read<T>(gp, images), xhats = read<T>(xhat, images);
    const auto rstds = read<T>(rstd, images);
    for (int64_t s = 0; s < block.students; ++s) {
      const T* gammas = read<T>(gamma, block.students)[s];
      const T* betas = read<T>(beta, block.students)[s];
      const Tensor k = filters(w[s]);
      Tensor gk;
      for_chunks(block, s, [&](const Chunk& chunk) {
        const Tensor gz = block.empty_chunk(chunk.count);
        for_images<T>(block, chunk, [&](int64_t i, int64_t image, Scratch<T>& scratch)
                                    FASTMTT_INLINE {
          normalise_backward<T>(
              block.plane,
              {.gp = gps[image],
               .xhat = xhats[image],
               .rstd = rstds[image],
               .gamma = gammas,
               .beta = betas,
               .gz = write<T>(gz, chunk.count)[i],
               .ggamma = affine.gamma(image),
               .gbeta = affine.beta(image)},
              scratch);
        });
        const auto [ga_part, gk_part] =
            convolve_backward(gz, chunk.of(a), k, need_a, need_parameters);
        if (need_a) chunk.of(ga).copy_(ga_part);
        if (need_parameters) accumulate(gk, gk_part);
      });
      if (need_parameters) store_filters(gw, s, gk);
    }
  });
  const auto [ggamma, gbeta] = affine.sums(need_parameters);
  return {ga, gw, ggamma, gbeta};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> conv_block_jvp(
    const Tensor& a_in, const std::optional<Tensor>& a_dot_in, const Tensor& w,
    const Tensor& w_dot, const Tensor& gamma_in, const Tensor& gamma_dot_in,
    const Tensor& beta_in, const Tensor& beta_dot_in, const std::optional<Tensor>& xhat_in,
    const std::optional<Tensor>& rstd_in) {
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  const Block block("conv_block_jvp", a_in, w);
  const Tensor a = a_in.contiguous();
  const Tensor a_dot = a_dot_in ? block.checked_input("a_dot", *a_dot_in) : Tensor();
  block.check("w_dot", w_dot, w.sizes());
  const Tensor gamma = block.checked_affine("gamma", gamma_in);
  const Tensor gamma_dot = block.checked_affine("gamma_dot", gamma_dot_in);
  const Tensor beta = block.checked_affine("beta", beta_in);
  const Tensor beta_dot = block.checked_affine("beta_dot", beta_dot_in);
  const bool given = xhat_in && rstd_in;
  const Tensor xhat = given ? block.checked_output("xhat", *xhat_in) : block.empty_output();
  const Tensor rstd = given ? block.checked_statistic("rstd", *rstd_in) : block.empty_statistic();
  Tensor p = block.empty_pooled(), p_dot = block.empty_pooled();
  Tensor xhat_dot = block.empty_output(), rstd_dot = block.empty_statistic();
  const int64_t images = block.images();
  AT_DISPATCH_FLOATING_TYPES(a.scalar_type(), "fastmtt::conv_block_jvp", [&] {
    using T = scalar_t;
    const auto xhats = read<T>(xhat, images), rstds = read<T>(rstd, images);
    const auto ps = write<T>(p, images), p_dots = write<T>(p_dot, images);
    const auto xhat_dots = write<T>(xhat_dot, images), rstd_dots = write<T>(rstd_dot, images);
    for (int64_t s = 0; s < block.students; ++s) {
      const T* gammas = read<T>(gamma, block.students)[s];
      const T* gamma_dots = read<T>(gamma_dot, block.students)[s];
      const T* betas = read<T>(beta, block.students)[s];
      const T* beta_dots = read<T>(beta_dot, block.students)[s];
      const Tensor k = filters(w[s]), k_dot = filters(w_dot[s]);
      for_chunks(block, s, [&](const Chunk& chunk) {
        if (!given) normalise_chunk<T>(block, chunk, a, k, gamma, beta, xhat, rstd, Tensor());
        const Tensor by_w = convolve(chunk.of(a), k_dot);
        const Tensor by_a = a_dot.defined() ? convolve(chunk.of(a_dot), k) : Tensor();
        for_images<T>(block, chunk, [&](int64_t i, int64_t image, Scratch<T>& scratch)
                                    FASTMTT_INLINE {
          normalise_jvp<T>(
              block.plane,
              {.xhat = xhats[image],
               .rstd = rstds[image],
               .gamma = gammas,
               .gamma_dot = gamma_dots,
               .beta = betas,
               .beta_dot = beta_dots,
               .z_dot = write<T>(by_w, chunk.count)[i],
               .more_z_dot = by_a.defined() ? read<T>(by_a, chunk.count)[i] : nullptr,
               .p = ps[image],
               .p_dot = p_dots[image],
               .xhat_dot = xhat_dots[image],
               .rstd_dot = rstd_dots[image]},
              scratch);
        });
      });
    }
  });
  if (given) return {p, p_dot, xhat_dot, rstd_dot, block.empty({0}), block.empty({0})};
  return {p, p_dot, xhat_dot, rstd_dot, xhat, rstd};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> conv_block_backward_jvp(
    const Tensor& gp_in, const Tensor& gp_dot_in, const Tensor& a_in,
    const std::optional<Tensor>& a_dot_in, const Tensor& w, const Tensor& w_dot,
    const Tensor& gamma_in, const Tensor& gamma_dot_in, const Tensor& beta_in,
    const Tensor& xhat_in, const Tensor& rstd_in, const Tensor& xhat_dot_in,
    const Tensor& rstd_dot_in, std::array<bool, 3> needs) {
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  const Block block("conv_block_backward_jvp", a_in, w);
  const bool need_a_dot = needs[0], need_parameters = needs[1], need_a = needs[2];
  const Tensor gp = block.checked_pooled("gp", gp_in);
  const Tensor gp_dot = block.checked_pooled("gp_dot", gp_dot_in);
  const Tensor a = a_in.contiguous();
  const Tensor a_dot = a_dot_in ? block.checked_input("a_dot", *a_dot_in) : Tensor();
  block.check("w_dot", w_dot, w.sizes());
  const Tensor gamma = block.checked_affine("gamma", gamma_in);
  const Tensor gamma_dot = block.checked_affine("gamma_dot", gamma_dot_in);
  const Tensor beta = block.checked_affine("beta", beta_in);
  const Tensor xhat = block.checked_output("xhat", xhat_in);
  const Tensor rstd = block.checked_statistic("rstd", rstd_in);
  const Tensor xhat_dot = block.checked_output("xhat_dot", xhat_dot_in);
  const Tensor rstd_dot = block.checked_statistic("rstd_dot", rstd_dot_in);
  const int64_t images = block.images();
  Tensor ga_dot = block.empty_input(need_a_dot), gw_dot = block.empty_weights(need_parameters);
  Tensor ga = block.empty_input(need_a);
  AffineGradients affine(block);
  AT_DISPATCH_FLOATING_TYPES(a.scalar_type(), "fastmtt::conv_block_backward_jvp", [&] {
    using T = scalar_t;
    const auto gps = read<T>(gp, images), gp_dots = read<T>(gp_dot, images);
    const auto xhats = read<T>(xhat, images), xhat_dots = read<T>(xhat_dot, images);
    const auto rstds = read<T>(rstd, images), rstd_dots = read<T>(rstd_dot, images);
    for (int64_t s = 0; s < block.students; ++s) {
      const T* gammas = read<T>(gamma, block.students)[s];
      const T* gamma_dots = read<T>(gamma_dot, block.students)[s];
      const T* betas = read<T>(beta, block.students)[s];
      const Tensor k = filters(w[s]), k_dot = filters(w_dot[s]);
      Tensor gk_dot;
      for_chunks(block, s, [&](const Chunk& chunk) {
        const Tensor gz = block.empty_chunk(chunk.count), gz_dot = block.empty_chunk(chunk.count);
        for_images<T>(block, chunk, [&](int64_t i, int64_t image, Scratch<T>& scratch)
                                    FASTMTT_INLINE {
          normalise_backward_jvp<T>(
              block.plane,
              {.gp = gps[image],
               .gp_dot = gp_dots[image],
               .xhat = xhats[image],
               .xhat_dot = xhat_dots[image],
               .rstd = rstds[image],
               .rstd_dot = rstd_dots[image],
               .gamma = gammas,
               .gamma_dot = gamma_dots,
               .beta = betas,
               .gz = write<T>(gz, chunk.count)[i],
               .gz_dot = write<T>(gz_dot, chunk.count)[i],
               .ggamma_dot = affine.gamma(image),
               .gbeta_dot = affine.beta(image)},
              scratch);
        });
        const Tensor part = chunk.of(a);
        const auto [by_gz_dot, gk_by_gz_dot] =
            convolve_backward(gz_dot, part, k, need_a_dot, need_parameters);
        if (need_a_dot) {
          const Tensor by_gz = std::get<0>(convolve_backward(gz, part, k_dot, true, false));
          Tensor to = chunk.of(ga_dot);
          at::add_out(to, by_gz_dot, by_gz);
        }
        const bool two_terms = need_parameters && a_dot.defined();
        const auto [ga_part, gk_by_gz] = convolve_backward(
            gz, two_terms ? chunk.of(a_dot) : part, k, need_a, two_terms);
        if (need_a) chunk.of(ga).copy_(ga_part);
        if (need_parameters) accumulate(gk_dot, gk_by_gz_dot);
        if (two_terms) accumulate(gk_dot, gk_by_gz);
      });
      if (need_parameters) store_filters(gw_dot, s, gk_dot);
    }
  });
  const auto [ggamma_dot, gbeta_dot] = affine.sums(need_parameters);
  return {ga_dot, gw_dot, ggamma_dot, gbeta_dot, ga};
}

}  // namespace
}  // namespace fastmtt

TORCH_LIBRARY_IMPL(fastmtt, CPU, m) {
  m.impl("conv_block", &fastmtt::conv_block);
  m.impl("conv_block_backward", &fastmtt::conv_block_backward);
  m.impl("conv_block_jvp", &fastmtt::conv_block_jvp);
  m.impl("conv_block_backward_jvp", &fastmtt::conv_block_backward_jvp);
}
