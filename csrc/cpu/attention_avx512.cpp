// The kernels for AVX-512 (F, BW, VL, DQ); the file's name brings the flags.
#include "cpu/attention_kernels.inl.h"

namespace sdfast {

AttentionKernels attention_avx512() { return {forward, backward}; }

}  // namespace sdfast
