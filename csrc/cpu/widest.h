// One build serves every x86-64: the same loop compiled for AVX-512, AVX2 and neither.

#pragma once

#include <ATen/Version.h>

#include <string>
#include <type_traits>

// A version's instruction set reaches only what is inlined into it.
#define FASTMTT_INLINE __attribute__((always_inline))

namespace fastmtt {

#ifdef __x86_64__
template <typename Work>
[[gnu::target("avx512f,avx512bw,avx512dq,avx512vl,fma")]] void run_avx512(const Work& work) {
  work();
}

template <typename Work>
[[gnu::target("avx2,fma")]] void run_avx2(const Work& work) {
  work();
}
#endif

// work() with the instructions PyTorch itself has chosen to use; work is FASTMTT_INLINE.
template <typename Work>
void run_widest(const Work& work) {
#ifdef __x86_64__
  static const std::string capability = at::get_cpu_capability();
  if (capability == "AVX512") return run_avx512(work);
  if (capability == "AVX2") return run_avx2(work);
#endif
  work();
}

// work(width), width the bytes of the vectors such instructions work on, as a constant.
template <typename Work>
void run_widest_vectors(const Work& work) {
#ifdef __x86_64__
  static const std::string capability = at::get_cpu_capability();
  if (capability == "AVX512") {
    return run_avx512([&]() FASTMTT_INLINE { work(std::integral_constant<int, 64>()); });
  }
  if (capability == "AVX2") {
    return run_avx2([&]() FASTMTT_INLINE { work(std::integral_constant<int, 32>()); });
  }
#endif
  work(std::integral_constant<int, 16>());
}

}  // namespace fastmtt
