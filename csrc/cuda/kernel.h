// How a kernel is written: once, for nvcc and for a plain C++ compiler alike.
//
// A family NAME is three files. NAME_kernels.h holds the kernels, without torch. NAME.cu is what
// nvcc compiles: FASTMTT_LAUNCH(kernel) for each of them. NAME_ops.cpp checks arguments, makes the
// results, fills in kernels and run()s them (op.h), and registers the ops.
//
// A kernel is a plain struct of its arguments with
//
//     kThreads                     threads of a block
//     kResident                    blocks that a multiprocessor must have registers for
//     Shared, Thread               what a block shares; what a thread keeps past a barrier
//     items(Stage<k>)              how many items stage k = 0, 1, .. has; blocks take them in turn
//     run(Stage<k>, block, item)   one item's work by one block
//
// and kStages, where it has more than one: a stage sees all that earlier ones wrote, in one launch.
// run() reads as one thread's program over a block: block.each(work) calls work(thread, mine) for
// every thread and is a barrier; loops around it must be the same for all threads. So the tests can
// run the very same text on a CPU (tests/cuda/on_host.h): thread after thread, from the first or
// from the last, and results whose bits differ then have a race. What multiplies by Hopper's own
// instructions (hopper_*) has no such text: it is tested on such a GPU, and its indices and phases,
// for the weight gradient, by threads that play the instructions (tests/cuda/hopper_threads).

#pragma once

#include <cstdint>
#include <type_traits>

#ifdef __CUDACC__
#define FASTMTT_BODY __device__ __forceinline__
#define FASTMTT_ANYWHERE __host__ __device__ __forceinline__  // for items(): a launch asks too
#define FASTMTT_UNROLL _Pragma("unroll")  // so that arrays stay in registers
#else
#define FASTMTT_BODY inline
#define FASTMTT_ANYWHERE inline
#define FASTMTT_UNROLL
#endif

namespace fastmtt::cuda {

template <int kNumber>
using Stage = std::integral_constant<int, kNumber>;

// What most kernels are: of one stage, sharing and keeping nothing.
struct Plain {
  static constexpr int kStages = 1, kResident = 2;
  struct Shared {};
  struct Thread {};
};

// work(Stage<0>()), work(Stage<1>()), ..
#ifdef __CUDACC__
#pragma nv_exec_check_disable  // work may be of the device or of the host
#endif
template <int kStages, int kFirst = 0, class Work>
FASTMTT_ANYWHERE void for_stages(const Work& work) {
  if constexpr (kFirst < kStages) {
    work(Stage<kFirst>());
    for_stages<kStages, kFirst + 1>(work);
  }
}

// How many pieces of a size make up a count.
FASTMTT_ANYWHERE constexpr int64_t pieces_of(int64_t count, int64_t size) {
  return (count + size - 1) / size;
}

// One number's place among several kinds: takes the fastest first.
FASTMTT_BODY int64_t take(int64_t& item, int64_t count) {
  const int64_t place = item % count;
  item /= count;
  return place;
}

}  // namespace fastmtt::cuda
