// The kernels for any processor, and the choice among them.
#include "cpu/attention_kernels.inl.h"
#include "cpu/simd.h"

namespace sdfast {

AttentionKernels attention_plain() { return {forward, backward}; }

AttentionKernels attention_kernels([[maybe_unused]] bool bf16) {
#ifdef SDFAST_X86_SIMD
  const Simd level = simd_level();
  if (level == Simd::amx && bf16) return attention_amx();
  if (level >= Simd::avx512) return attention_avx512();
  if (level == Simd::avx2) return attention_avx2();
#endif
  return attention_plain();
}

}  // namespace sdfast
