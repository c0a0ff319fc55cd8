// The kernels for AVX-512 (F, BW, VL, DQ); the file's name brings the flags.
#include "cpu/mae_distill_rows.inl.h"

namespace sdfast {

MaeDistillKernels mae_distill_avx512() { return {pixel_rows, token_rows}; }

}  // namespace sdfast
