// Which of the compiled kernels this processor runs.

#include "kernels.h"
#include "patch_kernels.h"

#include <ATen/Version.h>

#include <cstdlib>
#include <string>

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace fastmtt {

#define FASTMTT_DECLARE(isa)                            \
  const Kernels<float>& isa##_float();                  \
  const Kernels<double>& isa##_double();                \
  const Kernels<float>& isa##_rounded();                \
  const PatchKernels<float>& isa##_patches_float();     \
  const PatchKernels<double>& isa##_patches_double();
FASTMTT_DECLARE(portable)
FASTMTT_DECLARE(avx2)
FASTMTT_DECLARE(avx512)
#undef FASTMTT_DECLARE
const Kernels<float>& avx512_bfloat16();
const Kernels<float>& amx_bfloat16();
const PatchKernels<float>& amx_patches();

namespace {

// What PyTorch itself has chosen to use, which ATEN_CPU_CAPABILITY lowers.
const std::string& capability() {
  static const std::string found = at::get_cpu_capability();
  return found;
}

#ifdef __x86_64__
// Whether the processor has tiles and the system lets this process use them, which it must ask for.
// oneDNN's ONEDNN_MAX_CPU_ISA, which keeps PyTorch's own products from them, does so here too.
bool tiles() {
#ifdef __linux__
  constexpr unsigned kBfloat16 = 1u << 22, kTiles = 1u << 24;
  constexpr long kAskForPermission = 0x1023, kTileData = 18;
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & kBfloat16) == 0 || (d & kTiles) == 0) {
    return false;
  }
  const char* most = std::getenv("ONEDNN_MAX_CPU_ISA");
  const std::string limit = most == nullptr ? "" : most;
  if (!limit.empty() && limit != "DEFAULT" && limit.find("AMX") == std::string::npos) return false;
  return syscall(SYS_arch_prctl, kAskForPermission, kTileData) == 0;
#else
  return false;
#endif
}
#endif

bool has_tiles() {
#ifdef __x86_64__
  static const bool found = capability() == "AVX512" &&
      __builtin_cpu_supports("avx512bf16") && tiles();
  return found;
#else
  return false;
#endif
}

}  // namespace

template <>
const Kernels<float>& kernels<float>(bool bf16) {
#ifdef __x86_64__
  if (capability() == "AVX512") {
    if (bf16 && __builtin_cpu_supports("avx512bf16")) {
      return has_tiles() ? amx_bfloat16() : avx512_bfloat16();
    }
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

template <>
const PatchKernels<float>& patch_kernels<float>(bool bf16) {
#ifdef __x86_64__
  if (bf16 && has_tiles()) return amx_patches();
  if (capability() == "AVX512") return avx512_patches_float();
  if (capability() == "AVX2") return avx2_patches_float();
#endif
  return portable_patches_float();
}

template <>
const PatchKernels<double>& patch_kernels<double>(bool) {
#ifdef __x86_64__
  if (capability() == "AVX512") return avx512_patches_double();
  if (capability() == "AVX2") return avx2_patches_double();
#endif
  return portable_patches_double();
}

}  // namespace fastmtt
