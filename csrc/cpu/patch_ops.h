// The ConvNet block's ops where the input has few channels, less than a panel (patch_kernels.h).

#pragma once

#include <optional>

#include "block.h"

namespace fastmtt {

enum class PatchOp { forward, jvp, backward, backward_jvp };

// An op's arguments and results by name; what it has not, or is not asked for, is undefined.
struct PatchTensors {
  Tensor a, a_dot, w, w_dot, gamma, gamma_dot, beta, beta_dot, gp, gp_dot;
  Tensor p, xhat, rstd, p_dot, xhat_dot, rstd_dot;
  Tensor gw, ggamma, gbeta, ga, ga_dot;
};

// Whether the block is computed so.
bool few_channels(const Block& block);

// Such a block does without xhat and xhat_dot, which may be empty: results and arguments.
inline bool left_out(const Block& block, const Tensor& output) {
  return few_channels(block) && output.numel() == 0;
}
inline Tensor output_or_none(Block& block, const char* name, const Tensor& output) {
  return left_out(block, output) ? Tensor() : block.output(name, output);
}

void compute_by_patches(
    PatchOp op, const Block& block, const PatchTensors& tensors,
    const std::optional<Tensor>& scratch);

}  // namespace fastmtt
