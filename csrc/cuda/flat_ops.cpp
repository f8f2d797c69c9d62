// sgd_update, sgd_momentum, dot, sqdist, gsam_perturb, gsam_combine on a GPU: one launch each.

#include <tuple>

#include "../flat_arguments.h"
#include "../cpu/rows.h"
#include "flat_kernels.h"
#include "op.h"

namespace fastmtt::cuda {
namespace {

using at::Tensor;

// The checks of two vectors a student; what kernels read of them.
struct Vectors {
  Vectors(const char* op, const Named& first, const Named& second)
      : op(op), a_in(first), b_in(second) {
    check_pair(op, first, second);
    check_devices(op, first, {second});
    a = with_dense_rows(first.tensor);
    b = with_dense_rows(second.tensor);
  }

  template <typename T>
  Pair<T> pair() const {
    return {a.const_data_ptr<T>(), b.const_data_ptr<T>(), a.stride(0), b.stride(0), a.size(0),
            a.size(1)};
  }
  void check_vectors(const Named& result) const {
    check_place(result, a.sizes());
    check_whole(op, result, {a_in, b_in});
  }
  void check_sums(const Named& result) const { check_place(result, a.sizes().slice(0, 1)); }
  void check_place(const Named& result, at::IntArrayRef shape) const {
    check_devices(op, a_in, {result});
    check_students_result(op, result, shape, a);
  }
  // Every block reads it: no result may lie there.
  void check_rate(const Tensor& lr, std::initializer_list<Named> results) const {
    fastmtt::check_rate(op, lr, a);
    check_devices(op, a_in, {{"lr", lr}});
    for (const Named& result : results) check_apart(op, result, {{"lr", lr}});
  }
  Tensor partial_sums(int64_t count) const {
    const int64_t chunks = (a.size(1) + kChunk - 1) / kChunk;
    return at::empty({a.size(0) * chunks, count}, a.options().dtype(at::kDouble));
  }

  const char* op;
  Named a_in, b_in;
  Tensor a, b;
};

template <typename T, class Terms>
void sum_rows(const Vectors& vectors, const Terms& terms) {
  const Tensor partial = vectors.partial_sums(Terms::kSums);
  run(RowSums<T, Terms>{vectors.pair<T>(), terms, partial.mutable_data_ptr<double>()}, vectors.a);
}

// Terms that keep a factor of each row, last among their members.
template <typename T, class Terms, class... Given>
void map_rows(const Vectors& vectors, const Tensor& result, Given... given) {
  const Tensor partial = vectors.partial_sums(Terms::kSums);
  const Tensor factors = at::empty({vectors.a.size(0)}, vectors.a.options());
  const Terms terms{given..., factors.mutable_data_ptr<T>()};
  run(RowMap<T, Terms>{{vectors.pair<T>(), terms, partial.mutable_data_ptr<double>()},
                       result.mutable_data_ptr<T>(), result.stride(0)},
      vectors.a);
}

void sgd_update_into(
    const Tensor& theta, const Tensor& g, const Tensor& lr, const Tensor& result) {
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  const Vectors vectors("sgd_update", {"theta", theta}, {"g", g});
  vectors.check_rate(lr, {{"result", result}});
  vectors.check_vectors({"result", result});
  AT_DISPATCH_FLOATING_TYPES(theta.scalar_type(), "fastmtt::sgd_update", [&] {
    run(SgdUpdate<scalar_t>{{}, vectors.pair<scalar_t>(), lr.const_data_ptr<scalar_t>(),
                            lr.dim() == 0 ? 0 : lr.stride(0), result.mutable_data_ptr<scalar_t>(),
                            result.stride(0)},
        theta);
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
  const Vectors vectors(kOp, {"theta", theta}, {"g", g});
  check_alike(kOp, {"velocity", velocity}, {"theta", theta});
  check_devices(kOp, {"theta", theta}, {{"velocity", velocity}});
  const std::initializer_list<Named> results = {
      {"new_theta", new_theta}, {"new_velocity", new_velocity}};
  for (const Named& result : results) {
    vectors.check_vectors(result);
    check_whole(kOp, result, {{"velocity", velocity}});
  }
  check_apart(kOp, {"new_velocity", new_velocity}, {{"new_theta", new_theta}});
  vectors.check_rate(lr, results);
  const Tensor before = with_dense_rows(velocity);
  AT_DISPATCH_FLOATING_TYPES(theta.scalar_type(), "fastmtt::sgd_momentum", [&] {
    using T = scalar_t;
    run(SgdMomentum<T>{{}, vectors.pair<T>(), before.const_data_ptr<T>(), lr.const_data_ptr<T>(),
                       before.stride(0), lr.dim() == 0 ? 0 : lr.stride(0),
                       static_cast<T>(momentum), static_cast<T>(weight_decay),
                       new_theta.mutable_data_ptr<T>(), new_velocity.mutable_data_ptr<T>(),
                       new_theta.stride(0), new_velocity.stride(0)},
        theta);
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
  const Vectors vectors("dot", {"a", a}, {"b", b});
  vectors.check_sums({"result", result});
  AT_DISPATCH_FLOATING_TYPES(a.scalar_type(), "fastmtt::dot", [&] {
    sum_rows<scalar_t>(vectors, Products<scalar_t>{result.mutable_data_ptr<scalar_t>()});
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
  const Vectors vectors("sqdist", {"theta", theta}, {"target", target});
  vectors.check_sums({"result", result});
  Tensor kept;
  if (keep) {
    check_keep(*keep, theta);
    check_devices("sqdist", {"theta", theta}, {{"keep", *keep}});
    kept = with_dense_rows(keep->expand(theta.sizes()));
  }
  AT_DISPATCH_FLOATING_TYPES(theta.scalar_type(), "fastmtt::sqdist", [&] {
    sum_rows<scalar_t>(
        vectors,
        SquaredDistances<scalar_t>{keep ? kept.const_data_ptr<bool>() : nullptr,
                                   keep ? kept.stride(0) : 0, result.mutable_data_ptr<scalar_t>()});
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
  const Vectors vectors("gsam_perturb", {"theta", theta}, {"g", g});
  vectors.check_vectors({"result", result});
  AT_DISPATCH_FLOATING_TYPES(theta.scalar_type(), "fastmtt::gsam_perturb", [&] {
    map_rows<scalar_t, Perturbations<scalar_t>>(vectors, result, rho, adaptive);
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
  const Vectors vectors("gsam_combine", {"g", g}, {"g_perturbed", g_perturbed});
  vectors.check_vectors({"result", result});
  AT_DISPATCH_FLOATING_TYPES(g.scalar_type(), "fastmtt::gsam_combine", [&] {
    map_rows<scalar_t, Combinations<scalar_t>>(vectors, result, static_cast<scalar_t>(alpha));
  });
}

Tensor gsam_combine(const Tensor& g, const Tensor& g_perturbed, double alpha) {
  const Tensor result = at::empty(g.sizes(), g.options());
  gsam_combine_into(g, g_perturbed, alpha, result);
  return result;
}

}  // namespace
}  // namespace fastmtt::cuda

FASTMTT_CUDA_OPS(m) {
  m.impl("sgd_update", &fastmtt::cuda::sgd_update);
  m.impl("sgd_update.into", &fastmtt::cuda::sgd_update_into);
  m.impl("sgd_momentum", &fastmtt::cuda::sgd_momentum);
  m.impl("sgd_momentum.into", &fastmtt::cuda::sgd_momentum_into);
  m.impl("dot", &fastmtt::cuda::dot);
  m.impl("dot.into", &fastmtt::cuda::dot_into);
  m.impl("sqdist", &fastmtt::cuda::sqdist);
  m.impl("sqdist.into", &fastmtt::cuda::sqdist_into);
  m.impl("gsam_perturb", &fastmtt::cuda::gsam_perturb);
  m.impl("gsam_perturb.into", &fastmtt::cuda::gsam_perturb_into);
  m.impl("gsam_combine", &fastmtt::cuda::gsam_combine);
  m.impl("gsam_combine.into", &fastmtt::cuda::gsam_combine_into);
}
