// The kernels for AVX2 with FMA and F16C; the file's name brings the flags.
#include "cpu/mae_distill_rows.inl.h"

namespace sdfast {

MaeDistillKernels mae_distill_avx2() { return {pixel_rows, token_rows}; }

}  // namespace sdfast
