// The kernel for AVX2 with FMA; the file's name brings the flags.
#include "cpu/gelu_kernel.inl.h"

namespace sdfast {

GeluKernel gelu_avx2() { return gelu; }

}  // namespace sdfast
