// The kernels without assumptions on the processor.

#define FASTMTT_ISA portable
#define FASTMTT_VECTOR_BYTES 16
#define FASTMTT_REGISTERS 16

#include "table.h"

namespace fastmtt {
const Kernels<float>& portable_float() { return portable::kTable<portable::Exact<float>>; }
const Kernels<double>& portable_double() { return portable::kTable<portable::Exact<double>>; }
const Kernels<float>& portable_rounded() { return portable::kTable<portable::Rounded>; }
const PatchKernels<float>& portable_patches_float() {
  return portable::kPatchTable<portable::ExactStrips<float>>;
}
const PatchKernels<double>& portable_patches_double() {
  return portable::kPatchTable<portable::ExactStrips<double>>;
}
}  // namespace fastmtt
