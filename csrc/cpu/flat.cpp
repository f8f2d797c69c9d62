// sgd_update, dot, sqdist: flat weight vectors [S,P], a row a student.

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/util/bit_cast.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "widest.h"

namespace {

// Partial sums cover fixed chunks of a row, so that no result depends on the number of threads.
constexpr int64_t kChunk = 4096;
constexpr int64_t kChunksATask = 8;
constexpr int64_t kLanes = 32;  // independent sums, for the vector units and the adder's latency

void check_first(const char* op, const char* name, const at::Tensor& t) {
  TORCH_CHECK(t.dim() == 2, "fastmtt::", op, ": ", name, " must have shape [S, P], got ", t.sizes());
  TORCH_CHECK(
      t.scalar_type() == at::kFloat || t.scalar_type() == at::kDouble,
      "fastmtt::", op, ": ", name, " must be float32 or float64, got ", t.scalar_type());
}

void check_alike(
    const char* op, const char* name, const at::Tensor& t, const char* first_name,
    const at::Tensor& first) {
  TORCH_CHECK(
      t.sizes() == first.sizes(),
      "fastmtt::", op, ": ", name, " must have the shape of ", first_name, ", ", first.sizes(),
      ", got ", t.sizes());
  TORCH_CHECK(
      t.scalar_type() == first.scalar_type(),
      "fastmtt::", op, ": ", name, " must have the dtype of ", first_name, ", ",
      first.scalar_type(), ", got ", t.scalar_type());
}

at::Tensor with_contiguous_rows(const at::Tensor& t) {
  return t.size(1) <= 1 || t.stride(1) == 1 ? t : t.contiguous();
}

template <typename T>
struct Rows {
  explicit Rows(const at::Tensor& t) : data(t.const_data_ptr<T>()), stride(t.stride(0)) {}
  const T* operator[](int64_t row) const { return data + row * stride; }
  const T* data;
  int64_t stride;
};

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

template <typename Term>
[[gnu::always_inline]] inline double sum_lanes(int64_t begin, int64_t end, const Term& term) {
  double lane[kLanes] = {};
  int64_t j = begin;
  for (; j + kLanes <= end; j += kLanes) {
    for (int64_t k = 0; k < kLanes; ++k) lane[k] += term(j + k);
  }
  for (int64_t k = 0; j < end; ++j, ++k) lane[k] += term(j);
  for (int64_t half = kLanes / 2; half > 0; half /= 2) {
    for (int64_t k = 0; k < half; ++k) lane[k] += lane[k + half];
  }
  return lane[0];
}

template <typename Term>
double sum(int64_t begin, int64_t end, const Term& term) {
  double result = 0;
  fastmtt::run_widest([&]() FASTMTT_INLINE { result = sum_lanes(begin, end, term); });
  return result;
}

// result[row] = sum over columns j of term(row)(j), added up in double.
template <typename T, typename Term>
at::Tensor sum_rows(const at::Tensor& like, const Term& term) {
  const int64_t rows = like.size(0), columns = like.size(1), per_row = chunks_a_row(columns);
  std::vector<double> partial(rows * per_row);
  for_chunks(rows, columns, [&](int64_t chunk, int64_t row, int64_t begin, int64_t end) {
    partial[chunk] = sum(begin, end, term(row));
  });
  at::Tensor result = at::empty({rows}, like.options());
  T* out = result.mutable_data_ptr<T>();
  for (int64_t row = 0; row < rows; ++row) {
    double total = 0;
    for (int64_t i = 0; i < per_row; ++i) total += partial[row * per_row + i];
    out[row] = static_cast<T>(total);
  }
  return result;
}

at::Tensor sgd_update(const at::Tensor& theta, const at::Tensor& g, const at::Tensor& lr) {
  check_first("sgd_update", "theta", theta);
  check_alike("sgd_update", "g", g, "theta", theta);
  const int64_t rows = theta.size(0), columns = theta.size(1);
  TORCH_CHECK(
      lr.dim() == 0 || (lr.dim() == 1 && lr.size(0) == rows),
      "fastmtt::sgd_update: lr must have shape [] or [S] = [", rows, "], got ", lr.sizes());
  TORCH_CHECK(
      lr.scalar_type() == theta.scalar_type(),
      "fastmtt::sgd_update: lr must have the dtype of theta, ", theta.scalar_type(), ", got ",
      lr.scalar_type());
  const at::Tensor theta_rows = with_contiguous_rows(theta), g_rows = with_contiguous_rows(g);
  at::Tensor result = at::empty({rows, columns}, theta.options());
  AT_DISPATCH_FLOATING_TYPES(theta.scalar_type(), "fastmtt::sgd_update", [&] {
    const Rows<scalar_t> from(theta_rows), step(g_rows);
    const scalar_t* rate = lr.const_data_ptr<scalar_t>();
    const int64_t rate_stride = lr.dim() == 0 ? 0 : lr.stride(0);
    scalar_t* out = result.mutable_data_ptr<scalar_t>();
    for_chunks(rows, columns, [&](int64_t, int64_t row, int64_t begin, int64_t end) {
      const scalar_t *t = from[row], *d = step[row];
      const scalar_t beta = rate[row * rate_stride];
      scalar_t* o = out + row * columns;
      for (int64_t j = begin; j < end; ++j) o[j] = t[j] - beta * d[j];
    });
  });
  return result;
}

at::Tensor dot(const at::Tensor& a, const at::Tensor& b) {
  check_first("dot", "a", a);
  check_alike("dot", "b", b, "a", a);
  const at::Tensor a_rows = with_contiguous_rows(a), b_rows = with_contiguous_rows(b);
  return AT_DISPATCH_FLOATING_TYPES(a.scalar_type(), "fastmtt::dot", [&] {
    const Rows<scalar_t> left(a_rows), right(b_rows);
    return sum_rows<scalar_t>(a, [&](int64_t row) {
      return [x = left[row], y = right[row]](int64_t j) { return double(x[j]) * double(y[j]); };
    });
  });
}

at::Tensor sqdist(
    const at::Tensor& theta, const at::Tensor& target, const std::optional<at::Tensor>& keep) {
  check_first("sqdist", "theta", theta);
  check_alike("sqdist", "target", target, "theta", theta);
  if (keep) {
    TORCH_CHECK(
        keep->scalar_type() == at::kBool, "fastmtt::sqdist: keep must be bool, got ",
        keep->scalar_type());
    TORCH_CHECK(
        keep->sizes() == theta.sizes() || keep->sizes() == theta.sizes().slice(1),
        "fastmtt::sqdist: keep must have shape [P] or [S, P] for theta ", theta.sizes(), ", got ",
        keep->sizes());
  }
  const at::Tensor theta_rows = with_contiguous_rows(theta);
  const at::Tensor target_rows = with_contiguous_rows(target);
  const at::Tensor keep_rows =
      keep ? with_contiguous_rows(keep->expand(theta.sizes())) : at::Tensor();
  return AT_DISPATCH_FLOATING_TYPES(theta.scalar_type(), "fastmtt::sqdist", [&] {
    const Rows<scalar_t> here(theta_rows), there(target_rows);
    const auto squared = [](scalar_t x, scalar_t y) {
      const double d = double(x) - double(y);
      return d * d;
    };
    if (!keep) {
      return sum_rows<scalar_t>(theta, [&](int64_t row) {
        return [=, x = here[row], y = there[row]](int64_t j) { return squared(x[j], y[j]); };
      });
    }
    const Rows<bool> kept(keep_rows);
    return sum_rows<scalar_t>(theta, [&](int64_t row) {
      return [=, x = here[row], y = there[row], k = kept[row]](int64_t j) {
        // k[j] ? squared : 0, whatever squared is, without a jump that a random mask mispredicts.
        const uint64_t all_or_none = -static_cast<uint64_t>(k[j]);
        return c10::bit_cast<double>(c10::bit_cast<uint64_t>(squared(x[j], y[j])) & all_or_none);
      };
    });
  });
}

}  // namespace

TORCH_LIBRARY_IMPL(fastmtt, CPU, m) {
  m.impl("sgd_update", &sgd_update);
  m.impl("dot", &dot);
  m.impl("sqdist", &sqdist);
}
