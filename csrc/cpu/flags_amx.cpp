// Proves that the file-name suffix brings the instruction set: see the SIMD part of CMakeLists.txt.
// (clang before 16 names AMX without the second underscore)
#if !((defined(__AMX_TILE__) && defined(__AMX_BF16__)) || (defined(__AMXTILE__) && defined(__AMXBF16__))) || \
    !(defined(__AVX512BF16__) && defined(__AVX512BW__))
#error "csrc/cpu/*_amx.cpp must be compiled with the amx flags"
#endif

namespace sdfast {

bool compiled_with_amx() { return true; }

}  // namespace sdfast
