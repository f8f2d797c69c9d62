// Kernels of the flat-vector ops: an item is a chunk of a student's rows.
//
// In which order sums are added up follows from the elements' places in their row, as which thread
// takes which elements does (pairs.h): no bit depends on alignment or company.

#pragma once

#include <cmath>
#include <cstdint>

#include "kernel.h"
#include "pairs.h"

namespace fastmtt::cuda {

template <typename T>
struct SgdUpdate : Plain {
  static constexpr int kThreads = kFlatThreads, kResident = kFlatResident;

  FASTMTT_ANYWHERE int64_t items(Stage<0>) const { return of.items(); }

  template <class Block>
  FASTMTT_BODY void run(Stage<0>, Block& block, int64_t item) const {
    const Chunk chunk = of.chunk(item);
    const T rate = rates[chunk.row * rates_row];
    block.each([&](int thread, Thread&) {
      T* out = result + chunk.row * result_row;
      of.map(chunk, thread, out, [=](T theta, T g) { return theta - rate * g; });
    });
  }

  Pair<T> of;
  const T* rates;
  int64_t rates_row;
  T* result;
  int64_t result_row;
};

// SGD with momentum, of theta and g.
template <typename T>
struct SgdMomentum : Plain {
  static constexpr int kThreads = kFlatThreads, kResident = kFlatResident;

  FASTMTT_ANYWHERE int64_t items(Stage<0>) const { return of.items(); }

  template <class Block>
  FASTMTT_BODY void run(Stage<0>, Block& block, int64_t item) const {
    const Chunk chunk = of.chunk(item);
    const T rate = rates[chunk.row * rates_row];
    const T* before = velocity + chunk.row * velocity_row;
    T* to = new_theta + chunk.row * new_theta_row;
    T* after = new_velocity + chunk.row * new_velocity_row;
    const uintptr_t others = address(before) | address(to) | address(after);
    block.each([&](int thread, Thread&) {
      of.visit(chunk, thread, others, [&](int64_t j, const auto& theta, const auto& g, auto width) {
        constexpr int kCount = sizeof(theta) / sizeof(T);
        T moving[kCount], there[kCount];
        load<width>(before + j, moving);
        for (int k = 0; k < kCount; ++k) {
          moving[k] = momentum * moving[k] + (g[k] + weight_decay * theta[k]);
          there[k] = theta[k] - rate * moving[k];
        }
        store<width>(there, to + j);
        store<width>(moving, after + j);
      });
    });
  }

  Pair<T> of;
  const T *velocity, *rates;
  int64_t velocity_row, rates_row;
  T momentum, weight_decay;
  T *new_theta, *new_velocity;
  int64_t new_theta_row, new_velocity_row;
};

// Sums over each row of terms.add(row, j, x, y, sums): chunks in the first stage, each row's chunks
// in the second, which hands them to terms.finish(row, sums).
template <typename T, class Terms>
struct RowSums {
  static constexpr int kThreads = kFlatThreads, kResident = kFlatResident;
  static constexpr int kStages = 2, kSums = Terms::kSums;
  struct Shared {
    double lanes[kSums][kThreads];
  };
  struct Thread {};

  FASTMTT_ANYWHERE int64_t items(Stage<0>) const { return of.items(); }
  FASTMTT_ANYWHERE int64_t items(Stage<1>) const { return of.rows; }

  template <class Block>
  FASTMTT_BODY void run(Stage<0>, Block& block, int64_t item) const {
    const Chunk chunk = of.chunk(item);
    block.each([&](int thread, Thread&) {
      double sums[kSums] = {};
      of.visit(chunk, thread, 0, [&](int64_t j, const auto& x, const auto& y, auto) {
        for (int k = 0; k < int(sizeof(x) / sizeof(T)); ++k) {
          terms.add(chunk.row, j + k, x[k], y[k], sums);
        }
      });
      for (int i = 0; i < kSums; ++i) block.shared.lanes[i][thread] = sums[i];
    });
    add_lanes(block);
    block.each([&](int thread, Thread&) {
      if (thread < kSums) partial[item * kSums + thread] = block.shared.lanes[thread][0];
    });
  }

  template <class Block>
  FASTMTT_BODY void run(Stage<1>, Block& block, int64_t row) const {
    const double* chunks = partial + row * of.chunks() * kSums;
    block.each([&](int thread, Thread&) {
      double sums[kSums] = {};
      for (int64_t chunk = thread; chunk < of.chunks(); chunk += kThreads) {
        for (int i = 0; i < kSums; ++i) sums[i] += chunks[chunk * kSums + i];
      }
      for (int i = 0; i < kSums; ++i) block.shared.lanes[i][thread] = sums[i];
    });
    add_lanes(block);
    block.each([&](int thread, Thread&) {
      double sums[kSums];
      for (int i = 0; i < kSums; ++i) sums[i] = block.shared.lanes[i][0];
      if (thread == 0) terms.finish(row, sums);
    });
  }

  // lanes[i][0] = the sum of lanes[i]
  template <class Block>
  static FASTMTT_BODY void add_lanes(Block& block) {
    for (int half = kThreads / 2; half > 0; half /= 2) {
      block.each([&](int thread, Thread&) {
        if (thread >= half) return;
        for (auto& lane : block.shared.lanes) lane[thread] += lane[thread + half];
      });
    }
  }

  Pair<T> of;
  Terms terms;
  double* partial;
};

// RowSums, whose terms.finish leaves a factor of each row, and then, in a third stage,
// result = terms.value(x, y, factor).
template <typename T, class Terms>
struct RowMap : RowSums<T, Terms> {
  using Sums = RowSums<T, Terms>;
  static constexpr int kStages = 3;

  using Sums::items, Sums::run, Sums::of, Sums::terms;
  FASTMTT_ANYWHERE int64_t items(Stage<2>) const { return of.items(); }

  template <class Block>
  FASTMTT_BODY void run(Stage<2>, Block& block, int64_t item) const {
    const Chunk chunk = of.chunk(item);
    const T factor = terms.factors[chunk.row];
    block.each([&](int thread, auto&) {
      T* out = result + chunk.row * result_row;
      of.map(chunk, thread, out, [&](T x, T y) { return terms.value(x, y, factor); });
    });
  }

  T* result;
  int64_t result_row;
};

template <typename T>
struct Products {
  static constexpr int kSums = 1;
  FASTMTT_BODY void add(int64_t, int64_t, T x, T y, double (&sums)[kSums]) const {
    sums[0] += double(x) * double(y);
  }
  FASTMTT_BODY void finish(int64_t row, const double (&sums)[kSums]) const {
    result[row] = static_cast<T>(sums[0]);
  }

  T* result;
};

template <typename T>
struct SquaredDistances {
  static constexpr int kSums = 1;
  FASTMTT_BODY void add(int64_t row, int64_t j, T x, T y, double (&sums)[kSums]) const {
    const double d = double(x) - double(y);
    if (keep == nullptr || keep[row * keep_row + j]) sums[0] += d * d;
  }
  FASTMTT_BODY void finish(int64_t row, const double (&sums)[kSums]) const {
    result[row] = static_cast<T>(sums[0]);
  }

  const bool* keep;  // or null
  int64_t keep_row;
  T* result;
};

// Of theta and g: the length of the gradient, scaled by the weights' sizes if adaptive.
template <typename T>
struct Perturbations {
  static constexpr int kSums = 1;
  FASTMTT_BODY void add(int64_t, int64_t, T theta, T g, double (&sums)[kSums]) const {
    const double scaled = (adaptive ? double(theta) : 1.0) * double(g);
    sums[0] += scaled * scaled;
  }
  FASTMTT_BODY void finish(int64_t row, const double (&sums)[kSums]) const {
    factors[row] = static_cast<T>(rho / (std::sqrt(sums[0]) + 1e-12));
  }
  FASTMTT_BODY T value(T theta, T g, T step) const {
    return theta + step * (adaptive ? theta * theta : T(1)) * g;
  }

  double rho;
  bool adaptive;
  T* factors;
};

// Of g and the perturbed g: the share of the second in the first.
template <typename T>
struct Combinations {
  static constexpr int kSums = 3;
  FASTMTT_BODY void add(int64_t, int64_t, T g, T perturbed, double (&sums)[kSums]) const {
    sums[0] += double(g) * double(g);
    sums[1] += double(perturbed) * double(perturbed);
    sums[2] += double(g) * double(perturbed);
  }
  FASTMTT_BODY void finish(int64_t row, const double (&sums)[kSums]) const {
    const double norm = std::sqrt(sums[0]), norm_perturbed = std::sqrt(sums[1]);
    const double cosine = sums[2] / (norm_perturbed * norm + 1e-12);
    factors[row] = static_cast<T>(cosine * norm / (norm_perturbed + 1e-12));
  }
  FASTMTT_BODY T value(T g, T perturbed, T share) const {
    return perturbed - alpha * (g - share * perturbed);
  }

  T alpha;
  T* factors;
};

template <typename T>
using Dot = RowSums<T, Products<T>>;
template <typename T>
using Sqdist = RowSums<T, SquaredDistances<T>>;
template <typename T>
using GsamPerturb = RowMap<T, Perturbations<T>>;
template <typename T>
using GsamCombine = RowMap<T, Combinations<T>>;

}  // namespace fastmtt::cuda
