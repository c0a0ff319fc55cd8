// The kernels for any processor, and the choice among the three.
#include "cpu/half_rows_kernel.inl.h"
#include "cpu/simd.h"

namespace sdfast {

HalfRowsKernels half_rows_plain() { return {norm, norm_backward, gelu_backward, sum_rows}; }

HalfRowsKernels half_rows_kernels() {
#ifdef SDFAST_X86_SIMD
  const Simd level = simd_level();
  if (level >= Simd::avx512) return half_rows_avx512();
  if (level == Simd::avx2) return half_rows_avx2();
#endif
  return half_rows_plain();
}

}  // namespace sdfast
