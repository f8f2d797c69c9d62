// The ConvNet block on the CPU: conv3x3 -> instance norm -> ReLU -> 2x2 average pool, and its
// backward; conv_block_jvp.cpp has the tangents of both.

#include <ATen/Dispatch.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/library.h>

#include <array>
#include <optional>
#include <tuple>

#include "convolution.h"

namespace fastmtt {
namespace {

template <typename T>
struct ForwardBuffers {
  ForwardBuffers(Arena& arena, const Convolution<T>& c)
      : u(c.filters(arena)),
        v(c.lifted(arena)),
        m(c.products(arena, c.chunk * c.g.rows, c.out_panels())),
        scratches(c.scratches(arena)) {}
  Operand u, v;
  Panels<T> m;
  T* scratches;
};

template <typename T>
struct BackwardBuffers {
  BackwardBuffers(Arena& arena, const Convolution<T>& c, const Block& block)
      : u(c.flipped(arena)),
        v(c.lifted(arena)),
        z(c.lowered(arena)),
        z_pairs(c.pairs(arena, z)),
        gv(c.products(arena, c.chunk * c.g.rows, c.in_panels())),
        gu(c.filter_products(arena)),
        scratches(c.scratches(arena)),
        shares(arena, block) {}
  Operand u, v, z, z_pairs;
  Panels<T> gv, gu;
  T* scratches;
  AffineShares shares;
};

void conv_block_into(
    const Tensor& a_in, const Tensor& w_in, const Tensor& gamma_in, const Tensor& beta_in,
    bool bf16, const Tensor& p, const Tensor& xhat, const Tensor& rstd, const std::optional<Tensor>& scratch) {
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  const Block block("conv_block", a_in, w_in, bf16);
  const Tensor a = block.input("a", a_in), w = block.filters("w", w_in);
  const Tensor gamma = block.affine("gamma", gamma_in), beta = block.affine("beta", beta_in);
  block.check_pooled_result("p", p);
  block.check_output_result("xhat", xhat);
  block.check_statistic_result("rstd", rstd);
  AT_DISPATCH_FLOATING_TYPES(a.scalar_type(), "fastmtt::conv_block", [&] {
    using T = scalar_t;
    const Convolution<T> conv(block);
    Tensor room = or_fresh(scratch);
    const auto buffers = carve<ForwardBuffers<T>>(room, conv);
    const auto ps = write<T>(p), xhats = write<T>(xhat), rstds = write<T>(rstd);
    for (int64_t s = 0; s < block.students; ++s) {
      conv.to_filters(read<T>(w)[s], buffers.u);
      conv.for_chunks(block.batch, [&](int64_t first, int64_t count) {
        conv.lift(block.image(read<T>(a)[s], first), count, buffers.v, false);
        conv.multiply({{buffers.v, buffers.u}}, count, buffers.m);
        conv.for_panels(count, [&](int64_t image, int64_t panel) {
          const int64_t i = first + image, c = panel * kLanes<T>;
          conv.kernels.normalise(
              conv.g,
              {.m = constant(buffers.m),
               .row = image * conv.g.rows,
               .panel = panel,
               .count = conv.present(panel),
               .gamma = read<T>(gamma)[s] + c,
               .beta = read<T>(beta)[s] + c,
               .xhat = block.output_image(xhats[s], i) + c,
               .rstd = rstds[s] + i * block.out + c,
               .p = block.pooled_image(ps[s], i) + c,
               .scratch = conv.scratch(buffers.scratches)});
        });
      });
    }
  });
}

std::tuple<Tensor, Tensor, Tensor> conv_block(
    const Tensor& a, const Tensor& w, const Tensor& gamma, const Tensor& beta, bool bf16) {
  const Block block("conv_block", a, w, bf16);
  std::tuple results = {block.empty_pooled(), block.empty_output(), block.empty_statistic()};
  const auto& [p, xhat, rstd] = results;
  conv_block_into(a, w, gamma, beta, bf16, p, xhat, rstd, std::nullopt);
  return results;
}

void conv_block_backward_into(
    const Tensor& gp_in, const Tensor& a_in, const Tensor& w_in, const Tensor& gamma_in,
    const Tensor& beta_in, const Tensor& xhat_in, const Tensor& rstd_in, std::array<bool, 2> needs,
    bool bf16, const Tensor& ga, const Tensor& gw, const Tensor& ggamma, const Tensor& gbeta,
    const std::optional<Tensor>& scratch) {
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  const Block block("conv_block_backward", a_in, w_in, bf16);
  const auto [need_a, need_parameters] = needs;
  const Tensor a = block.input("a", a_in), w = block.filters("w", w_in);
  const Tensor gamma = block.affine("gamma", gamma_in), beta = block.affine("beta", beta_in);
  const Tensor gp = block.pooled("gp", gp_in), xhat = block.output("xhat", xhat_in);
  const Tensor rstd = block.statistic("rstd", rstd_in);
  block.check_input_result("ga", ga, need_a);
  block.check_parameter_results(gw, ggamma, gbeta, need_parameters);
  AT_DISPATCH_FLOATING_TYPES(a.scalar_type(), "fastmtt::conv_block_backward", [&] {
    using T = scalar_t;
    const Convolution<T> conv(block);
    Tensor room = or_fresh(scratch);
    const auto buffers = carve<BackwardBuffers<T>>(room, conv, block);
    const auto gas = write<T>(ga), gws = write<T>(gw);
    for (int64_t s = 0; s < block.students; ++s) {
      if (need_a) conv.to_flipped(read<T>(w)[s], buffers.u);
      if (need_parameters) conv.clear(buffers.gu);
      conv.for_chunks(block.batch, [&](int64_t first, int64_t count) {
        conv.for_panels(count, [&](int64_t image, int64_t panel) {
          const int64_t i = first + image, c = panel * kLanes<T>;
          conv.kernels.backward(
              conv.g,
              {.row = image * conv.g.rows,
               .panel = panel,
               .count = conv.present(panel),
               .gp = block.pooled_image(read<T>(gp)[s], i) + c,
               .xhat = block.output_image(read<T>(xhat)[s], i) + c,
               .rstd = read<T>(rstd)[s] + i * block.out + c,
               .gamma = read<T>(gamma)[s] + c,
               .beta = read<T>(beta)[s] + c,
               .z = need_a ? buffers.z : Operand(),
               .z_pairs = need_parameters ? buffers.z_pairs : Operand(),
               .ggamma = buffers.shares.gamma(i) + c,
               .gbeta = buffers.shares.beta(i) + c,
               .scratch = conv.scratch(buffers.scratches)});
        });
        if (need_a) {
          conv.multiply_flipped({{buffers.z, buffers.u}}, count, buffers.gv);
          conv.lift_transposed(
              buffers.gv, count, block.image(gas[s], first), buffers.scratches);
        }
        if (need_parameters) {
          conv.lift(block.image(read<T>(a)[s], first), count, buffers.v, true);
          conv.multiply_transposed({{buffers.v, buffers.z_pairs}}, count, buffers.gu);
        }
      });
      if (need_parameters) {
        conv.from_filters(buffers.gu, gws[s]);
        buffers.shares.add_up(write<T>(ggamma)[s], write<T>(gbeta)[s]);
      }
    }
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensor> conv_block_backward(
    const Tensor& gp, const Tensor& a, const Tensor& w, const Tensor& gamma, const Tensor& beta,
    const Tensor& xhat, const Tensor& rstd, std::array<bool, 2> needs, bool bf16) {
  const Block block("conv_block_backward", a, w, bf16);
  std::tuple results = {
      block.empty_input(needs[0]), block.empty_filters(needs[1]), block.empty_affine(needs[1]),
      block.empty_affine(needs[1])};
  const auto& [ga, gw, ggamma, gbeta] = results;
  conv_block_backward_into(
      gp, a, w, gamma, beta, xhat, rstd, needs, bf16, ga, gw, ggamma, gbeta, std::nullopt);
  return results;
}

}  // namespace
}  // namespace fastmtt

TORCH_LIBRARY_IMPL(fastmtt, CPU, m) {
  m.impl("conv_block", &fastmtt::conv_block);
  m.impl("conv_block.into", &fastmtt::conv_block_into);
  m.impl("conv_block_backward", &fastmtt::conv_block_backward);
  m.impl("conv_block_backward.into", &fastmtt::conv_block_backward_into);
}
