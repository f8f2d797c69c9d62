// Which of the compiled kernels this processor runs.

#include "kernels.h"

#include <ATen/Version.h>

#include <string>

namespace fastmtt {

#define FASTMTT_DECLARE(isa)               \
  const Kernels<float>& isa##_float();     \
  const Kernels<double>& isa##_double();   \
  const Kernels<float>& isa##_rounded();
FASTMTT_DECLARE(portable)
FASTMTT_DECLARE(avx2)
FASTMTT_DECLARE(avx512)
#undef FASTMTT_DECLARE
const Kernels<float>& avx512_bfloat16();

namespace {

// What PyTorch itself has chosen to use, which ATEN_CPU_CAPABILITY lowers.
const std::string& capability() {
  static const std::string found = at::get_cpu_capability();
  return found;
}

}  // namespace

template <>
const Kernels<float>& kernels<float>(bool bf16) {
#ifdef __x86_64__
  if (capability() == "AVX512") {
    if (bf16 && __builtin_cpu_supports("avx512bf16")) return avx512_bfloat16();
    return bf16 ? avx512_rounded() : avx512_float();
  }
  if (capability() == "AVX2") return bf16 ? avx2_rounded() : avx2_float();
#endif
  return bf16 ? portable_rounded() : portable_float();
}

template <>
const Kernels<double>& kernels<double>(bool) {
#ifdef __x86_64__
  if (capability() == "AVX512") return avx512_double();
  if (capability() == "AVX2") return avx2_double();
#endif
  return portable_double();
}

}  // namespace fastmtt
