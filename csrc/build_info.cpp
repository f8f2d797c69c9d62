// fastmtt._build: how the extension was built and what this processor can do, for
// `python -m fastmtt.info`. It links no torch, so that it can tell even where _C does not load.

#include <pybind11/pybind11.h>

#ifdef __x86_64__
#include <cpuid.h>
#endif

#include "build_facts.h"  // written by setup.py

namespace py = pybind11;

namespace {

#if defined(__clang__)
constexpr const char* kCompiler = "clang " __clang_version__;
#elif defined(__GNUC__)
constexpr const char* kCompiler = "gcc " __VERSION__;
#else
constexpr const char* kCompiler = "unknown";
#endif

// What every source may use without asking the processor.
py::list compiled_instruction_sets() {
  py::list names;
#ifdef __SSE2__
  names.append("sse2");
#endif
#ifdef __AVX2__
  names.append("avx2");
#endif
#ifdef __FMA__
  names.append("fma");
#endif
#ifdef __AVX512F__
  names.append("avx512f");
#endif
#ifdef __AVX512BF16__
  names.append("avx512_bf16");
#endif
#ifdef __ARM_NEON
  names.append("neon");
#endif
  return names;
}

py::dict build() {
  py::dict facts;
  facts["compiler"] = kCompiler;
  facts["flags"] = FASTMTT_FLAGS;
  facts["torch"] = FASTMTT_TORCH;
  facts["cuda"] = FASTMTT_CUDA;
  facts["instruction_sets"] = compiled_instruction_sets();
  return facts;
}

// Name to whether processor and operating system offer it; empty where the compiler cannot tell.
py::dict processor() {
  py::dict has;
#if defined(__x86_64__) && defined(__GNUC__)
  __builtin_cpu_init();
  has["avx2"] = __builtin_cpu_supports("avx2") != 0;
  has["fma"] = __builtin_cpu_supports("fma") != 0;
  has["avx512f"] = __builtin_cpu_supports("avx512f") != 0;
  has["avx512bw"] = __builtin_cpu_supports("avx512bw") != 0;
  has["avx512vl"] = __builtin_cpu_supports("avx512vl") != 0;
  has["avx512_vnni"] = __builtin_cpu_supports("avx512vnni") != 0;
  has["avx512_bf16"] = __builtin_cpu_supports("avx512bf16") != 0;
  unsigned a = 0, b = 0, c = 0, d = 0;
  has["amx_bf16"] = __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (d & (1u << 22)) != 0;
#endif
  return has;
}

}  // namespace

PYBIND11_MODULE(_build, m) {
  m.def("build", &build);
  m.def("processor", &processor);
}
