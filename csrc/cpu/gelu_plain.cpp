// The kernel for any processor, and the choice among the three.
#include "cpu/gelu_kernel.inl.h"
#include "cpu/simd.h"

namespace sdfast {

GeluKernel gelu_plain() { return gelu; }

GeluKernel gelu_kernel() {
#ifdef SDFAST_X86_SIMD
  const Simd level = simd_level();
  if (level >= Simd::avx512) return gelu_avx512();
  if (level == Simd::avx2) return gelu_avx2();
#endif
  return gelu_plain();
}

}  // namespace sdfast
