// The kernels for AVX-512 with products of bfloat16 in AMX's tiles.

// Before the pragma: what others share must run anywhere.
#include <cstdint>
#include <type_traits>

#ifdef __x86_64__
#include <immintrin.h>

#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma,prefer-vector-width=512")
#pragma GCC target("amx-tile,amx-bf16")
#define FASTMTT_ISA amx
#define FASTMTT_VECTOR_BYTES 64
#define FASTMTT_REGISTERS 32
#define FASTMTT_BFLOAT16

#include "split_strips.h"
#include "table.h"

namespace fastmtt {
namespace amx {
namespace {

constexpr Kernels<float> in_tiles() {
  Kernels<float> table = kTable<Bfloat16>;
  table.multiply = &multiply_in_tiles;
  table.multiply_transposed = &multiply_transposed_in_tiles;
  table.rows_at_once = 2 * kSide;
  table.cache = 1800 << 10;  // where there are tiles, the second-level cache has 2 MB
  return table;
}
constexpr Kernels<float> kTiles = in_tiles();

}  // namespace
}  // namespace amx

const Kernels<float>& amx_bfloat16() { return amx::kTiles; }
const PatchKernels<float>& amx_patches() { return amx::kPatchTable<amx::SplitStrips>; }
}  // namespace fastmtt
#endif
