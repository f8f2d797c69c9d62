// sgd_update, sgd_momentum, dot, sqdist, gsam_perturb, gsam_combine: flat weight vectors [S,P], a
// row a student.

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/util/SmallVector.h>
#include <c10/util/bit_cast.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <initializer_list>
#include <optional>
#include <tuple>
#include <type_traits>
#include <vector>

#include "../flat_arguments.h"
#include "results.h"
#include "rows.h"
#include "widest.h"

namespace fastmtt {
namespace {

using at::Tensor;

// Partial sums cover fixed chunks of a row, so that no result depends on the number of threads.
constexpr int64_t kChunk = 4096;
constexpr int64_t kChunksATask = 8;

void check_vectors(const char* op, const Named& result, std::initializer_list<Named> inputs) {
  const Tensor& first = inputs.begin()->tensor;
  check_result(op, result, first.sizes(), first);
  check_whole(op, result, inputs);
}

void check_sums(const char* op, const Tensor& result, const Tensor& like) {
  check_result(op, {"result", result}, like.sizes().slice(0, 1), like);
}

template <typename T>
Rows<T> rows_of(const Tensor& t) {
  return {t.const_data_ptr<T>(), t.stride(0)};
}

// Of each student; copied, as a result may lie where lr does.
template <typename T>
c10::SmallVector<T, 16> rates_of(const Tensor& lr, int64_t students) {
  c10::SmallVector<T, 16> rates;
  const T* rate = lr.const_data_ptr<T>();
  for (int64_t row = 0; row < students; ++row) {
    rates.push_back(lr.dim() == 0 ? *rate : rate[row * lr.stride(0)]);
  }
  return rates;
}

int64_t chunks_a_row(int64_t columns) {
  return at::divup(columns, kChunk);
}

// work(chunk, row, begin, end) for every chunk of every row.
template <typename Work>
void for_chunks(int64_t rows, int64_t columns, const Work& work) {
  const int64_t per_row = chunks_a_row(columns);
  at::parallel_for(0, rows * per_row, kChunksATask, [&](int64_t from, int64_t to) {
    for (int64_t chunk = from; chunk < to; ++chunk) {
      const int64_t begin = chunk % per_row * kChunk;
      work(chunk, chunk / per_row, begin, std::min(begin + kChunk, columns));
    }
  });
}

// results[i][row, j] = value(row)(j)[i]. A result may be an input itself: what value(row)(j) reads
// of the row is element j.
template <typename T, size_t N, typename Value>
void map_rows(const Tensor (&results)[N], const Value& value) {
  const int64_t columns = results[0].size(1);
  std::array<T*, N> data;
  for (size_t i = 0; i < N; ++i) data[i] = results[i].template mutable_data_ptr<T>();
  for_chunks(results[0].size(0), columns, [&](int64_t, int64_t row, int64_t begin, int64_t end) {
    std::array<T*, N> out;
    for (size_t i = 0; i < N; ++i) out[i] = data[i] + row * columns;
    run_widest([=, at = value(row)]() FASTMTT_INLINE {
#pragma GCC ivdep
      for (int64_t j = begin; j < end; ++j) {
        const std::array<T, N> found = at(j);
        for (size_t i = 0; i < N; ++i) out[i][j] = found[i];
      }
    });
  });
}

// For every row the sums over its columns j of term(row)(j), N of them, added up in double.
template <size_t N, typename Term>
std::vector<std::array<double, N>> sum_rows(int64_t rows, int64_t columns, const Term& term) {
  const int64_t per_row = chunks_a_row(columns);
  std::vector<std::array<double, N>> partial(rows * per_row), totals(rows);
  for_chunks(rows, columns, [&](int64_t chunk, int64_t row, int64_t begin, int64_t end) {
    run_widest([&, at = term(row)]() FASTMTT_INLINE {
      partial[chunk] = sum_lanes<double, N>(begin, end, at);
    });
  });
  for (int64_t chunk = 0; chunk < rows * per_row; ++chunk) {
    for (size_t i = 0; i < N; ++i) totals[chunk / per_row][i] += partial[chunk][i];
  }
  return totals;
}

template <typename T, typename Term>
void sum_rows_into(const Tensor& result, int64_t columns, const Term& term) {
  const auto totals = sum_rows<1>(result.size(0), columns, term);
  T* out = result.mutable_data_ptr<T>();
  for (size_t row = 0; row < totals.size(); ++row) out[row] = static_cast<T>(totals[row][0]);
}

void sgd_update_into(
    const Tensor& theta, const Tensor& g, const Tensor& lr, const Tensor& result) {
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  check_pair("sgd_update", {"theta", theta}, {"g", g});
  check_rate("sgd_update", lr, theta);
  check_vectors("sgd_update", {"result", result}, {{"theta", theta}, {"g", g}});
  const Tensor theta_rows = with_dense_rows(theta), g_rows = with_dense_rows(g);
  AT_DISPATCH_FLOATING_TYPES(theta.scalar_type(), "fastmtt::sgd_update", [&] {
    const auto from = rows_of<scalar_t>(theta_rows), step = rows_of<scalar_t>(g_rows);
    const auto rates = rates_of<scalar_t>(lr, theta.size(0));
    map_rows<scalar_t>({result}, [&](int64_t row) {
      return [t = from[row], d = step[row], rate = rates[row]](int64_t j)
                 FASTMTT_INLINE { return std::array<scalar_t, 1>{t[j] - rate * d[j]}; };
    });
  });
}

Tensor sgd_update(const Tensor& theta, const Tensor& g, const Tensor& lr) {
  const Tensor result = at::empty(theta.sizes(), theta.options());
  sgd_update_into(theta, g, lr, result);
  return result;
}

void sgd_momentum_into(
    const Tensor& theta, const Tensor& g, const Tensor& velocity, const Tensor& lr, double momentum,
    double weight_decay, const Tensor& new_theta, const Tensor& new_velocity) {
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  constexpr const char* kOp = "sgd_momentum";
  check_pair(kOp, {"theta", theta}, {"g", g});
  check_alike(kOp, {"velocity", velocity}, {"theta", theta});
  check_rate(kOp, lr, theta);
  const std::initializer_list<Named> inputs = {{"theta", theta}, {"g", g}, {"velocity", velocity}};
  check_vectors(kOp, {"new_theta", new_theta}, inputs);
  check_vectors(kOp, {"new_velocity", new_velocity}, inputs);
  check_apart(kOp, {"new_velocity", new_velocity}, {{"new_theta", new_theta}});
  const Tensor theta_rows = with_dense_rows(theta), g_rows = with_dense_rows(g);
  const Tensor velocity_rows = with_dense_rows(velocity);
  AT_DISPATCH_FLOATING_TYPES(theta.scalar_type(), "fastmtt::sgd_momentum", [&] {
    using T = scalar_t;
    const auto from = rows_of<T>(theta_rows), slope = rows_of<T>(g_rows);
    const auto before = rows_of<T>(velocity_rows);
    const auto rates = rates_of<T>(lr, theta.size(0));
    const T kept = static_cast<T>(momentum), decay = static_cast<T>(weight_decay);
    map_rows<T>({new_theta, new_velocity}, [&](int64_t row) {
      return [=, t = from[row], d = slope[row], v = before[row], rate = rates[row]](int64_t j)
                 FASTMTT_INLINE {
        const T moving = kept * v[j] + (d[j] + decay * t[j]);
        return std::array<T, 2>{t[j] - rate * moving, moving};
      };
    });
  });
}

std::tuple<Tensor, Tensor> sgd_momentum(
    const Tensor& theta, const Tensor& g, const Tensor& velocity, const Tensor& lr, double momentum,
    double weight_decay) {
  const Tensor new_theta = at::empty(theta.sizes(), theta.options());
  const Tensor new_velocity = at::empty(theta.sizes(), theta.options());
  sgd_momentum_into(theta, g, velocity, lr, momentum, weight_decay, new_theta, new_velocity);
  return {new_theta, new_velocity};
}

void dot_into(const Tensor& a, const Tensor& b, const Tensor& result) {
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  check_pair("dot", {"a", a}, {"b", b});
  check_sums("dot", result, a);
  const Tensor a_rows = with_dense_rows(a), b_rows = with_dense_rows(b);
  AT_DISPATCH_FLOATING_TYPES(a.scalar_type(), "fastmtt::dot", [&] {
    const auto left = rows_of<scalar_t>(a_rows), right = rows_of<scalar_t>(b_rows);
    sum_rows_into<scalar_t>(result, a.size(1), [&](int64_t row) {
      return [x = left[row], y = right[row]](int64_t j) FASTMTT_INLINE {
        return std::array<double, 1>{double(x[j]) * double(y[j])};
      };
    });
  });
}

Tensor dot(const Tensor& a, const Tensor& b) {
  check_first("dot", "a", a);
  const Tensor result = at::empty({a.size(0)}, a.options());
  dot_into(a, b, result);
  return result;
}

void sqdist_into(
    const Tensor& theta, const Tensor& target, const std::optional<Tensor>& keep,
    const Tensor& result) {
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  check_pair("sqdist", {"theta", theta}, {"target", target});
  if (keep) check_keep(*keep, theta);
  check_sums("sqdist", result, theta);
  const Tensor theta_rows = with_dense_rows(theta), target_rows = with_dense_rows(target);
  const Tensor keep_rows = keep ? with_dense_rows(keep->expand(theta.sizes())) : Tensor();
  AT_DISPATCH_FLOATING_TYPES(theta.scalar_type(), "fastmtt::sqdist", [&] {
    const auto here = rows_of<scalar_t>(theta_rows), there = rows_of<scalar_t>(target_rows);
    const auto squared = [](scalar_t x, scalar_t y) FASTMTT_INLINE {
      const double d = double(x) - double(y);
      return d * d;
    };
    if (!keep) {
      sum_rows_into<scalar_t>(result, theta.size(1), [&](int64_t row) {
        return [=, x = here[row], y = there[row]](int64_t j) FASTMTT_INLINE {
          return std::array<double, 1>{squared(x[j], y[j])};
        };
      });
      return;
    }
    const auto kept = rows_of<bool>(keep_rows);
    sum_rows_into<scalar_t>(result, theta.size(1), [&](int64_t row) {
      return [=, x = here[row], y = there[row], k = kept[row]](int64_t j) FASTMTT_INLINE {
        // k[j] ? squared : 0, whatever squared is, without a jump that a random mask mispredicts.
        const uint64_t all_or_none = -static_cast<uint64_t>(k[j]);
        const uint64_t bits = c10::bit_cast<uint64_t>(squared(x[j], y[j])) & all_or_none;
        return std::array<double, 1>{c10::bit_cast<double>(bits)};
      };
    });
  });
}

Tensor sqdist(const Tensor& theta, const Tensor& target, const std::optional<Tensor>& keep) {
  check_first("sqdist", "theta", theta);
  const Tensor result = at::empty({theta.size(0)}, theta.options());
  sqdist_into(theta, target, keep, result);
  return result;
}

void gsam_perturb_into(
    const Tensor& theta, const Tensor& g, double rho, bool adaptive, const Tensor& result) {
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  check_pair("gsam_perturb", {"theta", theta}, {"g", g});
  check_vectors("gsam_perturb", {"result", result}, {{"theta", theta}, {"g", g}});
  const Tensor theta_rows = with_dense_rows(theta), g_rows = with_dense_rows(g);
  AT_DISPATCH_FLOATING_TYPES(theta.scalar_type(), "fastmtt::gsam_perturb", [&] {
    using T = scalar_t;
    const auto from = rows_of<T>(theta_rows), slope = rows_of<T>(g_rows);
    const auto perturb = [&](auto by_size) {
      const auto squares = sum_rows<1>(theta.size(0), theta.size(1), [&](int64_t row) {
        return [=, t = from[row], d = slope[row]](int64_t j) FASTMTT_INLINE {
          const double scaled = (by_size ? double(t[j]) : 1.0) * double(d[j]);
          return std::array<double, 1>{scaled * scaled};
        };
      });
      map_rows<T>({result}, [&](int64_t row) {
        const T step = static_cast<T>(rho / (std::sqrt(squares[row][0]) + 1e-12));
        return [=, t = from[row], d = slope[row]](int64_t j) FASTMTT_INLINE {
          return std::array<T, 1>{t[j] + step * (by_size ? t[j] * t[j] : T(1)) * d[j]};
        };
      });
    };
    adaptive ? perturb(std::true_type()) : perturb(std::false_type());
  });
}

Tensor gsam_perturb(const Tensor& theta, const Tensor& g, double rho, bool adaptive) {
  const Tensor result = at::empty(theta.sizes(), theta.options());
  gsam_perturb_into(theta, g, rho, adaptive, result);
  return result;
}

void gsam_combine_into(
    const Tensor& g, const Tensor& g_perturbed, double alpha, const Tensor& result) {
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  check_pair("gsam_combine", {"g", g}, {"g_perturbed", g_perturbed});
  check_vectors("gsam_combine", {"result", result}, {{"g", g}, {"g_perturbed", g_perturbed}});
  const Tensor g_rows = with_dense_rows(g), perturbed_rows = with_dense_rows(g_perturbed);
  AT_DISPATCH_FLOATING_TYPES(g.scalar_type(), "fastmtt::gsam_combine", [&] {
    using T = scalar_t;
    const auto here = rows_of<T>(g_rows), uphill = rows_of<T>(perturbed_rows);
    const auto sums = sum_rows<3>(g.size(0), g.size(1), [&](int64_t row) {
      return [x = here[row], y = uphill[row]](int64_t j) FASTMTT_INLINE {
        const double a = x[j], b = y[j];
        return std::array<double, 3>{a * a, b * b, a * b};
      };
    });
    map_rows<T>({result}, [&](int64_t row) {
      const double norm = std::sqrt(sums[row][0]), norm_perturbed = std::sqrt(sums[row][1]);
      const double cosine = sums[row][2] / (norm_perturbed * norm + 1e-12);
      const T share = static_cast<T>(cosine * norm / (norm_perturbed + 1e-12));
      return [=, weight = static_cast<T>(alpha), x = here[row], y = uphill[row]](int64_t j)
                 FASTMTT_INLINE {
        return std::array<T, 1>{y[j] - weight * (x[j] - share * y[j])};
      };
    });
  });
}

Tensor gsam_combine(const Tensor& g, const Tensor& g_perturbed, double alpha) {
  const Tensor result = at::empty(g.sizes(), g.options());
  gsam_combine_into(g, g_perturbed, alpha, result);
  return result;
}

}  // namespace
}  // namespace fastmtt

TORCH_LIBRARY_IMPL(fastmtt, CPU, m) {
  m.impl("sgd_update", &fastmtt::sgd_update);
  m.impl("sgd_update.into", &fastmtt::sgd_update_into);
  m.impl("sgd_momentum", &fastmtt::sgd_momentum);
  m.impl("sgd_momentum.into", &fastmtt::sgd_momentum_into);
  m.impl("dot", &fastmtt::dot);
  m.impl("dot.into", &fastmtt::dot_into);
  m.impl("sqdist", &fastmtt::sqdist);
  m.impl("sqdist.into", &fastmtt::sqdist_into);
  m.impl("gsam_perturb", &fastmtt::gsam_perturb);
  m.impl("gsam_perturb.into", &fastmtt::gsam_perturb_into);
  m.impl("gsam_combine", &fastmtt::gsam_combine);
  m.impl("gsam_combine.into", &fastmtt::gsam_combine_into);
}
