// Sizes of the ConvNet block's ops and the checks of their arguments, whatever computes them.

#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/util/SmallVector.h>

#include "cpu/results.h"

namespace fastmtt {

using at::Tensor;

// What is one student's is contiguous; students may lie apart, as views of packed weights [S,P] do.
inline bool contiguous_parts(const Tensor& t) {
  return t.numel() == 0 || t.select(0, 0).is_contiguous();
}

class Block {
 public:
  Block(const char* op, const Tensor& a, const Tensor& w, bool bf16) : op(op), like(a), bf16(bf16) {
    TORCH_CHECK(
        a.dim() == 5, "fastmtt::", op, ": a must have shape [S, B, H, W, C], got ", a.sizes());
    TORCH_CHECK(
        a.scalar_type() == at::kFloat || a.scalar_type() == at::kDouble,
        "fastmtt::", op, ": a must be float32 or float64, got ", a.scalar_type());
    TORCH_CHECK(
        !bf16 || a.scalar_type() == at::kFloat,
        "fastmtt::", op, ": bf16 rounds float32 tensors, got ", a.scalar_type());
    TORCH_CHECK(
        a.size(0) > 0 && a.size(1) > 0 && a.size(2) > 1 && a.size(3) > 1 && a.size(4) > 0,
        "fastmtt::", op, ": a must hold a student, an image, 2 x 2 pixels and a channel at least,"
        " got shape ", a.sizes());
    TORCH_CHECK(
        w.dim() == 5 && w.size(4) > 0, "fastmtt::", op,
        ": w must have shape [S, 3, 3, Cin, Cout], got ", w.sizes());
    students = a.size(0);
    batch = a.size(1);
    height = a.size(2);
    width = a.size(3);
    in = a.size(4);
    out = w.size(4);
  }

  void check(const char* name, const Tensor& t, at::IntArrayRef shape) const {
    TORCH_CHECK(
        t.sizes() == shape, "fastmtt::", op, ": ", name, " must have shape ", shape, " for a ",
        like.sizes(), ", got ", t.sizes());
    TORCH_CHECK(
        t.scalar_type() == like.scalar_type(), "fastmtt::", op, ": ", name,
        " must have the dtype of a, ", like.scalar_type(), ", got ", t.scalar_type());
    check_device(name, t);
  }
  // The dispatcher looks at one tensor's device; a GPU that is given another's memory faults.
  void check_device(const char* name, const Tensor& t) const {
    TORCH_CHECK(
        t.device() == like.device(), "fastmtt::", op, ": ", name, " must be on the device of a, ",
        like.device(), ", got ", t.device());
  }
  Tensor checked(const char* name, const Tensor& t, at::IntArrayRef shape) {
    check(name, t, shape);
    const Tensor given = contiguous_parts(t) ? t : t.contiguous();
    inputs_.push_back(place(name, given, given.const_data_ptr()));
    return given;
  }
  Tensor input(const char* name, const Tensor& t) {
    return checked(name, t, {students, batch, height, width, in});
  }
  Tensor output(const char* name, const Tensor& t) {
    return checked(name, t, {students, batch, height, width, out});
  }
  Tensor pooled(const char* name, const Tensor& t) {
    return checked(name, t, {students, batch, height / 2, width / 2, out});
  }
  Tensor statistic(const char* name, const Tensor& t) {
    return checked(name, t, {students, batch, out});
  }
  Tensor affine(const char* name, const Tensor& t) {
    return checked(name, t, {students, out});
  }
  Tensor filters(const char* name, const Tensor& t) {
    return checked(name, t, {students, 3, 3, in, out});
  }

  // Results to write into; one that is not wanted may be anything.
  void check_input_result(const char* name, const Tensor& t, bool wanted) {
    if (wanted) check_result(name, t, {students, batch, height, width, in});
  }
  void check_output_result(const char* name, const Tensor& t, bool wanted = true) {
    if (wanted) check_result(name, t, {students, batch, height, width, out});
  }
  void check_pooled_result(const char* name, const Tensor& t) {
    check_result(name, t, {students, batch, height / 2, width / 2, out});
  }
  void check_statistic_result(const char* name, const Tensor& t, bool wanted = true) {
    if (wanted) check_result(name, t, {students, batch, out});
  }
  void check_parameter_results(
      const Tensor& w, const Tensor& gamma, const Tensor& beta, bool wanted) {
    if (!wanted) return;
    check_result("the cotangent of w", w, {students, 3, 3, in, out});
    check_result("the cotangent of gamma", gamma, {students, out});
    check_result("the cotangent of beta", beta, {students, out});
  }
  void check_result(const char* name, const Tensor& t, at::IntArrayRef shape) {
    const bool apart = t.dim() == 0 || students == 1 || t.stride(0) * students >= t.numel();
    TORCH_CHECK(
        t.sizes() == shape && t.scalar_type() == like.scalar_type() && contiguous_parts(t) && apart,
        "fastmtt::", op, ": ", name, " must be a ", like.scalar_type(), " tensor of shape ", shape,
        ", contiguous for each student, to be written into, got ", t.scalar_type(), " of shape ",
        t.sizes(), " and strides ", t.strides());
    check_device(name, t);
    results_.push_back(place(name, t, t.mutable_data_ptr()));
    raise_version(t);
  }

  // To be called when all arguments are checked: inputs are read after results have been written.
  void check_apart() const {
    for (size_t i = 0; i < results_.size(); ++i) {
      for (const Place& input : inputs_) check_apart(results_[i], input);
      for (size_t j = 0; j < i; ++j) check_apart(results_[i], results_[j]);
    }
  }
  void check_apart(const Tensor& scratch) const {
    const Place room("scratch", scratch.const_data_ptr(), 1, 0, scratch.numel());
    for (const Place& input : inputs_) check_apart(room, input);
    for (const Place& result : results_) check_apart(result, room);
    check_apart();
  }

  // Where an image of a student's part begins.
  template <typename T>
  T* image(T* inputs, int64_t i) const { return inputs + i * height * width * in; }
  template <typename T>
  T* output_image(T* outputs, int64_t i) const { return outputs + i * height * width * out; }
  template <typename T>
  T* pooled_image(T* pooled, int64_t i) const {
    return pooled + i * (height / 2) * (width / 2) * out;
  }

  Tensor empty(at::IntArrayRef shape, bool wanted = true) const {
    return wanted ? at::empty(shape, like.options()) : at::empty({0}, like.options());
  }
  Tensor empty_input(bool wanted) const {
    return empty({students, batch, height, width, in}, wanted);
  }
  Tensor empty_output(bool wanted = true) const {
    return empty({students, batch, height, width, out}, wanted);
  }
  Tensor empty_pooled() const { return empty({students, batch, height / 2, width / 2, out}); }
  Tensor empty_statistic(bool wanted = true) const {
    return empty({students, batch, out}, wanted);
  }
  Tensor empty_affine(bool wanted) const { return empty({students, out}, wanted); }
  Tensor empty_filters(bool wanted) const { return empty({students, 3, 3, in, out}, wanted); }

  const char* op;
  const Tensor& like;
  bool bf16;
  int64_t students, batch, height, width, in, out;

 private:
  void check_apart(const Place& result, const Place& other) const {
    TORCH_CHECK(
        !result.meets(other),
        "fastmtt::", op, ": ", result.name, " must not lie in the memory of ", other.name);
  }
  Place place(const char* name, const Tensor& t, const void* begin) const {
    const int64_t size = t.element_size();
    return {name, begin, students, t.stride(0) * size, t.numel() / students * size};
  }

  c10::SmallVector<Place, 16> inputs_, results_;
};

}  // namespace fastmtt
