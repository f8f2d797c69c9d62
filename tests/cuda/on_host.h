// The kernels of csrc/cuda on the host: blocks and their threads one after another, from the first
// or, with FASTMTT_BACKWARDS=1, from the last. What nobody has written yet is NaN, or -1.

#pragma once

#include <ATen/core/Tensor.h>

#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "../../csrc/cuda/kernel.h"
#include "hopper_on_host.h"

namespace fastmtt::cuda {

// The order of `count` things.
struct Order {
  int64_t operator[](int64_t i) const { return backwards ? count - 1 - i : i; }
  int64_t count;
  bool backwards;
};

template <typename T>
void poison(T& value) {
  static_assert(std::is_trivially_copyable_v<T>);
  std::memset(static_cast<void*>(&value), 0xff, sizeof value);
}

template <class Kernel>
struct HostBlock {
  template <class Work>
  void each(const Work& work) {
    const Order order{Kernel::kThreads, backwards};
    for (int i = 0; i < Kernel::kThreads; ++i) {
      const int thread = static_cast<int>(order[i]);
      work(thread, threads[thread]);
    }
  }

  typename Kernel::Shared& shared;
  std::vector<typename Kernel::Thread> threads;
  bool backwards;
};

template <class Kernel>
void run(const Kernel& kernel, const at::Tensor&) {
  const char* variable = std::getenv("FASTMTT_BACKWARDS");
  const bool backwards = variable != nullptr && *variable == '1';
  for_stages<Kernel::kStages>([&](auto stage) {
    const Order order{kernel.items(stage), backwards};
    for (int64_t i = 0; i < order.count; ++i) {
      const auto shared = std::make_unique<typename Kernel::Shared>();  // its ends are watched
      poison(*shared);
      HostBlock<Kernel> block{
          *shared, std::vector<typename Kernel::Thread>(Kernel::kThreads), backwards};
      for (auto& mine : block.threads) poison(mine);
      kernel.run(stage, block, order[i]);
    }
  });
}

}  // namespace fastmtt::cuda
