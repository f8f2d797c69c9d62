// The ConvNet block on a GPU, and its backward: cuDNN's convolutions, and one launch for the norm,
// the ReLU and the pool; conv_block_jvp_ops.cpp has the tangents of both.

#include <array>
#include <optional>
#include <tuple>

#include "block_op.h"
#include "norm_backward_kernels.h"
#include "norm_kernels.h"

namespace fastmtt::cuda {
namespace {

void conv_block_into(
    const Tensor& a_in, const Tensor& w_in, const Tensor& gamma_in, const Tensor& beta_in,
    bool bf16, const Tensor& p, const Tensor& xhat, const Tensor& rstd,
    const std::optional<Tensor>&) {
  const BlockGuard guard;
  Block block("conv_block", a_in, w_in, bf16);
  const Tensor a = block.input("a", a_in), w = block.filters("w", w_in);
  const Tensor gamma = block.affine("gamma", gamma_in), beta = block.affine("beta", beta_in);
  block.check_pooled_result("p", p);
  block.check_output_result("xhat", xhat);
  block.check_statistic_result("rstd", rstd);
  block.check_apart();
  const Convolution conv(bf16, block.in);
  conv.convolve(conv.operand(a), conv.filters(w), xhat);
  const auto pass = [&]<typename T>(const Planes<T>& planes, auto whole) {
    Norm<T, false, whole> norm{.planes = planes};
    norm.z = students_of<T>(xhat);
    norm.gamma = students_of<T>(gamma);
    norm.beta = students_of<T>(beta);
    norm.xhat = places_of<T>(true, xhat);
    norm.rstd = places_of<T>(true, rstd);
    norm.p = places_of<T>(true, p);
    run(norm, a);
  };
  with_planes(block, {p, xhat}, pass);
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
    const std::optional<Tensor>&) {
  const BlockGuard guard;
  Block block("conv_block_backward", a_in, w_in, bf16);
  const auto [need_a, need_parameters] = needs;
  const Tensor a = block.input("a", a_in), w = block.filters("w", w_in);
  const Tensor gamma = block.affine("gamma", gamma_in), beta = block.affine("beta", beta_in);
  const Tensor gp = block.pooled("gp", gp_in), xhat = block.output("xhat", xhat_in);
  const Tensor rstd = block.statistic("rstd", rstd_in);
  block.check_input_result("ga", ga, need_a);
  block.check_parameter_results(gw, ggamma, gbeta, need_parameters);
  block.check_apart();
  if (!need_a && !need_parameters) return;
  const Tensor gz = block.empty_output(), shares = empty_shares(block, need_parameters);
  const auto pass = [&]<typename T>(const Planes<T>& planes, auto whole) {
    NormBackward<T, false, whole> norm{.planes = planes};
    norm.gp = students_of<T>(gp);
    norm.xhat = students_of<T>(xhat);
    norm.rstd = students_of<T>(rstd);
    norm.gamma = students_of<T>(gamma);
    norm.beta = students_of<T>(beta);
    norm.gz = places_of<T>(true, gz);
    norm.ggamma = places_of<T>(need_parameters, ggamma);
    norm.gbeta = places_of<T>(need_parameters, gbeta);
    norm.shares = shares.mutable_data_ptr<double>();
    run(norm, a);
  };
  with_planes(block, {gp, xhat, gz}, pass);
  const Convolution conv(bf16, block.in);
  const Tensor g = conv.operand(gz);
  if (need_a) conv.convolve(g, conv.flipped(w), ga);
  if (need_parameters) conv.filter_gradient({conv.operand(a), g}, {}, gw);
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
}  // namespace fastmtt::cuda

FASTMTT_CUDA_OPS(m) {
  m.impl("conv_block", &fastmtt::cuda::conv_block);
  m.impl("conv_block.into", &fastmtt::cuda::conv_block_into);
  m.impl("conv_block_backward", &fastmtt::cuda::conv_block_backward);
  m.impl("conv_block_backward.into", &fastmtt::cuda::conv_block_backward_into);
}
