// Tensors that the caller gives for an op's results: the overloads named `into`.

#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <initializer_list>

namespace fastmtt {

// An argument's name and what was given for it.
struct Named {
  const char* name;
  const at::Tensor& tensor;
};

// As by any write: autograd must see that a saved tensor is no longer what it was.
inline void raise_version(const at::Tensor& t) {
  if (!t.is_inference()) t.unsafeGetTensorImpl()->bump_version();
}

// A result must be a contiguous tensor of its shape and of the dtype of `like`.
inline void check_result(
    const char* op, const Named& result, at::IntArrayRef shape, const at::Tensor& like) {
  const auto& [name, t] = result;
  TORCH_CHECK(
      t.sizes() == shape && t.scalar_type() == like.scalar_type() && t.is_contiguous(),
      "fastmtt::", op, ": ", name, " must be a contiguous ", like.scalar_type(),
      " tensor of shape ", shape, " to be written into, got ", t.scalar_type(), " of shape ",
      t.sizes(), " and strides ", t.strides());
  raise_version(t);
}

// Where a tensor lies whose students, `bytes` long each, begin `stride` bytes apart.
struct Place {
  Place(const char* name, const void* begin, int64_t students, int64_t stride, int64_t bytes)
      : name(name),
        begin(reinterpret_cast<uintptr_t>(begin)),
        students(students),
        stride(stride),
        bytes(bytes) {}

  // Packed weights' students lie apart, with other parameters between: extents that meet need not.
  bool meets(const Place& other) const {
    if (bytes == 0 || other.bytes == 0 || begin >= other.end() || other.begin >= end()) return false;
    for (int64_t i = 0; i < students; ++i) {
      for (int64_t j = 0; j < other.students; ++j) {
        const uintptr_t here = begin + i * stride, there = other.begin + j * other.stride;
        if (here < there + other.bytes && there < here + bytes) return true;
      }
    }
    return false;
  }
  uintptr_t end() const { return begin + (students - 1) * stride + bytes; }

  const char* name;
  uintptr_t begin;
  int64_t students, stride, bytes;
};

// Rows padded on a GPU are not dense: PyTorch's own test of overlaps passes them unseen.
inline Place place_of(const Named& named) {
  const auto& [name, t] = named;
  if (t.dim() == 0 || t.numel() == 0) {
    return {name, t.const_data_ptr(), 1, 0, static_cast<int64_t>(t.nbytes())};
  }
  int64_t last = 0;  // element of a student
  for (int64_t d = 1; d < t.dim(); ++d) last += (t.size(d) - 1) * t.stride(d);
  const int64_t size = t.element_size();
  return {name, t.const_data_ptr(), t.size(0), t.stride(0) * size, (last + 1) * size};
}

// Ops that read an input after they have begun to write need their results apart from it.
inline void check_apart(
    const char* op, const Named& result, std::initializer_list<Named> inputs) {
  for (const Named& input : inputs) {
    TORCH_CHECK(
        !place_of(result).meets(place_of(input)),
        "fastmtt::", op, ": ", result.name, " must not lie in the memory of ", input.name);
  }
}

// Ops that work element by element may write an input itself, but no other part of its memory.
inline void check_whole(
    const char* op, const Named& result, std::initializer_list<Named> inputs) {
  for (const Named& input : inputs) {
    const auto &a = result.tensor, &b = input.tensor;
    const bool itself = a.const_data_ptr() == b.const_data_ptr() && a.sizes() == b.sizes() &&
        a.strides() == b.strides();
    TORCH_CHECK(
        itself || !place_of(result).meets(place_of(input)),
        "fastmtt::", op, ": ", result.name, " must be ", input.name,
        " itself or lie apart from its memory");
  }
}

}  // namespace fastmtt
