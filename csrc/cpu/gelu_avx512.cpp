// The kernel for AVX-512 (F, BW, VL, DQ); the file's name brings the flags.
#include "cpu/gelu_kernel.inl.h"

namespace sdfast {

GeluKernel gelu_avx512() { return gelu; }

}  // namespace sdfast
