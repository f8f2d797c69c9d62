// The Hopper convolution as ops of the namespace fastmtt_hopper, for kernels/hopper.py alone: they
// have no reference, and write into given tensors. A build without code for sm_90a has none.

#if defined(FASTMTT_SM90A) || defined(FASTMTT_ON_HOST)

#include <optional>
#include <vector>

#include "hopper_conv_kernels.h"
#include "op.h"

#ifdef FASTMTT_ON_HOST
#define FASTMTT_HOPPER_LIBRARY(m) TORCH_LIBRARY(fastmtt_hopper_on_host, m)
constexpr auto kKey = c10::DispatchKey::CPU;
#else
#define FASTMTT_HOPPER_LIBRARY(m) TORCH_LIBRARY(fastmtt_hopper, m)
constexpr auto kKey = c10::DispatchKey::CUDA;
#endif

namespace fastmtt::cuda {
namespace {

using at::Tensor;
using hopper::kBoth, hopper::kChannels, hopper::kPrimal, hopper::kTangent, hopper::kPlans;
using Optional = std::optional<Tensor>;

hopper::Mode mode_of(bool primal, bool tangent) {
  TORCH_CHECK(primal || tangent, "fastmtt_hopper: neither primal nor tangent is asked for");
  return primal && tangent ? kBoth : primal ? kPrimal : kTangent;
}

// The numbers of those that compute z, z_dot or both on planes of a side.
std::vector<int64_t> plans(bool primal, bool tangent, int64_t side) {
  std::vector<int64_t> found;
  for (int i = 0; i < hopper::kPlanCount; ++i) {
    if (kPlans[i].mode == mode_of(primal, tangent) && kPlans[i].side == side) found.push_back(i);
  }
  return found;
}

// A convolution as its arguments are checked one by one.
class Call {
 public:
  Call(const char* op, const Tensor& a, int64_t plan, hopper::Mode mode, bool norm)
      : op_(op), a_(a) {
    TORCH_CHECK(
        a.dim() == 5 && a.size(4) == kChannels && a.size(2) == a.size(3), "fastmtt_hopper::", op,
        ": a must have shape [S,B,side,side,", kChannels, "], got ", a.sizes());
    TORCH_CHECK(
        plan >= 0 && plan < hopper::kPlanCount && kPlans[plan].mode == mode &&
            kPlans[plan].side == a.size(2),
        "fastmtt_hopper::", op, ": plan ", plan, " is not for this call on planes of side ",
        a.size(2), "; fastmtt_hopper::plans names those that are");
    convolution.plan = static_cast<int>(plan);
    convolution.norm = norm;
    convolution.students = static_cast<int>(a.size(0));
    convolution.images = static_cast<int>(a.size(1));
    layout_.students = convolution.students;
    convolution.x = read("a", a, a.sizes());
  }

  std::vector<int64_t> planes() const { return {a_.size(0), a_.size(1), kChannels}; }
  std::vector<int64_t> pooled() const {
    return {a_.size(0), a_.size(1), a_.size(2) / 2, a_.size(3) / 2, kChannels};
  }

  // What has a student's numbers one after another, in float32, and begins where copies may.
  const float* read(const char* name, const Tensor& t, at::IntArrayRef shape) {
    check(name, t, shape);
    TORCH_CHECK(
        t.is_contiguous() && reinterpret_cast<uintptr_t>(t.const_data_ptr()) % 16 == 0,
        "fastmtt_hopper::", op_, ": ", name,
        " must be contiguous and begin at a multiple of 16 bytes, got strides ", t.strides());
    return t.const_data_ptr<float>();
  }

  float* result(const char* name, const Tensor& t, at::IntArrayRef shape) {
    read(name, t, shape);
    check_apart(op_, {name, t}, {{"a", a_}});
    raise_version(t);
    return t.mutable_data_ptr<float>();
  }

  // Parameters may lie anywhere. Gamma and beta are given where a norm follows.
  void primal(const Tensor& w, const Tensor* gamma = nullptr, const Tensor* beta = nullptr) {
    layout_.primal = {weights("w", w), vector("gamma", gamma), vector("beta", beta)};
    layout_.parts = 1;
  }

  void tangent(
      const Tensor& a_dot, const Tensor& w_dot, const Tensor* gamma_dot = nullptr,
      const Tensor* beta_dot = nullptr) {
    convolution.x_dot = read("a_dot", a_dot, a_.sizes());
    layout_.tangent = {
        weights("w_dot", w_dot), vector("gamma_dot", gamma_dot), vector("beta_dot", beta_dot)};
    layout_.parts = 2;
  }

  void launch(bool transposed = false) {
    if (a_.numel() == 0) return;
    const int64_t parts = layout_.parts, students = layout_.students;
    const Tensor weights =
        at::empty({parts, students, hopper::kTaps, kChannels, kChannels}, a_.options());
    const Tensor vectors = at::empty({parts, 2, students, kChannels}, a_.options());
    layout_.transposed = transposed;
    layout_.weights = weights.mutable_data_ptr<float>();
    layout_.vectors = vectors.mutable_data_ptr<float>();
    convolution.weights = layout_.weights;
    convolution.vectors = layout_.vectors;
    run(layout_, a_);
    run(convolution, a_);
  }

  hopper::Convolution convolution{};

 private:
  void check(const char* name, const Tensor& t, at::IntArrayRef shape) const {
    TORCH_CHECK(
        t.sizes() == shape && t.scalar_type() == at::kFloat && t.device() == a_.device(),
        "fastmtt_hopper::", op_, ": ", name, " must be a float32 tensor of shape ", shape, " on ",
        a_.device(), ", got ", t.scalar_type(), " of shape ", t.sizes(), " on ", t.device());
  }

  hopper::Parameter parameter(const char* name, const Tensor& t, at::IntArrayRef shape) const {
    check(name, t, shape);
    TORCH_CHECK(
        t.numel() == 0 || t.select(0, 0).is_contiguous(), "fastmtt_hopper::", op_, ": ", name,
        " must be contiguous for each student, got strides ", t.strides());
    return {t.const_data_ptr<float>(), t.stride(0)};
  }

  hopper::Parameter weights(const char* name, const Tensor& t) const {
    return parameter(name, t, {a_.size(0), 3, 3, kChannels, kChannels});
  }

  hopper::Parameter vector(const char* name, const Tensor* t) const {
    if (t == nullptr) return {nullptr, 0};
    return parameter(name, *t, {a_.size(0), kChannels});
  }

  const char* op_;
  const Tensor& a_;
  hopper::LayOut layout_{};
};

void conv_block(
    const Tensor& a, const Tensor& w, const Tensor& gamma, const Tensor& beta, const Tensor& p,
    const Tensor& xhat, const Tensor& rstd, int64_t plan) {
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  Call call("conv_block", a, plan, kPrimal, true);
  call.primal(w, &gamma, &beta);
  call.convolution.p = call.result("p", p, call.pooled());
  call.convolution.xhat = call.result("xhat", xhat, a.sizes());
  call.convolution.rstd = call.result("rstd", rstd, call.planes());
  call.launch();
}

void conv_block_jvp(
    const Tensor& a, const Tensor& a_dot, const Tensor& w, const Tensor& w_dot,
    const Tensor& gamma, const Tensor& gamma_dot, const Tensor& beta, const Tensor& beta_dot,
    bool given, const Tensor& p, const Tensor& p_dot, const Tensor& xhat_dot,
    const Tensor& rstd_dot, const Tensor& xhat, const Tensor& rstd, int64_t plan) {
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  Call call("conv_block_jvp", a, plan, given ? kTangent : kBoth, true);
  call.primal(w, &gamma, &beta);
  call.tangent(a_dot, w_dot, &gamma_dot, &beta_dot);
  hopper::Convolution& to = call.convolution;
  if (given) {  // then they are only read
    to.xhat = const_cast<float*>(call.read("xhat", xhat, a.sizes()));
    to.rstd = const_cast<float*>(call.read("rstd", rstd, call.planes()));
  } else {
    to.xhat = call.result("xhat", xhat, a.sizes());
    to.rstd = call.result("rstd", rstd, call.planes());
  }
  to.p = call.result("p", p, call.pooled());
  to.p_dot = call.result("p_dot", p_dot, call.pooled());
  to.xhat_dot = call.result("xhat_dot", xhat_dot, a.sizes());
  to.rstd_dot = call.result("rstd_dot", rstd_dot, call.planes());
  call.launch();
}

void convolution(
    const Tensor& a, const Optional& a_dot, const Tensor& w, const Optional& w_dot,
    bool transposed, const Optional& out, const Optional& out_dot, int64_t plan) {
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  const hopper::Mode mode = mode_of(out.has_value(), out_dot.has_value());
  TORCH_CHECK(
      out_dot.has_value() == a_dot.has_value() && out_dot.has_value() == w_dot.has_value(),
      "fastmtt_hopper::convolution: out_dot, a_dot and w_dot must be given together");
  Call call("convolution", a, plan, mode, false);
  call.primal(w);
  if (mode != kPrimal) {
    call.tangent(*a_dot, *w_dot);
    call.convolution.z_dot = call.result("out_dot", *out_dot, a.sizes());
  }
  if (mode != kTangent) call.convolution.z = call.result("out", *out, a.sizes());
  call.launch(transposed);
}

FASTMTT_HOPPER_LIBRARY(m) {
  m.def("plans(bool primal, bool tangent, int side) -> int[]", &plans);
  m.def(
      "conv_block(Tensor a, Tensor w, Tensor gamma, Tensor beta, Tensor(a!) p, Tensor(b!) xhat,"
      " Tensor(c!) rstd, int plan) -> ()",
      torch::dispatch(kKey, &conv_block));
  m.def(
      "conv_block_jvp(Tensor a, Tensor a_dot, Tensor w, Tensor w_dot, Tensor gamma,"
      " Tensor gamma_dot, Tensor beta, Tensor beta_dot, bool given, Tensor(a!) p,"
      " Tensor(b!) p_dot, Tensor(c!) xhat_dot, Tensor(d!) rstd_dot, Tensor(e!) xhat,"
      " Tensor(f!) rstd, int plan) -> ()",
      torch::dispatch(kKey, &conv_block_jvp));
  m.def(
      "convolution(Tensor a, Tensor? a_dot, Tensor w, Tensor? w_dot, bool transposed,"
      " Tensor(a!)? out, Tensor(b!)? out_dot, int plan) -> ()",
      torch::dispatch(kKey, &convolution));
}

}  // namespace
}  // namespace fastmtt::cuda

#endif
