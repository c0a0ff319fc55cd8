// The kernels for AVX-512 (F, BW, VL, DQ); the file's name brings the flags.
#include "cpu/half_rows_kernel.inl.h"

namespace sdfast {

HalfRowsKernels half_rows_avx512() { return {norm, norm_backward, gelu_backward, sum_rows}; }

}  // namespace sdfast
