// The kernels for AVX2.

// Before the pragma: what others share must run anywhere.
#include <cstdint>
#include <type_traits>

#ifdef __x86_64__
#include <immintrin.h>

#pragma GCC target("avx2,fma")
#define FASTMTT_ISA avx2
#define FASTMTT_VECTOR_BYTES 32
#define FASTMTT_REGISTERS 16

#include "table.h"

namespace fastmtt {
const Kernels<float>& avx2_float() { return avx2::kTable<avx2::Exact<float>>; }
const Kernels<double>& avx2_double() { return avx2::kTable<avx2::Exact<double>>; }
const Kernels<float>& avx2_rounded() { return avx2::kTable<avx2::Rounded>; }
const PatchKernels<float>& avx2_patches_float() {
  return avx2::kPatchTable<avx2::ExactStrips<float>>;
}
const PatchKernels<double>& avx2_patches_double() {
  return avx2::kPatchTable<avx2::ExactStrips<double>>;
}
}  // namespace fastmtt
#endif
