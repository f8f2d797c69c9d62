// Sizes of the head's ops and the checks of their arguments, whatever computes them.

#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <array>

namespace fastmtt {

struct HeadArguments {
  HeadArguments(const char* op, const at::Tensor& f, const at::Tensor& w) : op(op), like(f) {
    TORCH_CHECK(f.dim() == 3, "fastmtt::", op, ": f must have shape [S, B, D], got ", f.sizes());
    TORCH_CHECK(
        f.scalar_type() == at::kFloat || f.scalar_type() == at::kDouble,
        "fastmtt::", op, ": f must be float32 or float64, got ", f.scalar_type());
    TORCH_CHECK(w.dim() == 3, "fastmtt::", op, ": w must have shape [S, K, D], got ", w.sizes());
    TORCH_CHECK(
        f.numel() > 0 && w.numel() > 0, "fastmtt::", op,
        ": f and w must hold a student, an image, a feature and a class at least, got shapes ",
        f.sizes(), " and ", w.sizes());
    students = f.size(0);
    batch = f.size(1);
    features = f.size(2);
    classes = w.size(1);
    check("w", w, weights_shape());
  }

  void check(const char* name, const at::Tensor& t, at::IntArrayRef shape) const {
    TORCH_CHECK(
        t.sizes() == shape, "fastmtt::", op, ": ", name, " must have shape ", shape, " for f ",
        like.sizes(), ", got ", t.sizes());
    TORCH_CHECK(
        t.scalar_type() == like.scalar_type(), "fastmtt::", op, ": ", name,
        " must have the dtype of f, ", like.scalar_type(), ", got ", t.scalar_type());
  }
  void check_labels(const at::Tensor& y) const {
    if (soft(y)) return check("y", y, logits_shape());
    const std::array<int64_t, 2> shape = {students, batch};
    TORCH_CHECK(
        y.scalar_type() == at::kLong && y.sizes() == at::IntArrayRef(shape), "fastmtt::", op,
        ": y must be int64 of shape ", at::IntArrayRef(shape), " or probabilities of shape [",
        students, ", ", batch, ", ", classes, "], got ", y.scalar_type(), " of shape ", y.sizes());
  }
  bool soft(const at::Tensor& y) const { return y.is_floating_point(); }

  at::Tensor empty(at::IntArrayRef shape) const { return at::empty(shape, like.options()); }
  at::Tensor empty_if(bool needed, at::IntArrayRef shape) const {
    return needed ? empty(shape) : empty({0});
  }

  std::array<int64_t, 3> logits_shape() const { return {students, batch, classes}; }
  std::array<int64_t, 3> features_shape() const { return {students, batch, features}; }
  std::array<int64_t, 3> weights_shape() const { return {students, classes, features}; }
  std::array<int64_t, 2> bias_shape() const { return {students, classes}; }

  const char* op;
  const at::Tensor& like;
  int64_t students, batch, features, classes;
};

}  // namespace fastmtt
