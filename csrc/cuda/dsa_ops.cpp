// dsa, dsa_transpose on a GPU: one launch each.

#include <algorithm>

#include "../dsa_arguments.h"
#include "dsa_kernels.h"
#include "op.h"

namespace fastmtt::cuda {
namespace {

using at::Tensor;

template <typename T>
Images<T> images_of(const Tensor& x) {
  Images<T> images{x.const_data_ptr<T>(), {}};
  std::copy_n(x.strides().begin(), 5, images.strides);
  return images;
}

// Other dtypes than these two cost a launch more.
struct Numbers {
  explicit Numbers(const Tensor& values)
      : tensor(values.to(values.scalar_type() == at::kFloat ? at::kFloat : at::kDouble)
                   .contiguous()) {}

  Values values() const {
    if (tensor.scalar_type() == at::kFloat) return {tensor.const_data_ptr<float>(), nullptr};
    return {nullptr, tensor.const_data_ptr<double>()};
  }

  Tensor tensor;
};

template <bool kTransposed>
void map_images(
    const char* op, const Named& images, const Tensor& kind, const Tensor& values, double share,
    const Tensor& result) {
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  check_dsa(op, images, kind, values);
  check_devices(op, images, {{"kind", kind}, {"values", values}, {"result", result}});
  const Tensor& x = images.tensor;
  check_students_result(op, {"result", result}, x.sizes(), x);
  check_apart(op, {"result", result}, {images, {"kind", kind}, {"values", values}});
  if (x.numel() == 0) return;
  const Tensor kinds = kind.contiguous();
  const Numbers numbers(values);
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "fastmtt::dsa", [&] {
    run(Dsa<scalar_t, kTransposed>{
            {}, x.size(0), x.size(1), x.size(2), x.size(3), x.size(4), share,
            images_of<scalar_t>(x), kinds.const_data_ptr<int64_t>(), numbers.values(),
            result.mutable_data_ptr<scalar_t>(), result.stride(0)},
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
