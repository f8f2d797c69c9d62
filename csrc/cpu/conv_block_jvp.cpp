// The tangents of the ConvNet block and of its backward on the CPU. Primal and tangent share the
// lifted images and transformed filters; sums of two convolutions are one sum of products.

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
struct JvpBuffers {
  struct Own {
    Own(Arena& arena, const Convolution<T>& c)
        : v(c.lifted_group(arena)),
          v_dot(c.lifted_group(arena)),
          m(c.products_group(arena)),
          m_dot(c.products_group(arena)),
          scratch(c.scratch(arena)) {}
    Operand v, v_dot;
    Panels<T> m, m_dot;
    T* scratch;
  };
  JvpBuffers(Arena& arena, const Convolution<T>& c)
      : u(c.filters(arena)), u_dot(c.filters(arena)) {
    for (int i = 0; i < at::get_num_threads(); ++i) own.emplace_back(arena, c);
  }
  Operand u, u_dot;
  std::vector<Own> own;  // a thread's each
};

template <typename T>
struct BackwardJvpBuffers {
  struct Own {
    Own(Arena& arena, const Convolution<T>& c)
        : gv(c.products_group(arena)), scratch(c.scratch(arena)) {}
    Panels<T> gv;
    T* scratch;
  };
  BackwardJvpBuffers(Arena& arena, const Convolution<T>& c, const Block& block)
      : u(c.flipped(arena)),
        u_dot(c.flipped(arena)),
        v(c.lifted(arena)),
        v_dot(c.lifted(arena)),
        z(c.lowered(arena)),
        z_dot(c.lowered(arena)),
        z_pairs(c.pairs(arena, z)),
        z_dot_pairs(c.pairs(arena, z_dot)),
        gu(c.filter_products(arena)),
        shares(arena, block) {
    for (int i = 0; i < at::get_num_threads(); ++i) own.emplace_back(arena, c);
  }
  Operand u, u_dot, v, v_dot, z, z_dot, z_pairs, z_dot_pairs;
  Panels<T> gu;
  AffineShares shares;
  std::vector<Own> own;  // a thread's each
};

void conv_block_jvp_into(
    const Tensor& a_in, const std::optional<Tensor>& a_dot_in, const Tensor& w_in,
    const Tensor& w_dot_in, const Tensor& gamma_in, const Tensor& gamma_dot_in,
    const Tensor& beta_in, const Tensor& beta_dot_in, const std::optional<Tensor>& xhat_in,
    const std::optional<Tensor>& rstd_in, bool bf16, const Tensor& p, const Tensor& p_dot,
    const Tensor& xhat_dot, const Tensor& rstd_dot, const Tensor& new_xhat,
    const Tensor& new_rstd, const std::optional<Tensor>& scratch) {
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  Block block("conv_block_jvp", a_in, w_in, bf16);
  const Tensor a = block.input("a", a_in);
  const Tensor a_dot = a_dot_in ? block.input("a_dot", *a_dot_in) : Tensor();
  const Tensor w = block.filters("w", w_in), w_dot = block.filters("w_dot", w_dot_in);
  const Tensor gamma = block.affine("gamma", gamma_in);
  const Tensor gamma_dot = block.affine("gamma_dot", gamma_dot_in);
  const Tensor beta = block.affine("beta", beta_in);
  const Tensor beta_dot = block.affine("beta_dot", beta_dot_in);
  const bool given = xhat_in && rstd_in;
  const bool with_dot = !left_out(block, xhat_dot);
  const bool with_xhat = !given && !left_out(block, new_xhat);
  block.check_pooled_result("p", p);
  block.check_pooled_result("p_dot", p_dot);
  block.check_output_result("xhat_dot", xhat_dot, with_dot);
  block.check_statistic_result("rstd_dot", rstd_dot);
  block.check_output_result("xhat", new_xhat, with_xhat);
  block.check_statistic_result("rstd", new_rstd, !given);
  const Tensor xhat = given ? output_or_none(block, "xhat", *xhat_in) : new_xhat;
  const Tensor rstd = given ? block.statistic("rstd", *rstd_in) : new_rstd;
  if (few_channels(block)) {
    PatchTensors tensors = {
        .a = a, .a_dot = a_dot, .w = w, .w_dot = w_dot, .gamma = gamma, .gamma_dot = gamma_dot,
        .beta = beta, .beta_dot = beta_dot, .p = p, .p_dot = p_dot, .rstd_dot = rstd_dot};
    if (with_dot) tensors.xhat_dot = xhat_dot;
    if (with_xhat) tensors.xhat = xhat;
    if (!given) tensors.rstd = rstd;
    return compute_by_patches(PatchOp::jvp, block, tensors, scratch);
  }
  AT_DISPATCH_FLOATING_TYPES(a.scalar_type(), "fastmtt::conv_block_jvp", [&] {
    using T = scalar_t;
    const Convolution<T> conv(block, 2, 2);
    Tensor room = or_fresh(scratch);
    const auto buffers = carve<JvpBuffers<T>>(room, conv);
    block.check_apart(room);
    const auto xhats = write<T>(xhat), rstds = write<T>(rstd);
    const auto ps = write<T>(p), p_dots = write<T>(p_dot);
    const auto xhat_dots = write<T>(xhat_dot), rstd_dots = write<T>(rstd_dot);
    for (int64_t s = 0; s < block.students; ++s) {
      const bool with_u = !given || a_dot.defined();
      if (with_u) conv.filters_before(read<T>(w)[s], buffers.u);
      conv.filters_before(read<T>(w_dot)[s], buffers.u_dot);
      const auto prepare = [&](const Images& images) {
        const auto& own = buffers.own[images.owner];
        const T* inputs = block.image(read<T>(a)[s], images.first);
        conv.lift(inputs, images.count, own.v, images.row, false);
        if (!a_dot.defined()) return;
        const T* dots = block.image(read<T>(a_dot)[s], images.first);
        conv.lift(dots, images.count, own.v_dot, images.row, false);
      };
      const auto multiply = [&](const Images& images, const Columns& columns) {
        const auto& own = buffers.own[images.thread];
        const auto use = [&](int64_t image, int64_t panel, int64_t at) {
          const int64_t i = images.first + image, c = panel * kLanes<T>;
          conv.kernels.normalise_jvp(
              conv.g,
              {.m = given ? Panels<const T>() : constant(own.m),
               .row = image * conv.g.rows,
               .panel = at,
               .count = conv.present(block.out, panel),
               .gamma = read<T>(gamma)[s] + c,
               .beta = read<T>(beta)[s] + c,
               .xhat = block.output_image(xhats[s], i) + c,
               .rstd = rstds[s] + i * block.out + c,
               .p = block.pooled_image(ps[s], i) + c,
               .scratch = own.scratch},
              {.m_dot = constant(own.m_dot),
               .gamma_dot = read<T>(gamma_dot)[s] + c,
               .beta_dot = read<T>(beta_dot)[s] + c,
               .xhat_dot = block.output_image(xhat_dots[s], i) + c,
               .rstd_dot = rstd_dots[s] + i * block.out + c,
               .p_dot = block.pooled_image(p_dots[s], i) + c});
        };
        if (with_u) conv.filters_within(read<T>(w)[s], columns, buffers.u);
        conv.filters_within(read<T>(w_dot)[s], columns, buffers.u_dot);
        const Operand v = buffers.own[images.owner].v, v_dot = buffers.own[images.owner].v_dot;
        const Product primal = {v, buffers.u}, by_w = {v, buffers.u_dot};
        const Product by_a = {v_dot, buffers.u};
        const Sum<T> sum = {{primal}, own.m};
        if (a_dot.defined()) {
          const Sum<T> both = {{by_w, by_a}, own.m_dot};
          if (given) return conv.multiply(images.count, columns, {both}, use);
          return conv.multiply(images.count, columns, {sum, both}, use);
        }
        const Sum<T> one = {{by_w}, own.m_dot};
        if (given) return conv.multiply(images.count, columns, {one}, use);
        conv.multiply(images.count, columns, {sum, one}, use);
      };
      conv.for_groups(block.batch, conv.out_panels(), prepare, multiply);
    }
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> conv_block_jvp(
    const Tensor& a, const std::optional<Tensor>& a_dot, const Tensor& w, const Tensor& w_dot,
    const Tensor& gamma, const Tensor& gamma_dot, const Tensor& beta, const Tensor& beta_dot,
    const std::optional<Tensor>& xhat, const std::optional<Tensor>& rstd, bool bf16) {
  const Block block("conv_block_jvp", a, w, bf16);
  const bool given = xhat && rstd;
  std::tuple results = {
      block.empty_pooled(), block.empty_pooled(), block.empty_output(), block.empty_statistic(),
      block.empty_output(!given), block.empty_statistic(!given)};
  const auto& [p, p_dot, xhat_dot, rstd_dot, new_xhat, new_rstd] = results;
  conv_block_jvp_into(
      a, a_dot, w, w_dot, gamma, gamma_dot, beta, beta_dot, xhat, rstd, bf16, p, p_dot, xhat_dot,
      rstd_dot, new_xhat, new_rstd, std::nullopt);
  return results;
}

void conv_block_backward_jvp_into(
    const Tensor& gp_in, const Tensor& gp_dot_in, const Tensor& a_in,
    const std::optional<Tensor>& a_dot_in, const Tensor& w_in, const Tensor& w_dot_in,
    const Tensor& gamma_in, const Tensor& gamma_dot_in, const Tensor& beta_in,
    const Tensor& xhat_in, const Tensor& rstd_in, const Tensor& xhat_dot_in,
    const Tensor& rstd_dot_in, std::array<bool, 3> needs, bool bf16, const Tensor& ga_dot,
    const Tensor& gw_dot, const Tensor& ggamma_dot, const Tensor& gbeta_dot, const Tensor& ga,
    const std::optional<Tensor>& scratch) {
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  Block block("conv_block_backward_jvp", a_in, w_in, bf16);
  const auto [need_a_dot, need_parameters, need_a] = needs;
  const Tensor gp = block.pooled("gp", gp_in), gp_dot = block.pooled("gp_dot", gp_dot_in);
  const Tensor a = block.input("a", a_in);
  const Tensor a_dot = a_dot_in ? block.input("a_dot", *a_dot_in) : Tensor();
  const Tensor w = block.filters("w", w_in), w_dot = block.filters("w_dot", w_dot_in);
  const Tensor gamma = block.affine("gamma", gamma_in);
  const Tensor gamma_dot = block.affine("gamma_dot", gamma_dot_in);
  const Tensor beta = block.affine("beta", beta_in);
  const Tensor xhat = output_or_none(block, "xhat", xhat_in);
  const Tensor rstd = block.statistic("rstd", rstd_in);
  const Tensor xhat_dot = output_or_none(block, "xhat_dot", xhat_dot_in);
  const Tensor rstd_dot = block.statistic("rstd_dot", rstd_dot_in);
  block.check_input_result("ga_dot", ga_dot, need_a_dot);
  block.check_input_result("ga", ga, need_a);
  block.check_parameter_results(gw_dot, ggamma_dot, gbeta_dot, need_parameters);
  if (few_channels(block)) {
    PatchTensors tensors = {
        .a = a, .a_dot = a_dot, .w = w, .w_dot = w_dot, .gamma = gamma, .gamma_dot = gamma_dot,
        .beta = beta, .gp = gp, .gp_dot = gp_dot};
    if (need_parameters) {
      tensors.gw = gw_dot, tensors.ggamma = ggamma_dot, tensors.gbeta = gbeta_dot;
    }
    if (need_a) tensors.ga = ga;
    if (need_a_dot) tensors.ga_dot = ga_dot;
    return compute_by_patches(PatchOp::backward_jvp, block, tensors, scratch);
  }
  AT_DISPATCH_FLOATING_TYPES(a.scalar_type(), "fastmtt::conv_block_backward_jvp", [&] {
    using T = scalar_t;
    const Convolution<T> conv(block, 3, 1);
    Tensor room = or_fresh(scratch);
    const auto buffers = carve<BackwardJvpBuffers<T>>(room, conv, block);
    block.check_apart(room);
    const auto gas = write<T>(ga, need_a), ga_dots = write<T>(ga_dot, need_a_dot);
    const bool two_terms = need_parameters && a_dot.defined();
    for (int64_t s = 0; s < block.students; ++s) {
      if (need_a_dot || need_a) conv.flipped_before(read<T>(w)[s], buffers.u);
      if (need_a_dot) conv.flipped_before(read<T>(w_dot)[s], buffers.u_dot);
      conv.for_chunks(block.batch, [&](int64_t chunk, int64_t images) {
        const auto prepare = [&](const Images& group) {
          const auto& own = buffers.own[group.thread];
          for (int64_t k = 0; k < group.count * conv.out_panels(); ++k) {
            const int64_t image = group.first + k / conv.out_panels();
            const int64_t panel = k % conv.out_panels();
            const int64_t i = chunk + image, c = panel * kLanes<T>;
            conv.kernels.backward_jvp(
                conv.g,
                {.row = image * conv.g.rows,
                 .panel = panel,
                 .count = conv.present(block.out, panel),
                 .gp = block.pooled_image(read<T>(gp)[s], i) + c,
                 .xhat = block.output_image(read<T>(xhat)[s], i) + c,
                 .rstd = read<T>(rstd)[s] + i * block.out + c,
                 .gamma = read<T>(gamma)[s] + c,
                 .beta = read<T>(beta)[s] + c,
                 .z = need_a_dot || need_a ? buffers.z : Operand(),
                 .z_pairs = two_terms ? buffers.z_pairs : Operand(),
                 .ggamma = buffers.shares.gamma(i) + c,
                 .gbeta = buffers.shares.beta(i) + c,
                 .scratch = own.scratch},
                {.gp_dot = block.pooled_image(read<T>(gp_dot)[s], i) + c,
                 .xhat_dot = block.output_image(read<T>(xhat_dot)[s], i) + c,
                 .rstd_dot = read<T>(rstd_dot)[s] + i * block.out + c,
                 .gamma_dot = read<T>(gamma_dot)[s] + c,
                 .z_dot = need_a_dot ? buffers.z_dot : Operand(),
                 .z_dot_pairs = need_parameters ? buffers.z_dot_pairs : Operand()});
          }
          const int64_t row = group.first * conv.g.rows, image = chunk + group.first;
          if (!need_parameters) return;
          conv.lift(block.image(read<T>(a)[s], image), group.count, buffers.v, row, true);
          if (!two_terms) return;
          conv.lift(block.image(read<T>(a_dot)[s], image), group.count, buffers.v_dot, row, true);
        };
        const auto multiply = [&](const Images& group, const Columns& columns) {
          const auto& own = buffers.own[group.thread];
          const int64_t row = group.first * conv.g.rows, image = chunk + group.first;
          const Operand z = conv.from_row(buffers.z, row);
          const Operand z_dot = conv.from_row(buffers.z_dot, row);
          conv.flipped_within(read<T>(w)[s], columns, buffers.u);
          if (need_a_dot) {
            conv.flipped_within(read<T>(w_dot)[s], columns, buffers.u_dot);
            conv.multiply_flipped(
                group.count, columns, {{{z_dot, buffers.u}, {z, buffers.u_dot}}, own.gv},
                block.image(ga_dots[s], image), own.scratch);
          }
          if (!need_a) return;
          conv.multiply_flipped(
              group.count, columns, {{{z, buffers.u}}, own.gv}, block.image(gas[s], image),
              own.scratch);
        };
        const int64_t panels = need_a_dot || need_a ? conv.in_panels() : 0;
        conv.for_groups(images, panels, prepare, multiply);
        if (two_terms) {
          conv.multiply_transposed(
              {{buffers.v, buffers.z_dot_pairs}, {buffers.v_dot, buffers.z_pairs}}, images,
              buffers.gu, chunk > 0);
        } else if (need_parameters) {
          conv.multiply_transposed({{buffers.v, buffers.z_dot_pairs}}, images, buffers.gu, chunk > 0);
        }
      });
      if (need_parameters) {
        conv.from_filters(buffers.gu, write<T>(gw_dot)[s]);
        buffers.shares.add_up(write<T>(ggamma_dot)[s], write<T>(gbeta_dot)[s]);
      }
    }
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> conv_block_backward_jvp(
    const Tensor& gp, const Tensor& gp_dot, const Tensor& a, const std::optional<Tensor>& a_dot,
    const Tensor& w, const Tensor& w_dot, const Tensor& gamma, const Tensor& gamma_dot,
    const Tensor& beta, const Tensor& xhat, const Tensor& rstd, const Tensor& xhat_dot,
    const Tensor& rstd_dot, std::array<bool, 3> needs, bool bf16) {
  const Block block("conv_block_backward_jvp", a, w, bf16);
  std::tuple results = {
      block.empty_input(needs[0]), block.empty_filters(needs[1]), block.empty_affine(needs[1]),
      block.empty_affine(needs[1]), block.empty_input(needs[2])};
  const auto& [ga_dot, gw_dot, ggamma_dot, gbeta_dot, ga] = results;
  conv_block_backward_jvp_into(
      gp, gp_dot, a, a_dot, w, w_dot, gamma, gamma_dot, beta, xhat, rstd, xhat_dot, rstd_dot,
      needs, bf16, ga_dot, gw_dot, ggamma_dot, gbeta_dot, ga, std::nullopt);
  return results;
}

}  // namespace
}  // namespace fastmtt

TORCH_LIBRARY_IMPL(fastmtt, CPU, m) {
  m.impl("conv_block_jvp", &fastmtt::conv_block_jvp);
  m.impl("conv_block_jvp.into", &fastmtt::conv_block_jvp_into);
  m.impl("conv_block_backward_jvp", &fastmtt::conv_block_backward_jvp);
  m.impl("conv_block_backward_jvp.into", &fastmtt::conv_block_backward_jvp_into);
}
