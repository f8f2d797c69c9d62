// The head on a GPU: linear_xent, its cotangents and the tangents of both, one launch each.

#include <array>
#include <tuple>

#include "../head_arguments.h"
#include "linear_xent_kernels.h"
#include "op.h"

namespace fastmtt::cuda {
namespace {

using at::Tensor;

// The checks of every argument, and what the kernels read of it: students may lie apart.
struct Head : HeadArguments {
  using HeadArguments::HeadArguments;

  Tensor checked(const char* name, const Tensor& t, at::IntArrayRef shape) const {
    check(name, t, shape);
    return read(name, t);
  }
  Tensor checked_labels(const Tensor& y) const {
    check_labels(y);
    return read("y", y);
  }
  Tensor read(const char* name, const Tensor& t) const {
    check_devices(op, {"f", like}, {{name, t}});
    return t.select(0, 0).is_contiguous() ? t : t.contiguous();
  }
  void check_place(
      const char* name, const Tensor& t, at::IntArrayRef shape,
      std::initializer_list<Named> inputs) const {
    check_devices(op, {"f", like}, {{name, t}});
    check_students_result(op, {name, t}, shape, like);
    check_apart(op, {name, t}, inputs);
  }
  HeadSizes sizes() const { return {students, batch, classes, features}; }
};

template <typename T>
Labels<T> labels_of(const Tensor& y) {
  if (y.is_floating_point()) return {{nullptr, 0}, students_of<T>(y)};
  return {students_of<int64_t>(y), {nullptr, 0}};
}

// What linear_xent and its tangent read; of the first, tangents are the values themselves.
struct Point {
  Tensor f, f_dot, w, w_dot, b, logp, y;
};

void forward(
    const Head& head, bool tangent, const Point& at, const Tensor& loss, const Tensor& out) {
  AT_DISPATCH_FLOATING_TYPES(head.like.scalar_type(), "fastmtt::linear_xent", [&] {
    using T = scalar_t;
    LinearXent<T> kernel{
        head.sizes(), tangent, students_of<T>(at.f), students_of<T>(at.f_dot),
        students_of<T>(at.w), students_of<T>(at.w_dot), students_of<T>(at.b),
        students_of<T>(at.logp), labels_of<T>(at.y), loss.mutable_data_ptr<T>(),
        places_of<T>(true, out), nullptr, nullptr};
    const Tensor products =
        head.empty({head.students, kernel.pieces(), head.batch, head.classes});
    const Tensor shares =
        at::empty({head.students, head.batch}, head.like.options().dtype(at::kDouble));
    kernel.products = products.mutable_data_ptr<T>();
    kernel.shares = shares.mutable_data_ptr<double>();
    run(kernel, head.like);
  });
}

void linear_xent_into(
    const Tensor& f_in, const Tensor& w_in, const Tensor& b_in, const Tensor& y_in,
    const Tensor& loss, const Tensor& logp) {
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  const Head head("linear_xent", f_in, w_in);
  const Tensor f = head.read("f", f_in), w = head.read("w", w_in);
  const Tensor b = head.checked("b", b_in, head.bias_shape()), y = head.checked_labels(y_in);
  const std::initializer_list<Named> inputs = {{"f", f}, {"w", w}, {"b", b}, {"y", y}};
  head.check_place("loss", loss, {head.students}, inputs);
  head.check_place("logp", logp, head.logits_shape(), inputs);
  forward(head, false, {f, f, w, w, b, logp, y}, loss, logp);
}

std::tuple<Tensor, Tensor> linear_xent(
    const Tensor& f, const Tensor& w, const Tensor& b, const Tensor& y) {
  const Head head("linear_xent", f, w);
  const Tensor loss = head.empty({head.students}), logp = head.empty(head.logits_shape());
  linear_xent_into(f, w, b, y, loss, logp);
  return {loss, logp};
}

void linear_xent_jvp_into(
    const Tensor& f_in, const Tensor& f_dot_in, const Tensor& w_in, const Tensor& w_dot_in,
    const Tensor& b_dot_in, const Tensor& logp_in, const Tensor& y_in, const Tensor& loss_dot,
    const Tensor& logp_dot) {
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  const Head head("linear_xent_jvp", f_in, w_in);
  const Tensor f = head.read("f", f_in), w = head.read("w", w_in);
  const Tensor f_dot = head.checked("f_dot", f_dot_in, head.features_shape());
  const Tensor w_dot = head.checked("w_dot", w_dot_in, head.weights_shape());
  const Tensor b_dot = head.checked("b_dot", b_dot_in, head.bias_shape());
  const Tensor logp = head.checked("logp", logp_in, head.logits_shape());
  const Tensor y = head.checked_labels(y_in);
  const std::initializer_list<Named> inputs = {{"f", f},         {"f_dot", f_dot},
                                               {"w", w},         {"w_dot", w_dot},
                                               {"b_dot", b_dot}, {"logp", logp}, {"y", y}};
  head.check_place("loss_dot", loss_dot, {head.students}, inputs);
  head.check_place("logp_dot", logp_dot, head.logits_shape(), inputs);
  forward(head, true, {f, f_dot, w, w_dot, b_dot, logp, y}, loss_dot, logp_dot);
}

std::tuple<Tensor, Tensor> linear_xent_jvp(
    const Tensor& f, const Tensor& f_dot, const Tensor& w, const Tensor& w_dot,
    const Tensor& b_dot, const Tensor& logp, const Tensor& y) {
  const Head head("linear_xent_jvp", f, w);
  const Tensor loss_dot = head.empty({head.students});
  const Tensor logp_dot = head.empty(head.logits_shape());
  linear_xent_jvp_into(f, f_dot, w, w_dot, b_dot, logp, y, loss_dot, logp_dot);
  return {loss_dot, logp_dot};
}

// A result, if it is asked for.
struct Place {
  const char* name;
  const Tensor& tensor;
  bool needed;
};

// Where linear_xent_backward or its tangent write. Of the first, gf_dot is not asked for.
struct Cotangents {
  Place gf, gf_dot, gw, gb, gy;
};

void backward(
    const Head& head, bool tangent, const Point& at, const Tensor& logp_dot,
    const Cotangents& to) {
  const std::initializer_list<Named> inputs = {
      {"f", at.f},         {"f_dot", at.f_dot},     {"w", at.w}, {"w_dot", at.w_dot},
      {"logp", at.logp},   {"logp_dot", logp_dot},  {"y", at.y}};
  const auto check = [&](const Place& place, at::IntArrayRef shape) {
    if (place.needed) head.check_place(place.name, place.tensor, shape, inputs);
  };
  check(to.gf, head.features_shape());
  check(to.gf_dot, head.features_shape());
  check(to.gw, head.weights_shape());
  check(to.gb, head.bias_shape());
  check(to.gy, head.logits_shape());
  const Tensor g = head.empty(head.logits_shape());
  const Tensor g_dot = head.empty_if(tangent, head.logits_shape());
  AT_DISPATCH_FLOATING_TYPES(head.like.scalar_type(), "fastmtt::linear_xent_backward", [&] {
    using T = scalar_t;
    const auto place = [](const Place& to) { return places_of<T>(to.needed, to.tensor); };
    run(LinearXentBackward<T>{
            head.sizes(), tangent, students_of<T>(at.f), students_of<T>(at.f_dot),
            students_of<T>(at.w), students_of<T>(at.w_dot), students_of<T>(at.logp),
            students_of<T>(logp_dot), labels_of<T>(at.y), place(to.gf), place(to.gf_dot),
            place(to.gw), place(to.gb), place(to.gy), g.mutable_data_ptr<T>(),
            g_dot.mutable_data_ptr<T>()},
        head.like);
  });
}

void linear_xent_backward_into(
    const Tensor& f_in, const Tensor& w_in, const Tensor& logp_in, const Tensor& y_in,
    std::array<bool, 2> needs, const Tensor& gf, const Tensor& gw, const Tensor& gb,
    const Tensor& gy) {
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  const Head head("linear_xent_backward", f_in, w_in);
  const Tensor f = head.read("f", f_in), w = head.read("w", w_in);
  const Tensor logp = head.checked("logp", logp_in, head.logits_shape());
  const Tensor y = head.checked_labels(y_in);
  const Cotangents to{{"gf", gf, needs[0]},
                      {"gf_dot", gf, false},
                      {"gw", gw, needs[1]},
                      {"gb", gb, needs[1]},
                      {"gy", gy, head.soft(y)}};
  backward(head, false, {f, f, w, w, f, logp, y}, logp, to);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> linear_xent_backward(
    const Tensor& f, const Tensor& w, const Tensor& logp, const Tensor& y,
    std::array<bool, 2> needs) {
  const Head head("linear_xent_backward", f, w);
  const Tensor gf = head.empty_if(needs[0], head.features_shape());
  const Tensor gw = head.empty_if(needs[1], head.weights_shape());
  const Tensor gb = head.empty_if(needs[1], head.bias_shape());
  const Tensor gy = head.empty_if(head.soft(y), head.logits_shape());
  linear_xent_backward_into(f, w, logp, y, needs, gf, gw, gb, gy);
  return {gf, gw, gb, gy};
}

void linear_xent_backward_jvp_into(
    const Tensor& f_in, const Tensor& f_dot_in, const Tensor& w_in, const Tensor& w_dot_in,
    const Tensor& logp_in, const Tensor& logp_dot_in, const Tensor& y_in,
    std::array<bool, 3> needs, const Tensor& gf_dot, const Tensor& gw_dot, const Tensor& gb_dot,
    const Tensor& gy_dot, const Tensor& gf) {
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  const Head head("linear_xent_backward_jvp", f_in, w_in);
  const Tensor f = head.read("f", f_in), w = head.read("w", w_in);
  const Tensor f_dot = head.checked("f_dot", f_dot_in, head.features_shape());
  const Tensor w_dot = head.checked("w_dot", w_dot_in, head.weights_shape());
  const Tensor logp = head.checked("logp", logp_in, head.logits_shape());
  const Tensor logp_dot = head.checked("logp_dot", logp_dot_in, head.logits_shape());
  const Tensor y = head.checked_labels(y_in);
  const Cotangents to{{"gf", gf, needs[2]},
                      {"gf_dot", gf_dot, needs[0]},
                      {"gw_dot", gw_dot, needs[1]},
                      {"gb_dot", gb_dot, needs[1]},
                      {"gy_dot", gy_dot, head.soft(y)}};
  backward(head, true, {f, f_dot, w, w_dot, f, logp, y}, logp_dot, to);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> linear_xent_backward_jvp(
    const Tensor& f, const Tensor& f_dot, const Tensor& w, const Tensor& w_dot,
    const Tensor& logp, const Tensor& logp_dot, const Tensor& y, std::array<bool, 3> needs) {
  const Head head("linear_xent_backward_jvp", f, w);
  const Tensor gf_dot = head.empty_if(needs[0], head.features_shape());
  const Tensor gw_dot = head.empty_if(needs[1], head.weights_shape());
  const Tensor gb_dot = head.empty_if(needs[1], head.bias_shape());
  const Tensor gy_dot = head.empty_if(head.soft(y), head.logits_shape());
  const Tensor gf = head.empty_if(needs[2], head.features_shape());
  linear_xent_backward_jvp_into(
      f, f_dot, w, w_dot, logp, logp_dot, y, needs, gf_dot, gw_dot, gb_dot, gy_dot, gf);
  return {gf_dot, gw_dot, gb_dot, gy_dot, gf};
}

}  // namespace
}  // namespace fastmtt::cuda

FASTMTT_CUDA_OPS(m) {
  m.impl("linear_xent", &fastmtt::cuda::linear_xent);
  m.impl("linear_xent.into", &fastmtt::cuda::linear_xent_into);
  m.impl("linear_xent_backward", &fastmtt::cuda::linear_xent_backward);
  m.impl("linear_xent_backward.into", &fastmtt::cuda::linear_xent_backward_into);
  m.impl("linear_xent_jvp", &fastmtt::cuda::linear_xent_jvp);
  m.impl("linear_xent_jvp.into", &fastmtt::cuda::linear_xent_jvp_into);
  m.impl("linear_xent_backward_jvp", &fastmtt::cuda::linear_xent_backward_jvp);
  m.impl("linear_xent_backward_jvp.into", &fastmtt::cuda::linear_xent_backward_jvp_into);
}
