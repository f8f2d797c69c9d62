// The head on the CPU: a linear classifier with softmax cross-entropy, mean over the batch, its
// cotangents and the tangents of both. Features [S,B,D], weights [S,K,D], labels int64 [S,B] or
// probabilities [S,B,K], which need not sum to one.

#include <ATen/Dispatch.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <tuple>
#include <vector>

#include "head.h"
#include "head_products.h"
#include "softmax.h"

namespace fastmtt {
namespace {

using at::Tensor;

constexpr int64_t kColumns = 256;  // columns of a combination that one task computes

// A product that is part of the logits: features [S,B,D] times weights [S,K,D].
struct Factors {
  const Tensor &f, &w;
};

// out [count,K] = b + the sum of the products.
template <typename T, int kBytes, size_t N>
FASTMTT_INLINE inline void logits(
    const Head& head, const Run& run, const Factors (&factors)[N], const Tensor& b, T* out) {
  const T* bias = b.const_data_ptr<T>() + run.student * head.classes;
  for (int64_t i = 0; i < run.count; ++i) std::copy_n(bias, head.classes, out + i * head.classes);
  for (const Factors& factor : factors) {
    const Rows<T> f = rows_of<T>(factor.f, run.student), w = rows_of<T>(factor.w, run.student);
    add_inner_products<T, kBytes>(
        {f[run.first], f.stride}, run.count, w, head.classes, head.features, out);
  }
}

// loss [S] = -(sum of a student's shares) / B
template <typename T>
void mean_loss(const Head& head, const std::vector<double>& shares, const Tensor& loss) {
  T* out = loss.mutable_data_ptr<T>();
  for (int64_t s = 0; s < head.students; ++s) {
    double sum = 0;
    for (int64_t i = 0; i < head.batch; ++i) sum += shares[s * head.batch + i];
    out[s] = static_cast<T>(-sum / head.batch);
  }
}

// The gradient g of the logits from log p, and its tangent where g_dot and logp_dot are not null.
template <typename T>
void logit_gradient(
    const Head& head, const Labels<T>& labels, const T* logp, const T* logp_dot, T* g, T* g_dot) {
  const int64_t classes = head.classes;
  constexpr int64_t kFew = 16;  // multiply-adds an exponential is worth
  for_runs(head, kFew * classes, [&](auto, const Run& run) FASTMTT_INLINE {
    const int64_t begin = run.image * classes;
    exponentials(logp + begin, run.count * classes, g + begin);
    for (int64_t image = run.image; image < run.image + run.count; ++image) {
      const T weight = labels.weight(image), share = T(1) / head.batch;
      T* row = g + image * classes;
#pragma GCC ivdep
      for (int64_t k = 0; k < classes; ++k) row[k] *= weight;
      if (g_dot != nullptr) {
        const T* moved = logp_dot + image * classes;
        T* to = g_dot + image * classes;
#pragma GCC ivdep
        for (int64_t k = 0; k < classes; ++k) to[k] = row[k] * moved[k] * share;
      }
      labels.subtract_from(image, row);
#pragma GCC ivdep
      for (int64_t k = 0; k < classes; ++k) row[k] *= share;
    }
  });
}

// A product that is part of a cotangent: rows [S,*,D] combined by numbers [S,B,K].
struct Combination {
  const Tensor &by, &of;
};

enum class Of { weights, images };

// out = the sum of by times of: [S,B,D] from weights [S,K,D], or [S,K,D] from images [S,B,D].
template <typename T, size_t N>
void combine(const Head& head, Of of, const Combination (&parts)[N], const Tensor& out) {
  const bool of_weights = of == Of::weights;
  const int64_t rows = of_weights ? head.batch : head.classes;
  const int64_t terms = of_weights ? head.classes : head.batch;
  const int64_t row_step = of_weights ? head.classes : 1, term_step = of_weights ? 1 : head.classes;
  const int64_t pieces = at::divup(head.features, kColumns);
  const int64_t grain = std::max<int64_t>(1, kWork / (rows * terms * int64_t(N) * kColumns));
  T* data = out.mutable_data_ptr<T>();
  at::parallel_for(0, head.students * pieces, grain, [&](int64_t from, int64_t to) {
    run_widest_vectors([&](auto width) FASTMTT_INLINE {
      for (int64_t piece = from; piece < to; ++piece) {
        const int64_t student = piece / pieces, begin = piece % pieces * kColumns;
        const int64_t end = std::min(begin + kColumns, head.features);
        T* place = data + student * rows * head.features;
        for (int64_t i = 0; i < rows; ++i) {
          std::fill(place + i * head.features + begin, place + i * head.features + end, T(0));
        }
        for (const Combination& part : parts) {
          const T* by = part.by.template const_data_ptr<T>();
          add_combinations<T, width>(
              {by + student * head.batch * head.classes, row_step, term_step},
              rows_of<T>(part.of, student), terms, place, head.features, rows, begin, end);
        }
      }
    });
  });
}

// out [S,K] = the sum of g [S,B,K] over the images, added up in their order.
template <typename T>
void sum_images(const Head& head, const Tensor& g, const Tensor& out) {
  const T* from = g.const_data_ptr<T>();
  T* to = out.mutable_data_ptr<T>();
  std::vector<double> sums(head.classes);
  for (int64_t s = 0; s < head.students; ++s) {
    std::fill(sums.begin(), sums.end(), 0.0);
    for (int64_t i = 0; i < head.batch; ++i, from += head.classes) {
      for (int64_t k = 0; k < head.classes; ++k) sums[k] += from[k];
    }
    for (int64_t k = 0; k < head.classes; ++k) to[s * head.classes + k] = static_cast<T>(sums[k]);
  }
}

// The cotangent -logp / B of probabilities, or its tangent.
template <typename T>
void label_gradient(const Head& head, const Tensor& logp, const Tensor& gy) {
  const T* from = logp.const_data_ptr<T>();
  T* to = gy.mutable_data_ptr<T>();
  for (int64_t i = 0; i < logp.numel(); ++i) to[i] = -from[i] / head.batch;
}

void linear_xent_into(
    const Tensor& f_in, const Tensor& w_in, const Tensor& b_in, const Tensor& y_in,
    const Tensor& loss, const Tensor& logp) {
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  const Head head("linear_xent", f_in, w_in);
  const Tensor f = with_dense_rows(f_in), w = with_dense_rows(w_in);
  const Tensor b = head.checked_bias("b", b_in), y = head.checked_labels(y_in);
  const std::initializer_list<Named> inputs = {{"f", f}, {"w", w}, {"b", b}, {"y", y}};
  head.check_place("loss", loss, {head.students}, inputs);
  head.check_place("logp", logp, head.logits_shape(), inputs);
  AT_DISPATCH_FLOATING_TYPES(f.scalar_type(), "fastmtt::linear_xent", [&] {
    using T = scalar_t;
    const Labels<T> labels(head, y);
    std::vector<double> shares(head.images());
    T* out = logp.mutable_data_ptr<T>();
    for_runs(head, head.classes * head.features, [&](auto width, const Run& run) FASTMTT_INLINE {
      T* rows = out + run.image * head.classes;
      std::vector<T> room(run.count * head.classes);
      logits<T, width, 1>(head, run, {{f, w}}, b, rows);
      log_softmax(run.count, head.classes, rows, room.data());
      for (int64_t i = 0; i < run.count; ++i) {
        shares[run.image + i] = labels.dot(run.image + i, rows + i * head.classes);
      }
    });
    mean_loss<T>(head, shares, loss);
  });
}

std::tuple<Tensor, Tensor> linear_xent(
    const Tensor& f, const Tensor& w, const Tensor& b, const Tensor& y) {
  const Head head("linear_xent", f, w);
  const Tensor loss = head.empty({head.students}), logp = head.empty(head.logits_shape());
  linear_xent_into(f, w, b, y, loss, logp);
  return {loss, logp};
}

void linear_xent_backward_into(
    const Tensor& f_in, const Tensor& w_in, const Tensor& logp_in, const Tensor& y_in,
    std::array<bool, 2> needs, const Tensor& gf, const Tensor& gw, const Tensor& gb,
    const Tensor& gy) {
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  const Head head("linear_xent_backward", f_in, w_in);
  const auto [need_f, need_parameters] = needs;
  const Tensor f = with_dense_rows(f_in), w = with_dense_rows(w_in);
  const Tensor logp = head.checked_logits("logp", logp_in), y = head.checked_labels(y_in);
  const std::initializer_list<Named> inputs = {{"f", f}, {"w", w}, {"logp", logp}, {"y", y}};
  if (need_f) head.check_place("gf", gf, head.like.sizes(), inputs);
  if (need_parameters) {
    head.check_place("gw", gw, w.sizes(), inputs);
    head.check_place("gb", gb, {head.students, head.classes}, inputs);
  }
  if (head.soft(y)) head.check_place("gy", gy, head.logits_shape(), inputs);
  const Tensor g = head.empty(head.logits_shape());
  AT_DISPATCH_FLOATING_TYPES(f.scalar_type(), "fastmtt::linear_xent_backward", [&] {
    using T = scalar_t;
    logit_gradient<T>(
        head, {head, y}, logp.const_data_ptr<T>(), nullptr, g.mutable_data_ptr<T>(), nullptr);
    if (need_f) combine<T, 1>(head, Of::weights, {{g, w}}, gf);
    if (need_parameters) {
      combine<T, 1>(head, Of::images, {{g, f}}, gw);
      sum_images<T>(head, g, gb);
    }
    if (head.soft(y)) label_gradient<T>(head, logp, gy);
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensor> linear_xent_backward(
    const Tensor& f, const Tensor& w, const Tensor& logp, const Tensor& y,
    std::array<bool, 2> needs) {
  const Head head("linear_xent_backward", f, w);
  const Tensor gf = head.empty_if(needs[0], f.sizes()), gw = head.empty_if(needs[1], w.sizes());
  const Tensor gb = head.empty_if(needs[1], {head.students, head.classes});
  const Tensor gy = head.empty_if(head.soft(y), head.logits_shape());
  linear_xent_backward_into(f, w, logp, y, needs, gf, gw, gb, gy);
  return {gf, gw, gb, gy};
}

void linear_xent_jvp_into(
    const Tensor& f_in, const Tensor& f_dot_in, const Tensor& w_in, const Tensor& w_dot_in,
    const Tensor& b_dot_in, const Tensor& logp_in, const Tensor& y_in, const Tensor& loss_dot,
    const Tensor& logp_dot) {
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  const Head head("linear_xent_jvp", f_in, w_in);
  const Tensor f = with_dense_rows(f_in), f_dot = head.checked_features("f_dot", f_dot_in);
  const Tensor w = with_dense_rows(w_in), w_dot = head.checked_weights("w_dot", w_dot_in);
  const Tensor b_dot = head.checked_bias("b_dot", b_dot_in);
  const Tensor logp = head.checked_logits("logp", logp_in), y = head.checked_labels(y_in);
  const std::initializer_list<Named> inputs = {{"f", f},         {"f_dot", f_dot},
                                               {"w", w},         {"w_dot", w_dot},
                                               {"b_dot", b_dot}, {"logp", logp}, {"y", y}};
  head.check_place("loss_dot", loss_dot, {head.students}, inputs);
  head.check_place("logp_dot", logp_dot, head.logits_shape(), inputs);
  AT_DISPATCH_FLOATING_TYPES(f.scalar_type(), "fastmtt::linear_xent_jvp", [&] {
    using T = scalar_t;
    const Labels<T> labels(head, y);
    std::vector<double> shares(head.images());
    const T* logs = logp.const_data_ptr<T>();
    T* out = logp_dot.mutable_data_ptr<T>();
    const int64_t classes = head.classes;
    for_runs(head, 2 * classes * head.features, [&](auto width, const Run& run) FASTMTT_INLINE {
      T* rows = out + run.image * classes;
      std::vector<T> p(run.count * classes);
      logits<T, width, 2>(head, run, {{f_dot, w}, {f, w_dot}}, b_dot, rows);
      exponentials(logs + run.image * classes, run.count * classes, p.data());
      for (int64_t i = 0; i < run.count; ++i) {
        T* row = rows + i * classes;
        const T mean = static_cast<T>(inner(p.data() + i * classes, row, classes));
        for (int64_t k = 0; k < classes; ++k) row[k] -= mean;
        shares[run.image + i] = labels.dot(run.image + i, row);
      }
    });
    mean_loss<T>(head, shares, loss_dot);
  });
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

void linear_xent_backward_jvp_into(
    const Tensor& f_in, const Tensor& f_dot_in, const Tensor& w_in, const Tensor& w_dot_in,
    const Tensor& logp_in, const Tensor& logp_dot_in, const Tensor& y_in,
    std::array<bool, 3> needs, const Tensor& gf_dot, const Tensor& gw_dot, const Tensor& gb_dot,
    const Tensor& gy_dot, const Tensor& gf) {
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  const Head head("linear_xent_backward_jvp", f_in, w_in);
  const auto [need_f_dot, need_parameters, need_f] = needs;
  const Tensor f = with_dense_rows(f_in), f_dot = head.checked_features("f_dot", f_dot_in);
  const Tensor w = with_dense_rows(w_in), w_dot = head.checked_weights("w_dot", w_dot_in);
  const Tensor logp = head.checked_logits("logp", logp_in), y = head.checked_labels(y_in);
  const Tensor logp_dot = head.checked_logits("logp_dot", logp_dot_in);
  const std::initializer_list<Named> inputs = {{"f", f},         {"f_dot", f_dot},
                                               {"w", w},         {"w_dot", w_dot},
                                               {"logp", logp},   {"logp_dot", logp_dot}, {"y", y}};
  if (need_f_dot) head.check_place("gf_dot", gf_dot, f.sizes(), inputs);
  if (need_parameters) {
    head.check_place("gw_dot", gw_dot, w.sizes(), inputs);
    head.check_place("gb_dot", gb_dot, {head.students, head.classes}, inputs);
  }
  if (head.soft(y)) head.check_place("gy_dot", gy_dot, head.logits_shape(), inputs);
  if (need_f) head.check_place("gf", gf, f.sizes(), inputs);
  const Tensor g = head.empty(head.logits_shape()), g_dot = head.empty(head.logits_shape());
  AT_DISPATCH_FLOATING_TYPES(f.scalar_type(), "fastmtt::linear_xent_backward_jvp", [&] {
    using T = scalar_t;
    logit_gradient<T>(
        head, {head, y}, logp.const_data_ptr<T>(), logp_dot.const_data_ptr<T>(),
        g.mutable_data_ptr<T>(), g_dot.mutable_data_ptr<T>());
    if (need_f_dot) combine<T, 2>(head, Of::weights, {{g_dot, w}, {g, w_dot}}, gf_dot);
    if (need_f) combine<T, 1>(head, Of::weights, {{g, w}}, gf);
    if (need_parameters) {
      combine<T, 2>(head, Of::images, {{g_dot, f}, {g, f_dot}}, gw_dot);
      sum_images<T>(head, g_dot, gb_dot);
    }
    if (head.soft(y)) label_gradient<T>(head, logp_dot, gy_dot);
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> linear_xent_backward_jvp(
    const Tensor& f, const Tensor& f_dot, const Tensor& w, const Tensor& w_dot,
    const Tensor& logp, const Tensor& logp_dot, const Tensor& y, std::array<bool, 3> needs) {
  const Head head("linear_xent_backward_jvp", f, w);
  const Tensor gf_dot = head.empty_if(needs[0], f.sizes());
  const Tensor gw_dot = head.empty_if(needs[1], w.sizes());
  const Tensor gb_dot = head.empty_if(needs[1], {head.students, head.classes});
  const Tensor gy_dot = head.empty_if(head.soft(y), head.logits_shape());
  const Tensor gf = head.empty_if(needs[2], f.sizes());
  linear_xent_backward_jvp_into(
      f, f_dot, w, w_dot, logp, logp_dot, y, needs, gf_dot, gw_dot, gb_dot, gy_dot, gf);
  return {gf_dot, gw_dot, gb_dot, gy_dot, gf};
}

}  // namespace
}  // namespace fastmtt

TORCH_LIBRARY_IMPL(fastmtt, CPU, m) {
  m.impl("linear_xent", &fastmtt::linear_xent);
  m.impl("linear_xent.into", &fastmtt::linear_xent_into);
  m.impl("linear_xent_backward", &fastmtt::linear_xent_backward);
  m.impl("linear_xent_backward.into", &fastmtt::linear_xent_backward_into);
  m.impl("linear_xent_jvp", &fastmtt::linear_xent_jvp);
  m.impl("linear_xent_jvp.into", &fastmtt::linear_xent_jvp_into);
  m.impl("linear_xent_backward_jvp", &fastmtt::linear_xent_backward_jvp);
  m.impl("linear_xent_backward_jvp.into", &fastmtt::linear_xent_backward_jvp_into);
}
