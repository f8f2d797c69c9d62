// What the ConvNet block's ops share on a GPU. Their `scratch` stays as it is: the allocator gives
// memory back for nothing, and one that grew would leave a recorded graph with what is no more.

#pragma once

#include <c10/core/DispatchKeySet.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <limits>

#include "../block_arguments.h"
#include "convolution.h"
#include "op.h"
#include "planes.h"

namespace fastmtt::cuda {

// Within, ATen's convolutions record no graph and compute in their operands' own dtype.
struct BlockGuard {
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  c10::impl::ExcludeDispatchKeyGuard no_autocast{c10::autocast_dispatch_keyset};
};

// work(planes, whether registers hold one) for the block's output and the tensors [S,B,..,C] that a
// pass over its planes reads or writes.
template <class Work>
void with_planes(const Block& block, std::initializer_list<Tensor> images, const Work& work) {
  TORCH_CHECK(
      block.height * block.width * block.out <= std::numeric_limits<int>::max(),
      "fastmtt::", block.op, ": an image of the output must have fewer than 2^31 numbers, got ",
      block.height, " x ", block.width, " x ", block.out);
  bool aligned = true;
  for (const Tensor& t : images) {
    if (t.numel() == 0) continue;
    const auto steps = reinterpret_cast<uintptr_t>(t.const_data_ptr()) |
                       static_cast<uintptr_t>(t.stride(0) * t.element_size());
    aligned = aligned && steps % kBeside == 0;
  }
  AT_DISPATCH_FLOATING_TYPES(block.like.scalar_type(), "fastmtt::conv_block", [&] {
    const Planes<scalar_t> planes(
        block.students, block.batch, block.height, block.width, block.out, aligned);
    planes.whole() ? work(planes, std::true_type()) : work(planes, std::false_type());
  });
}

// Each image's part of the gradients of gamma and beta, which a norm's backward sums.
inline Tensor empty_shares(const Block& block, bool wanted) {
  const auto options = block.like.options().dtype(at::kDouble);
  return wanted ? at::empty({block.students, block.batch, 2, block.out}, options)
                : at::empty({0}, options);
}

}  // namespace fastmtt::cuda
