// Proves that the file-name suffix brings the instruction set: see the SIMD part of CMakeLists.txt.
#if !(defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__))
#error "csrc/cpu/*_avx512.cpp must be compiled with the avx512 flags"
#endif

namespace sdfast {

bool compiled_with_avx512() { return true; }

}  // namespace sdfast
