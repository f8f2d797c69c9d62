// Kernels of the head: a linear classifier with softmax cross-entropy, mean over the batch.
//
// How sums are divided follows from the sizes of one student: no bit depends on company.

#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "kernel.h"
#include "memory.h"
#include "tile.h"

namespace fastmtt::cuda {

constexpr int kHeadThreads = 256, kHeadResident = 2;

struct HeadSizes {
  int64_t students, batch, classes, features;
};

// Labels of either kind.
template <typename T>
struct Labels {
  FASTMTT_BODY bool soft() const { return indices.data == nullptr; }
  FASTMTT_BODY T target(int64_t student, int64_t image, int64_t k, int64_t classes) const {
    if (soft()) return probabilities[student][image * classes + k];
    return indices[student][image] == k ? 1 : 0;
  }
  // A GPU cannot refuse a class that does not exist: all that comes of it is NaN.
  FASTMTT_BODY bool known(int64_t student, int64_t image, int64_t classes) const {
    return soft() || (indices[student][image] >= 0 && indices[student][image] < classes);
  }

  Students<const int64_t> indices;  // null where they are probabilities
  Students<const T> probabilities;
};

// A number of each thread, some threads to an image, joined over these in one order.
struct Lanes {
  static constexpr int kLanes = 32, kImages = kHeadThreads / kLanes;

  FASTMTT_BODY void put(int thread, double value) { at[thread / kLanes][thread % kLanes] = value; }
  FASTMTT_BODY double joined(int thread) const { return at[thread / kLanes][0]; }

  template <class Block, class Join>
  FASTMTT_BODY void join(Block& block, const Join& join) {
    for (int half = kLanes / 2; half > 0; half /= 2) {
      block.each([&](int thread, auto&) {
        const int lane = thread % kLanes;
        double* row = at[thread / kLanes];
        if (lane < half) row[lane] = join(row[lane], row[lane + half]);
      });
    }
  }
  template <class Block>
  FASTMTT_BODY void add(Block& block) {
    join(block, [](double x, double y) { return x + y; });
  }

  double at[kImages][kLanes];
};

// Some images of a student, to work on their rows of classes by lanes.
struct Rows {
  FASTMTT_ANYWHERE static int64_t items(const HeadSizes& of) {
    return of.students * pieces_of(of.batch, Lanes::kImages);
  }
  FASTMTT_BODY Rows(const HeadSizes& of, int64_t item) : batch(of.batch), classes(of.classes) {
    first = take(item, pieces_of(batch, Lanes::kImages)) * Lanes::kImages;
    student = item;
  }

  FASTMTT_BODY int64_t image(int thread) const { return first + thread / Lanes::kLanes; }

  // work(at, k) for a thread's classes k of its image, whose place in [B,K] is at
  template <class Work>
  FASTMTT_BODY void visit(int thread, const Work& work) const {
    if (image(thread) >= batch) return;
    for (int64_t k = thread % Lanes::kLanes; k < classes; k += Lanes::kLanes) {
      work(image(thread) * classes + k, k);
    }
  }

  int64_t batch, classes, first, student;
};

// Log-probabilities and loss; or, if tangent, the tangents of both.
template <typename T>
struct LinearXent {
  static constexpr int kThreads = kHeadThreads, kResident = kHeadResident, kStages = 3;
  static constexpr int kImages = 32, kClasses = 16;
  using Products = Tile<T, kImages, kClasses, kThreads>;
  struct Shared {
    Products tile;
    Lanes most, sums, shares;
  };
  struct Thread {
    typename Products::Sums sums;
  };

  // Features of a piece: fewer where there are few logits, so that there are blocks enough.
  FASTMTT_ANYWHERE int64_t length() const {
    constexpr int64_t kLeast = 128, kEnough = 4096;
    return kLeast * (1 + of.batch * of.classes / kEnough);
  }
  FASTMTT_ANYWHERE int64_t pieces() const { return pieces_of(of.features, length()); }

  // A tile of the logits, summed over a piece of the features.
  FASTMTT_ANYWHERE int64_t items(Stage<0>) const {
    return of.students * pieces() * pieces_of(of.batch, kImages) * pieces_of(of.classes, kClasses);
  }
  template <class Block>
  FASTMTT_BODY void run(Stage<0>, Block& block, int64_t item) const {
    const int64_t k = take(item, pieces_of(of.classes, kClasses)) * kClasses;
    const int64_t image = take(item, pieces_of(of.batch, kImages)) * kImages;
    const int64_t piece = take(item, pieces()), s = item;
    const int64_t begin = piece * length();
    const int64_t end = begin + length() < of.features ? begin + length() : of.features;
    const auto add = [&](const Students<const T>& x, const Students<const T>& weights) {
      const Lines<T> left{x[s], of.features, image, of.batch};
      const Lines<T> right{weights[s], of.features, k, of.classes};
      Products::add(block, block.shared.tile, left, right, begin, end);
    };
    block.each([&](int, Thread& mine) { mine.sums = {}; });
    if (tangent) {
      add(f_dot, w);
      add(f, w_dot);
    } else {
      add(f, w);
    }
    T* to = products + (s * pieces() + piece) * of.batch * of.classes;
    block.each([&](int thread, Thread& mine) {
      Products::visit(thread, mine.sums, [&](int i, int j, T sum) {
        const bool inside = image + i < of.batch && k + j < of.classes;
        if (inside) to[(image + i) * of.classes + k + j] = sum;
      });
    });
  }

  FASTMTT_BODY T logit(int64_t s, int64_t at, int64_t k) const {
    const int64_t logits = of.batch * of.classes;
    const T* part = products + s * pieces() * logits + at;
    T sum = b[s][k];
    for (int64_t piece = 0; piece < pieces(); ++piece) sum += part[piece * logits];
    return sum;
  }

  // Some images' rows, and their shares of the loss.
  FASTMTT_ANYWHERE int64_t items(Stage<1>) const { return Rows::items(of); }
  template <class Block>
  FASTMTT_BODY void run(Stage<1>, Block& block, int64_t item) const {
    const Rows rows(of, item);
    const int64_t s = rows.student;
    auto& [tile, most, sums, losses] = block.shared;
    T* row = out[s];
    const auto joined = [this](double x, double y) {
      return tangent ? x + y : x > y ? x : y;  // the mean of a tangent, or the largest logit
    };
    block.each([&](int thread, auto&) {
      double found = tangent ? 0 : -std::numeric_limits<double>::infinity();
      rows.visit(thread, [&](int64_t at, int64_t k) {
        row[at] = logit(s, at, k);
        const double part = tangent ? double(std::exp(logp[s][at])) : 1;
        found = joined(found, part * double(row[at]));
      });
      most.put(thread, found);
    });
    most.join(block, joined);
    block.each([&](int thread, auto&) {
      double sum = 0;
      rows.visit(thread, [&](int64_t at, int64_t) {
        row[at] -= static_cast<T>(most.joined(thread));
        if (!tangent) sum += double(std::exp(row[at]));
      });
      sums.put(thread, sum);
    });
    if (!tangent) sums.add(block);
    block.each([&](int thread, auto&) {
      const T shift = tangent ? T(0) : static_cast<T>(std::log(sums.joined(thread)));
      double share = 0;
      rows.visit(thread, [&](int64_t at, int64_t k) {
        const bool known = y.known(s, rows.image(thread), of.classes);
        row[at] = known ? row[at] - shift : std::numeric_limits<T>::quiet_NaN();
        share += double(y.target(s, rows.image(thread), k, of.classes)) * double(row[at]);
      });
      losses.put(thread, share);
    });
    losses.add(block);
    block.each([&](int thread, auto&) {
      const bool one = thread % Lanes::kLanes == 0 && rows.image(thread) < of.batch;
      if (one) shares[s * of.batch + rows.image(thread)] = losses.joined(thread);
    });
  }

  // A student's loss.
  FASTMTT_ANYWHERE int64_t items(Stage<2>) const { return of.students; }
  template <class Block>
  FASTMTT_BODY void run(Stage<2>, Block& block, int64_t s) const {
    Lanes& losses = block.shared.shares;
    block.each([&](int thread, auto&) {
      double sum = 0;
      if (thread < Lanes::kLanes) {
        for (int64_t image = thread; image < of.batch; image += Lanes::kLanes) {
          sum += shares[s * of.batch + image];
        }
      }
      losses.put(thread, sum);
    });
    losses.add(block);
    block.each([&](int thread, auto&) {
      if (thread == 0) loss[s] = static_cast<T>(-losses.joined(thread) / of.batch);
    });
  }

  HeadSizes of;
  bool tangent;
  Students<const T> f, f_dot, w, w_dot, b, logp;  // of a tangent, b is b_dot
  Labels<T> y;
  T* loss;
  Students<T> out;  // [B,K]
  T* products;      // [S,pieces,B,K]
  double* shares;   // [S,B]
};

// Cotangents of features and parameters; or, if tangent, the tangents of these.
template <typename T>
struct LinearXentBackward {
  static constexpr int kThreads = kHeadThreads, kResident = kHeadResident, kStages = 2;
  static constexpr int kLines = 16, kFeatures = 64;
  using Products = Tile<T, kLines, kFeatures, kThreads>;
  struct Shared {
    Products tile;
    Lanes weights;
  };
  struct Thread {
    typename Products::Sums sums;
  };

  // Some images' gradients of the logits, with tangents, and of the labels.
  FASTMTT_ANYWHERE int64_t items(Stage<0>) const { return Rows::items(of); }
  template <class Block>
  FASTMTT_BODY void run(Stage<0>, Block& block, int64_t item) const {
    const Rows rows(of, item);
    const int64_t s = rows.student, offset = s * of.batch * of.classes;
    Lanes& weights = block.shared.weights;
    block.each([&](int thread, auto&) {
      double sum = 0;
      rows.visit(thread, [&](int64_t, int64_t k) {
        sum += double(y.target(s, rows.image(thread), k, of.classes));
      });
      weights.put(thread, sum);
    });
    weights.add(block);
    block.each([&](int thread, auto&) {
      const T share = T(1) / of.batch, weight = static_cast<T>(weights.joined(thread));
      rows.visit(thread, [&](int64_t at, int64_t k) {
        const T p = std::exp(logp[s][at]) * weight;
        g[offset + at] = (p - y.target(s, rows.image(thread), k, of.classes)) * share;
        if (tangent) g_dot[offset + at] = p * logp_dot[s][at] * share;
        if (y.soft()) gy[s][at] = -(tangent ? logp_dot : logp)[s][at] * share;
      });
    });
  }

  // A tile of one of the results.
  FASTMTT_ANYWHERE int64_t tiles(int64_t lines) const {
    return of.students * pieces_of(lines, kLines) * pieces_of(of.features, kFeatures);
  }
  FASTMTT_ANYWHERE int64_t items(Stage<1>) const {
    return tiles(of.batch) * ((gf.data != nullptr) + (gf_dot.data != nullptr)) +
           tiles(of.classes) * (gw.data != nullptr);
  }
  template <class Block>
  FASTMTT_BODY void run(Stage<1>, Block& block, int64_t item) const {
    const int64_t of_images = tiles(of.batch);
    for (const bool dot : {false, true}) {
      if ((dot ? gf_dot : gf).data == nullptr) continue;
      if (item < of_images) return features(block, item, dot);
      item -= of_images;
    }
    parameters(block, item);
  }

  // gf = g w, or its tangent
  template <class Block>
  FASTMTT_BODY void features(Block& block, int64_t item, bool dot) const {
    const int64_t d = take(item, pieces_of(of.features, kFeatures)) * kFeatures;
    const int64_t image = take(item, pieces_of(of.batch, kLines)) * kLines, s = item;
    const auto add = [&](const T* numbers, const Students<const T>& weights) {
      const T* of_student = numbers + s * of.batch * of.classes;
      const Lines<T> left{of_student, of.classes, image, of.batch};
      const Columns<T> right{weights[s], of.features, d, of.features};
      Products::add(block, block.shared.tile, left, right, 0, of.classes);
    };
    block.each([&](int, Thread& mine) { mine.sums = {}; });
    if (dot) {
      add(g_dot, w);
      add(g, w_dot);
    } else {
      add(g, w);
    }
    store(block, (dot ? gf_dot : gf)[s], image, of.batch, d);
  }

  // gw = g^T f and gb, the sum of g over the images; or their tangents
  template <class Block>
  FASTMTT_BODY void parameters(Block& block, int64_t item) const {
    const int64_t d = take(item, pieces_of(of.features, kFeatures)) * kFeatures;
    const int64_t k = take(item, pieces_of(of.classes, kLines)) * kLines, s = item;
    const int64_t offset = s * of.batch * of.classes;
    const auto add = [&](const T* numbers, const Students<const T>& images) {
      const Columns<T> left{numbers + offset, of.classes, k, of.classes};
      const Columns<T> right{images[s], of.features, d, of.features};
      Products::add(block, block.shared.tile, left, right, 0, of.batch);
    };
    block.each([&](int, Thread& mine) { mine.sums = {}; });
    if (tangent) {
      add(g_dot, f);
      add(g, f_dot);
    } else {
      add(g, f);
    }
    store(block, gw[s], k, of.classes, d);
    if (d > 0) return;
    block.each([&](int thread, auto&) {
      if (thread >= kLines || k + thread >= of.classes) return;
      const T* from = (tangent ? g_dot : g) + offset + k + thread;
      double sum = 0;
      for (int64_t image = 0; image < of.batch; ++image) sum += from[image * of.classes];
      gb[s][k + thread] = static_cast<T>(sum);
    });
  }

  template <class Block>
  FASTMTT_BODY void store(Block& block, T* to, int64_t line, int64_t lines, int64_t d) const {
    block.each([&](int thread, Thread& mine) {
      Products::visit(thread, mine.sums, [&](int i, int j, T sum) {
        const bool inside = line + i < lines && d + j < of.features;
        if (inside) to[(line + i) * of.features + d + j] = sum;
      });
    });
  }

  HeadSizes of;
  bool tangent;
  Students<const T> f, f_dot, w, w_dot, logp, logp_dot;
  Labels<T> y;
  Students<T> gf, gf_dot, gw, gb, gy;  // null where not asked for; of a tangent, gw is gw_dot ..
  T *g, *g_dot;                        // [S,B,K]
};

}  // namespace fastmtt::cuda
