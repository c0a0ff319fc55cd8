// Proves that the file-name suffix brings the instruction set: see the SIMD part of CMakeLists.txt.
#if !(defined(__AVX2__) && defined(__FMA__) && defined(__F16C__))
#error "csrc/cpu/*_avx2.cpp must be compiled with the avx2 flags"
#endif

namespace sdfast {

bool compiled_with_avx2() { return true; }

}  // namespace sdfast
