// The kernels for any processor, and the choice among the three.
#include "cpu/mae_distill_rows.inl.h"
#include "cpu/simd.h"

namespace sdfast {

MaeDistillKernels mae_distill_plain() { return {pixel_rows, token_rows}; }

MaeDistillKernels mae_distill_kernels() {
#ifdef SDFAST_X86_SIMD
  const Simd level = simd_level();
  if (level >= Simd::avx512) return mae_distill_avx512();
  if (level == Simd::avx2) return mae_distill_avx2();
#endif
  return mae_distill_plain();
}

}  // namespace sdfast
