// The kernels for AVX2 with FMA; the file's name brings the flags.
#include "cpu/half_rows_kernel.inl.h"

namespace sdfast {

HalfRowsKernels half_rows_avx2() { return {norm, norm_backward, gelu_backward, sum_rows}; }

}  // namespace sdfast
