// dsa, dsa_transpose on a GPU: one launch each. An unknown kind makes NaN: kinds stay on the device.

#include <array>

#include "dsa_kernels.h"
#include "op.h"

namespace fastmtt::cuda {
namespace {

using at::Tensor;

template <bool kTransposed>
void map_images(
    const char* op, const Named& images, const Tensor& kind, const Tensor& values, double share,
    const Tensor& result) {
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  TORCH_CHECK(
      images.tensor.dim() == 5, "fastmtt::", op, ": ", images.name,
      " must have shape [S, B, C, H, W], got ", images.tensor.sizes());
  TORCH_CHECK(
      images.tensor.scalar_type() == at::kFloat || images.tensor.scalar_type() == at::kDouble,
      "fastmtt::", op, ": ", images.name, " must be float32 or float64, got ",
      images.tensor.scalar_type());
  const Tensor x = images.tensor.contiguous();
  const int64_t students = x.size(0), batch = x.size(1);
  TORCH_CHECK(
      kind.scalar_type() == at::kLong && kind.dim() == 1 && kind.size(0) == students,
      "fastmtt::", op, ": kind must be int64 of shape [", students, "], got ", kind.scalar_type(),
      " of shape ", kind.sizes());
  const std::array<int64_t, 3> values_shape = {students, batch, 3};
  TORCH_CHECK(
      values.is_floating_point() && values.sizes() == at::IntArrayRef(values_shape),
      "fastmtt::", op, ": values must be floating point of shape ", at::IntArrayRef(values_shape),
      ", got ", values.scalar_type(), " of shape ", values.sizes());
  check_devices(op, images, {{"kind", kind}, {"values", values}, {"result", result}});
  check_result(op, {"result", result}, x.sizes(), x);
  check_apart(op, {"result", result}, {{images.name, x}, {"kind", kind}, {"values", values}});
  if (x.numel() == 0) return;
  const Tensor kinds = kind.contiguous(), numbers = values.to(at::kDouble).contiguous();
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "fastmtt::dsa", [&] {
    run(Dsa<scalar_t, kTransposed>{students * batch, batch, x.size(2), x.size(3), x.size(4), share,
                                   x.const_data_ptr<scalar_t>(), kinds.const_data_ptr<int64_t>(),
                                   numbers.const_data_ptr<double>(),
                                   result.mutable_data_ptr<scalar_t>()},
        x);
  });
}

void dsa_into(
    const Tensor& x, const Tensor& kind, const Tensor& values, double cutout,
    const Tensor& result) {
  map_images<false>("dsa", {"x", x}, kind, values, cutout, result);
}

Tensor dsa(const Tensor& x, const Tensor& kind, const Tensor& values, double cutout) {
  const Tensor result = at::empty(x.sizes(), x.options());
  dsa_into(x, kind, values, cutout, result);
  return result;
}

void dsa_transpose_into(
    const Tensor& g, const Tensor& kind, const Tensor& values, double cutout,
    const Tensor& result) {
  map_images<true>("dsa_transpose", {"g", g}, kind, values, cutout, result);
}

Tensor dsa_transpose(const Tensor& g, const Tensor& kind, const Tensor& values, double cutout) {
  const Tensor result = at::empty(g.sizes(), g.options());
  dsa_transpose_into(g, kind, values, cutout, result);
  return result;
}

}  // namespace
}  // namespace fastmtt::cuda

FASTMTT_CUDA_OPS(m) {
  m.impl("dsa", &fastmtt::cuda::dsa);
  m.impl("dsa.into", &fastmtt::cuda::dsa_into);
  m.impl("dsa_transpose", &fastmtt::cuda::dsa_transpose);
  m.impl("dsa_transpose.into", &fastmtt::cuda::dsa_transpose_into);
}
