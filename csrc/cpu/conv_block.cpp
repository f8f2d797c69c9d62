// The ConvNet block on the CPU: conv3x3 -> instance norm -> ReLU -> 2x2 average pool, and its
// backward; conv_block_jvp.cpp has the tangents of both.

#include <ATen/Dispatch.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/library.h>

#include <array>
#include <optional>
#include <tuple>
#include <vector>

#include "convolution.h"
#include "patch_ops.h"

namespace fastmtt {
namespace {

template <typename T>
struct ForwardBuffers {
  struct Own {
    Own(Arena& arena, const Convolution<T>& c)
        : v(c.lifted_group(arena)), m(c.products_group(arena)), scratch(c.scratch(arena)) {}
    Operand v;
    Panels<T> m;
    T* scratch;
  };
  ForwardBuffers(Arena& arena, const Convolution<T>& c) : u(c.filters(arena)) {
    for (int i = 0; i < at::get_num_threads(); ++i) own.emplace_back(arena, c);
  }
  Operand u;
  std::vector<Own> own;  // a thread's each, or the first's operands for all
};

template <typename T>
struct BackwardBuffers {
  struct Own {
    Own(Arena& arena, const Convolution<T>& c)
        : gv(c.products_group(arena)), scratch(c.scratch(arena)) {}
    Panels<T> gv;
    T* scratch;
  };
  BackwardBuffers(Arena& arena, const Convolution<T>& c, const Block& block)
      : u(c.flipped(arena)),
        v(c.lifted(arena)),
        z(c.lowered(arena)),
        z_pairs(c.pairs(arena, z)),
        gu(c.filter_products(arena)),
        shares(arena, block) {
    for (int i = 0; i < at::get_num_threads(); ++i) own.emplace_back(arena, c);
  }
  Operand u, v, z, z_pairs;
  Panels<T> gu;
  AffineShares shares;
  std::vector<Own> own;  // a thread's each
};

void conv_block_into(
    const Tensor& a_in, const Tensor& w_in, const Tensor& gamma_in, const Tensor& beta_in,
    bool bf16, const Tensor& p, const Tensor& xhat, const Tensor& rstd,
    const std::optional<Tensor>& scratch) {
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  Block block("conv_block", a_in, w_in, bf16);
  const Tensor a = block.input("a", a_in), w = block.filters("w", w_in);
  const Tensor gamma = block.affine("gamma", gamma_in), beta = block.affine("beta", beta_in);
  const bool with_xhat = !left_out(block, xhat);
  block.check_pooled_result("p", p);
  block.check_output_result("xhat", xhat, with_xhat);
  block.check_statistic_result("rstd", rstd);
  if (few_channels(block)) {
    const PatchTensors tensors = {
        .a = a, .w = w, .gamma = gamma, .beta = beta, .p = p,
        .xhat = with_xhat ? xhat : Tensor(), .rstd = rstd};
    return compute_by_patches(PatchOp::forward, block, tensors, scratch);
  }
  AT_DISPATCH_FLOATING_TYPES(a.scalar_type(), "fastmtt::conv_block", [&] {
    using T = scalar_t;
    const Convolution<T> conv(block, 1, 1);
    Tensor room = or_fresh(scratch);
    const auto buffers = carve<ForwardBuffers<T>>(room, conv);
    block.check_apart(room);
    const auto ps = write<T>(p), xhats = write<T>(xhat), rstds = write<T>(rstd);
    for (int64_t s = 0; s < block.students; ++s) {
      conv.filters_before(read<T>(w)[s], buffers.u);
      const auto prepare = [&](const Images& images) {
        const T* inputs = block.image(read<T>(a)[s], images.first);
        conv.lift(inputs, images.count, buffers.own[images.owner].v, images.row, false);
      };
      const auto multiply = [&](const Images& images, const Columns& columns) {
        const auto& own = buffers.own[images.thread];
        const auto use = [&](int64_t image, int64_t panel, int64_t at) {
          const int64_t i = images.first + image, c = panel * kLanes<T>;
          conv.kernels.normalise(
              conv.g,
              {.m = constant(own.m),
               .row = image * conv.g.rows,
               .panel = at,
               .count = conv.present(block.out, panel),
               .gamma = read<T>(gamma)[s] + c,
               .beta = read<T>(beta)[s] + c,
               .xhat = block.output_image(xhats[s], i) + c,
               .rstd = rstds[s] + i * block.out + c,
               .p = block.pooled_image(ps[s], i) + c,
               .scratch = own.scratch});
        };
        conv.filters_within(read<T>(w)[s], columns, buffers.u);
        const Operand v = buffers.own[images.owner].v;
        conv.multiply(images.count, columns, {{{{v, buffers.u}}, own.m}}, use);
      };
      conv.for_groups(block.batch, conv.out_panels(), prepare, multiply);
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
  Block block("conv_block_backward", a_in, w_in, bf16);
  const auto [need_a, need_parameters] = needs;
  const Tensor a = block.input("a", a_in), w = block.filters("w", w_in);
  const Tensor gamma = block.affine("gamma", gamma_in), beta = block.affine("beta", beta_in);
  const Tensor gp = block.pooled("gp", gp_in), xhat = output_or_none(block, "xhat", xhat_in);
  const Tensor rstd = block.statistic("rstd", rstd_in);
  block.check_input_result("ga", ga, need_a);
  block.check_parameter_results(gw, ggamma, gbeta, need_parameters);
  if (few_channels(block)) {
    PatchTensors tensors = {.a = a, .w = w, .gamma = gamma, .beta = beta, .gp = gp};
    if (need_a) tensors.ga = ga;
    if (need_parameters) tensors.gw = gw, tensors.ggamma = ggamma, tensors.gbeta = gbeta;
    return compute_by_patches(PatchOp::backward, block, tensors, scratch);
  }
  AT_DISPATCH_FLOATING_TYPES(a.scalar_type(), "fastmtt::conv_block_backward", [&] {
    using T = scalar_t;
    const Convolution<T> conv(block, 2, 1);
    Tensor room = or_fresh(scratch);
    const auto buffers = carve<BackwardBuffers<T>>(room, conv, block);
    block.check_apart(room);
    const auto gas = write<T>(ga, need_a);
    for (int64_t s = 0; s < block.students; ++s) {
      if (need_a) conv.flipped_before(read<T>(w)[s], buffers.u);
      conv.for_chunks(block.batch, [&](int64_t chunk, int64_t images) {
        const auto prepare = [&](const Images& group) {
          const auto& own = buffers.own[group.thread];
          for (int64_t k = 0; k < group.count * conv.out_panels(); ++k) {
            const int64_t image = group.first + k / conv.out_panels();
            const int64_t panel = k % conv.out_panels();
            const int64_t i = chunk + image, c = panel * kLanes<T>;
            conv.kernels.backward(
                conv.g,
                {.row = image * conv.g.rows,
                 .panel = panel,
                 .count = conv.present(block.out, panel),
                 .gp = block.pooled_image(read<T>(gp)[s], i) + c,
                 .xhat = block.output_image(read<T>(xhat)[s], i) + c,
                 .rstd = read<T>(rstd)[s] + i * block.out + c,
                 .gamma = read<T>(gamma)[s] + c,
                 .beta = read<T>(beta)[s] + c,
                 .z = need_a ? buffers.z : Operand(),
                 .z_pairs = need_parameters ? buffers.z_pairs : Operand(),
                 .ggamma = buffers.shares.gamma(i) + c,
                 .gbeta = buffers.shares.beta(i) + c,
                 .scratch = own.scratch});
          }
          if (!need_parameters) return;
          const T* inputs = block.image(read<T>(a)[s], chunk + group.first);
          conv.lift(inputs, group.count, buffers.v, group.first * conv.g.rows, true);
        };
        const auto multiply = [&](const Images& group, const Columns& columns) {
          const auto& own = buffers.own[group.thread];
          const Operand z = conv.from_row(buffers.z, group.first * conv.g.rows);
          conv.flipped_within(read<T>(w)[s], columns, buffers.u);
          conv.multiply_flipped(
              group.count, columns, {{{z, buffers.u}}, own.gv},
              block.image(gas[s], chunk + group.first), own.scratch);
        };
        conv.for_groups(images, need_a ? conv.in_panels() : 0, prepare, multiply);
        if (need_parameters) {
          conv.multiply_transposed({{buffers.v, buffers.z_pairs}}, images, buffers.gu, chunk > 0);
        }
      });
      if (need_parameters) {
        conv.from_filters(buffers.gu, write<T>(gw)[s]);
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
