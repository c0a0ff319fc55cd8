// The kernels for AVX2 with FMA; the file's name brings the flags.
#include "cpu/attention_kernels.inl.h"

namespace sdfast {

AttentionKernels attention_avx2() { return {forward, backward}; }

}  // namespace sdfast
