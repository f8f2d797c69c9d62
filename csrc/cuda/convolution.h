// The block's convolutions, by ATen: cuDNN's. Images lie as it wants them, channels last; filters
// are put so, which is little to move. One student follows another: groups= has slow kernels.

#pragma once

#include <ATen/Context.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/convolution.h>
#include <ATen/ops/convolution_backward.h>
#include <ATen/ops/cudnn_convolution.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/flip.h>

namespace fastmtt::cuda {

using at::Tensor;

constexpr int64_t kBf16Channels = 16;  // from so many input channels on, bf16 has an effect

inline Tensor images_first(const Tensor& images) { return images.permute({0, 3, 1, 2}); }

class Convolution {
 public:
  // bf16 rounds what is multiplied. Such numbers are tf32 as well: tensor cores multiply them
  // without error and sum them in float32.
  Convolution(bool bf16, int64_t channels) : rounds_(bf16 && channels >= kBf16Channels) {}

  // What is to be multiplied, of activations and weights.
  Tensor operand(const Tensor& t) const {
    return rounds_ ? t.to(at::kBFloat16).to(t.scalar_type()) : t;
  }
  // [S,3,3,I,O] -> [S,O,3,3,I]
  Tensor filters(const Tensor& w) const {
    return operand(w).permute({0, 4, 1, 2, 3}).contiguous();
  }
  // [S,3,3,I,O] -> [S,I,3,3,O], with which the input's gradient is a convolution of the output's.
  Tensor flipped(const Tensor& w) const {
    return operand(w).flip({1, 2}).permute({0, 3, 1, 2, 4}).contiguous();
  }

  // to [S,B,H,W,O] = the convolution of operands [S,B,H,W,I] with filters [S,O,3,3,I].
  void convolve(const Tensor& images, const Tensor& filters, const Tensor& to) const {
    const auto& context = at::globalContext();
    for (int64_t s = 0; s < images.size(0); ++s) {
      const Tensor x = images_first(images[s]), w = images_first(filters[s]);
      Tensor out = images_first(to[s]);
      if (x.is_cuda() && x.scalar_type() == at::kFloat && context.userEnabledCuDNN()) {
        at::cudnn_convolution_out(
            out, x, w, {1, 1}, {1, 1}, {1, 1}, 1, context.benchmarkCuDNN(),
            context.deterministicCuDNN() || context.deterministicAlgorithms(),
            rounds_ || context.allowTF32CuDNN());
      } else {  // which has no float64 with the channels last
        out.copy_(at::convolution(x, w, {}, {1, 1}, {1, 1}, {1, 1}, false, {0, 0}, 1));
      }
    }
  }

  // The gradient [S,3,3,I,O] of the filters, of the output's [S,B,H,W,O] and the images; or the sum
  // of two such, whose pairs of operands are `first` and, where there is one, `second`.
  struct Pair {
    Tensor images, gradients;
  };
  void filter_gradient(const Pair& first, const Pair& second, const Tensor& to) const {
    // only its shape matters, but for float64 on a CPU, which wants one output channel contiguous
    const Tensor like = at::empty({to.size(4), to.size(3), 3, 3}, to.options());
    for (int64_t s = 0; s < to.size(0); ++s) {
      const Tensor place = to[s].permute({3, 2, 0, 1});
      place.copy_(of_student(first, s, like));
      if (second.images.defined()) place.add_(of_student(second, s, like));
    }
  }

 private:
  static Tensor of_student(const Pair& pair, int64_t student, const Tensor& like) {
    const Tensor g = images_first(pair.gradients[student]), x = images_first(pair.images[student]);
    return std::get<1>(at::convolution_backward(
        g, x, like, {}, {1, 1}, {1, 1}, {1, 1}, false, {0, 0}, 1, {false, true, false}));
  }

  bool rounds_;
};

}  // namespace fastmtt::cuda
