// The kernels for AVX-512.

// Before the pragma: what others share must run anywhere.
#include <cstdint>
#include <type_traits>

#ifdef __x86_64__
#include <immintrin.h>

#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma,prefer-vector-width=512")
#define FASTMTT_ISA avx512
#define FASTMTT_VECTOR_BYTES 64
#define FASTMTT_REGISTERS 32

#include "table.h"

namespace fastmtt {
const Kernels<float>& avx512_float() { return avx512::kTable<avx512::Exact<float>>; }
const Kernels<double>& avx512_double() { return avx512::kTable<avx512::Exact<double>>; }
const Kernels<float>& avx512_rounded() { return avx512::kTable<avx512::Rounded>; }
const PatchKernels<float>& avx512_patches_float() {
  return avx512::kPatchTable<avx512::ExactStrips<float>>;
}
const PatchKernels<double>& avx512_patches_double() {
  return avx512::kPatchTable<avx512::ExactStrips<double>>;
}
}  // namespace fastmtt
#endif
