// 3x3 convolutions, padding 1, by PyTorch's own kernels (oneDNN in float32): images [n,H,W,C].

#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/conv2d.h>
#include <ATen/ops/convolution_backward.h>

#include <array>
#include <tuple>

namespace fastmtt {

// [n,H,W,C] as the [n,C,H,W] view, channels last in memory, that PyTorch takes.
inline at::Tensor channels_first(const at::Tensor& images) {
  return images.permute({0, 3, 1, 2});
}

inline at::Tensor channels_last(const at::Tensor& images) {
  return images.permute({0, 2, 3, 1}).contiguous();
}

// One student's weights [3,3,Cin,Cout] in the order oneDNN takes without copying at every call.
// Always a copy: with one channel contiguous() keeps strides that slow_conv2d does not recognise.
inline at::Tensor filters(const at::Tensor& w) {
  return w.permute({3, 2, 0, 1}).clone(at::MemoryFormat::ChannelsLast);
}

inline at::Tensor convolve(const at::Tensor& a, const at::Tensor& filters) {
  const std::array<int64_t, 2> one = {1, 1};
  return channels_last(at::conv2d(channels_first(a), filters, {}, one, one));
}

// Cotangents of a, [n,H,W,Cin], and of the filters; undefined where not needed.
inline std::tuple<at::Tensor, at::Tensor> convolve_backward(
    const at::Tensor& gz, const at::Tensor& a, const at::Tensor& filters, bool need_a,
    bool need_filters) {
  const std::array<int64_t, 2> one = {1, 1}, zero = {0, 0};
  if (!need_a && !need_filters) return {};
  auto [ga, gfilters, unused] = at::convolution_backward(
      channels_first(gz), channels_first(a), filters, std::nullopt, one, one, one, false, zero, 1,
      {need_a, need_filters, false});
  return {need_a ? channels_last(ga) : at::Tensor(), gfilters};
}

// A student's gradient of its filters into its place in [S,3,3,Cin,Cout].
inline void store_filters(const at::Tensor& gw, int64_t student, const at::Tensor& gfilters) {
  gw.select(0, student).copy_(gfilters.permute({2, 3, 1, 0}));
}

}  // namespace fastmtt
