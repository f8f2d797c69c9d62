// The weight gradient on Hopper as an op for kernels/hopper_weight_gradient.py alone: it has no reference,
// and writes into a given tensor. A build without code for sm_90a has none.

#ifdef FASTMTT_SM90A

#include "hopper_weight_gradient.h"

#include <optional>

#include "op.h"

namespace fastmtt::cuda {
namespace {

using at::Tensor;
using hopper::gradient::Arguments, hopper::gradient::kChannels, hopper::gradient::kTaps;

// A float32 tensor without gaps that begins where tensor copies may.
void check(const char* name, const Tensor& t, at::IntArrayRef shape, const Tensor& like) {
  TORCH_CHECK(
      t.sizes() == shape && t.scalar_type() == at::kFloat && t.device() == like.device() &&
          t.is_contiguous() && reinterpret_cast<uintptr_t>(t.const_data_ptr()) % 16 == 0,
      "fastmtt_hopper::weight_gradient: ", name, " must be a contiguous float32 tensor of shape ",
      shape, " on ", like.device(), " that begins at a multiple of 16 bytes, got ",
      t.scalar_type(), " of shape ", t.sizes(), " and strides ", t.strides(), " on ", t.device());
}

void check_result(const Tensor& parts, const Tensor& a) {
  TORCH_CHECK(
      parts.dim() == 3 && parts.size(1) > 0,
      "fastmtt_hopper::weight_gradient: parts must have shape [S,n,9*128*128] with n >= 1, got ",
      parts.sizes());
  check("parts", parts, {a.size(0), parts.size(1), kTaps * kChannels * kChannels}, a);
  raise_version(parts);
}

// parts [S,n,9*128*128] sum over n to the weight gradient of one pair or two, [S,B,side,side,128].
void weight_gradient(
    const Tensor& a, const Tensor& gz, const std::optional<Tensor>& a_second,
    const std::optional<Tensor>& gz_second, int64_t plan, const Tensor& parts) {
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  TORCH_CHECK(
      a.dim() == 5 && (a.size(2) == 8 || a.size(2) == 16) && a.size(3) == a.size(2) &&
          a.size(4) == kChannels && a.size(0) > 0 && a.size(1) > 0,
      "fastmtt_hopper::weight_gradient: a must have shape [S,B,8,8,128] or [S,B,16,16,128], none ",
      "empty, got ", a.sizes());
  TORCH_CHECK(
      plan >= 0 && plan < hopper::gradient::kPlans,
      "fastmtt_hopper::weight_gradient: plan must be of 0..", hopper::gradient::kPlans - 1,
      ", got ", plan);
  TORCH_CHECK(
      a_second.has_value() == gz_second.has_value(),
      "fastmtt_hopper::weight_gradient: a_second and gz_second must be given together");
  check("a", a, a.sizes(), a);
  check("gz", gz, a.sizes(), a);
  Arguments given{};
  given.a = a.const_data_ptr<float>();
  given.gz = gz.const_data_ptr<float>();
  if (a_second) {
    check("a_second", *a_second, a.sizes(), a);
    check("gz_second", *gz_second, a.sizes(), a);
    given.a_second = a_second->const_data_ptr<float>();
    given.gz_second = gz_second->const_data_ptr<float>();
  }
  check_result(parts, a);
  given.parts = parts.mutable_data_ptr<float>();
  given.students = static_cast<int>(a.size(0));
  given.images = static_cast<int>(a.size(1));
  given.count = static_cast<int>(parts.size(1));
  const c10::cuda::CUDAGuard guard(a.device());
  C10_CUDA_CHECK(hopper::gradient::run(
      static_cast<int>(plan), static_cast<int>(a.size(2)), given,
      c10::cuda::getCurrentCUDAStream()));
}

TORCH_LIBRARY_FRAGMENT(fastmtt_hopper, m) {
  m.def(
      "weight_gradient(Tensor a, Tensor gz, Tensor? a_second, Tensor? gz_second, int plan,"
      " Tensor(a!) parts) -> ()",
      torch::dispatch(c10::DispatchKey::CUDA, &weight_gradient));
}

}  // namespace
}  // namespace fastmtt::cuda

#endif
