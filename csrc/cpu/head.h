// What the head's four ops share: checks of arguments, labels of either kind, and the runs of
// images that threads work through.

#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <array>
#include <initializer_list>

#include "../head_arguments.h"
#include "results.h"
#include "rows.h"
#include "widest.h"

namespace fastmtt {

// A student's part of [S,B,D] or [S,K,D], rows dense.
template <typename T>
Rows<T> rows_of(const at::Tensor& t, int64_t student) {
  return {t.const_data_ptr<T>() + student * t.stride(0), t.stride(1)};
}

// The checks of every argument, and what the kernels read of it.
struct Head : HeadArguments {
  using HeadArguments::HeadArguments;

  at::Tensor checked_features(const char* name, const at::Tensor& t) const {
    check(name, t, features_shape());
    return with_dense_rows(t);
  }
  at::Tensor checked_weights(const char* name, const at::Tensor& t) const {
    check(name, t, weights_shape());
    return with_dense_rows(t);
  }
  at::Tensor checked_bias(const char* name, const at::Tensor& t) const {
    check(name, t, bias_shape());
    return t.contiguous();
  }
  at::Tensor checked_logits(const char* name, const at::Tensor& t) const {
    check(name, t, logits_shape());
    return t.contiguous();
  }
  at::Tensor checked_labels(const at::Tensor& y) const {
    check_labels(y);
    const at::Tensor labels = y.contiguous();
    if (soft(y)) return labels;
    const int64_t* label = labels.const_data_ptr<int64_t>();
    for (int64_t i = 0; i < images(); ++i) {
      TORCH_CHECK(
          0 <= label[i] && label[i] < classes, "fastmtt::", op, ": y must lie in 0..",
          classes - 1, ", got ", label[i]);
    }
    return labels;
  }
  void check_place(
      const char* name, const at::Tensor& t, at::IntArrayRef shape,
      std::initializer_list<Named> inputs) const {
    check_result(op, {name, t}, shape, like);
    check_apart(op, {name, t}, inputs);
  }

  int64_t images() const { return students * batch; }
};

// The labels of every image, of either kind.
template <typename T>
struct Labels {
  Labels(const Head& head, const at::Tensor& y)
      : classes(head.classes),
        probabilities(head.soft(y) ? y.const_data_ptr<T>() : nullptr),
        indices(head.soft(y) ? nullptr : y.const_data_ptr<int64_t>()) {}

  // Sum over the classes of y * value.
  FASTMTT_INLINE double dot(int64_t image, const T* value) const {
    if (indices != nullptr) return value[indices[image]];
    return inner(probabilities + image * classes, value, classes);
  }
  // Sum over the classes of y: the softmax's share in the gradient carries it.
  FASTMTT_INLINE T weight(int64_t image) const {
    if (indices != nullptr) return 1;
    const T* y = probabilities + image * classes;
    return static_cast<T>(sum_lanes<double, 1>(0, classes, [&](int64_t k) FASTMTT_INLINE {
      return std::array<double, 1>{double(y[k])};
    })[0]);
  }
  FASTMTT_INLINE void subtract_from(int64_t image, T* g) const {
    if (indices != nullptr) {
      g[indices[image]] -= 1;
      return;
    }
    const T* y = probabilities + image * classes;
    for (int64_t k = 0; k < classes; ++k) g[k] -= y[k];
  }

  int64_t classes;
  const T* probabilities;
  const int64_t* indices;
};

constexpr int64_t kWork = int64_t(1) << 19;  // multiply-adds worth handing to another thread

// A run of one student's images: first .. first + count - 1 of it, image .. of all [S*B].
struct Run {
  int64_t student, first, count, image;
};

// work(width, run) over all images; work is FASTMTT_INLINE.
template <typename Work>
void for_runs(const Head& head, int64_t work_an_image, const Work& work) {
  const int64_t grain = std::max<int64_t>(1, kWork / work_an_image);
  at::parallel_for(0, head.images(), grain, [&](int64_t begin, int64_t end) {
    run_widest_vectors([&](auto width) FASTMTT_INLINE {
      for (int64_t image = begin; image < end;) {
        const int64_t student = image / head.batch, first = image % head.batch;
        const int64_t count = std::min(end - image, head.batch - first);
        work(width, Run{student, first, count, image});
        image += count;
      }
    });
  });
}

}  // namespace fastmtt
