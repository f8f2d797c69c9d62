// The tangents of the ConvNet block and of its backward on a GPU.
//
// A tangent's two convolutions are two calls whose results the next pass over them adds: one call
// on concatenated channels would first have to copy both of its operands together.

#include <array>
#include <optional>
#include <tuple>

#include "block_op.h"
#include "norm_backward_kernels.h"
#include "norm_kernels.h"

namespace fastmtt::cuda {
namespace {

void conv_block_jvp_into(
    const Tensor& a_in, const std::optional<Tensor>& a_dot_in, const Tensor& w_in,
    const Tensor& w_dot_in, const Tensor& gamma_in, const Tensor& gamma_dot_in,
    const Tensor& beta_in, const Tensor& beta_dot_in, const std::optional<Tensor>& xhat_in,
    const std::optional<Tensor>& rstd_in, bool bf16, const Tensor& p, const Tensor& p_dot,
    const Tensor& xhat_dot, const Tensor& rstd_dot, const Tensor& new_xhat,
    const Tensor& new_rstd, const std::optional<Tensor>&) {
  const BlockGuard guard;
  Block block("conv_block_jvp", a_in, w_in, bf16);
  const Tensor a = block.input("a", a_in);
  const bool moves = a_dot_in.has_value(), given = xhat_in && rstd_in;
  const Tensor a_dot = moves ? block.input("a_dot", *a_dot_in) : Tensor();
  const Tensor w = block.filters("w", w_in), w_dot = block.filters("w_dot", w_dot_in);
  const Tensor gamma = block.affine("gamma", gamma_in);
  const Tensor gamma_dot = block.affine("gamma_dot", gamma_dot_in);
  const Tensor beta = block.affine("beta", beta_in);
  const Tensor beta_dot = block.affine("beta_dot", beta_dot_in);
  block.check_pooled_result("p", p);
  block.check_pooled_result("p_dot", p_dot);
  block.check_output_result("xhat_dot", xhat_dot);
  block.check_statistic_result("rstd_dot", rstd_dot);
  block.check_output_result("xhat", new_xhat, !given);
  block.check_statistic_result("rstd", new_rstd, !given);
  const Tensor xhat = given ? block.output("xhat", *xhat_in) : new_xhat;
  const Tensor rstd = given ? block.statistic("rstd", *rstd_in) : new_rstd;
  block.check_apart();

  const Convolution conv(bf16, block.in);
  const Tensor x = conv.operand(a), more = block.empty_output(moves);
  const Tensor filters = !given || moves ? conv.filters(w) : Tensor();
  if (!given) conv.convolve(x, filters, xhat);
  conv.convolve(x, conv.filters(w_dot), xhat_dot);
  if (moves) conv.convolve(conv.operand(a_dot), filters, more);
  const auto pass = [&]<typename T>(const Planes<T>& planes, auto whole) {
    Norm<T, true, whole> norm{.planes = planes, .given = given};
    norm.z = students_of<T>(xhat);
    norm.z_dot = students_of<T>(xhat_dot);
    if (moves) norm.z_dot_more = students_of<T>(more);
    norm.gamma = students_of<T>(gamma);
    norm.gamma_dot = students_of<T>(gamma_dot);
    norm.beta = students_of<T>(beta);
    norm.beta_dot = students_of<T>(beta_dot);
    norm.xhat = places_of<T>(!given, new_xhat);
    norm.rstd = places_of<T>(!given, new_rstd);
    norm.known_rstd = students_of<T>(rstd);
    norm.xhat_dot = places_of<T>(true, xhat_dot);
    norm.rstd_dot = places_of<T>(true, rstd_dot);
    norm.p = places_of<T>(true, p);
    norm.p_dot = places_of<T>(true, p_dot);
    run(norm, a);
  };
  with_planes(block, {p, p_dot, xhat, xhat_dot, more}, pass);
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
    const std::optional<Tensor>&) {
  const BlockGuard guard;
  Block block("conv_block_backward_jvp", a_in, w_in, bf16);
  const auto [need_a_dot, need_parameters, need_a] = needs;
  const bool moves = a_dot_in.has_value();
  const Tensor gp = block.pooled("gp", gp_in), gp_dot = block.pooled("gp_dot", gp_dot_in);
  const Tensor a = block.input("a", a_in);
  const Tensor a_dot = moves ? block.input("a_dot", *a_dot_in) : Tensor();
  const Tensor w = block.filters("w", w_in), w_dot = block.filters("w_dot", w_dot_in);
  const Tensor gamma = block.affine("gamma", gamma_in);
  const Tensor gamma_dot = block.affine("gamma_dot", gamma_dot_in);
  const Tensor beta = block.affine("beta", beta_in);
  const Tensor xhat = block.output("xhat", xhat_in), rstd = block.statistic("rstd", rstd_in);
  const Tensor xhat_dot = block.output("xhat_dot", xhat_dot_in);
  const Tensor rstd_dot = block.statistic("rstd_dot", rstd_dot_in);
  block.check_input_result("ga_dot", ga_dot, need_a_dot);
  block.check_input_result("ga", ga, need_a);
  block.check_parameter_results(gw_dot, ggamma_dot, gbeta_dot, need_parameters);
  block.check_apart();
  if (!need_a_dot && !need_parameters && !need_a) return;

  const bool two_terms = need_parameters && moves;
  const bool need_gz = need_a_dot || need_a || two_terms;
  const bool need_gz_dot = need_a_dot || need_parameters;
  const Tensor gz = block.empty_output(need_gz), gz_dot = block.empty_output(need_gz_dot);
  const Tensor shares = empty_shares(block, need_parameters);
  const auto pass = [&]<typename T>(const Planes<T>& planes, auto whole) {
    NormBackward<T, true, whole> norm{.planes = planes};
    norm.gp = students_of<T>(gp);
    norm.gp_dot = students_of<T>(gp_dot);
    norm.xhat = students_of<T>(xhat);
    norm.xhat_dot = students_of<T>(xhat_dot);
    norm.rstd = students_of<T>(rstd);
    norm.rstd_dot = students_of<T>(rstd_dot);
    norm.gamma = students_of<T>(gamma);
    norm.gamma_dot = students_of<T>(gamma_dot);
    norm.beta = students_of<T>(beta);
    norm.gz = places_of<T>(need_gz, gz);
    norm.gz_dot = places_of<T>(need_gz_dot, gz_dot);
    norm.ggamma = places_of<T>(need_parameters, ggamma_dot);
    norm.gbeta = places_of<T>(need_parameters, gbeta_dot);
    norm.shares = shares.mutable_data_ptr<double>();
    run(norm, a);
  };
  with_planes(block, {gp, gp_dot, xhat, xhat_dot, gz, gz_dot}, pass);
  const Convolution conv(bf16, block.in);
  const Tensor g = conv.operand(gz), g_dot = conv.operand(gz_dot);
  const Tensor flipped = need_a_dot || need_a ? conv.flipped(w) : Tensor();
  if (need_a) conv.convolve(g, flipped, ga);
  if (need_a_dot) {
    const Tensor more = block.empty_input(true);
    conv.convolve(g_dot, flipped, ga_dot);
    conv.convolve(g, conv.flipped(w_dot), more);
    ga_dot.add_(more);
  }
  if (!need_parameters) return;
  using Pair = Convolution::Pair;
  const Pair second = two_terms ? Pair{conv.operand(a_dot), g} : Pair();
  conv.filter_gradient({conv.operand(a), g_dot}, second, gw_dot);
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
}  // namespace fastmtt::cuda

FASTMTT_CUDA_OPS(m) {
  m.impl("conv_block_jvp", &fastmtt::cuda::conv_block_jvp);
  m.impl("conv_block_jvp.into", &fastmtt::cuda::conv_block_jvp_into);
  m.impl("conv_block_backward_jvp", &fastmtt::cuda::conv_block_backward_jvp);
  m.impl("conv_block_backward_jvp.into", &fastmtt::cuda::conv_block_backward_jvp_into);
}
