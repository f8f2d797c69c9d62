// The kernels for AVX-512 with products of bfloat16.

// Before the pragma: what others share must run anywhere.
#include <cstdint>
#include <type_traits>

#ifdef __x86_64__
#include <immintrin.h>

#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma,prefer-vector-width=512")
#define FASTMTT_ISA avx512bf16
#define FASTMTT_VECTOR_BYTES 64
#define FASTMTT_REGISTERS 32
#define FASTMTT_BFLOAT16

#include "table.h"

namespace fastmtt {
const Kernels<float>& avx512_bfloat16() { return avx512bf16::kTable<avx512bf16::Bfloat16>; }
}  // namespace fastmtt
#endif
