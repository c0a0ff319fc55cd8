// Which instruction set the CPU kernels run with: the widest that this CPU and this binary have, or the one that the
// environment variable SDFAST_SIMD names (plain, avx2, avx512, amx). An operator with no kernel for a level runs the one
// for the widest below it.
#pragma once

namespace sdfast {

enum class Simd { plain = 0, avx2 = 1, avx512 = 2, amx = 3 };

// "plain", "avx2", "avx512" or "amx".
const char* simd_name(Simd level);

// The widest level that this CPU (and its operating system) can run and this binary holds.
Simd simd_supported();

// The level to run with now. Reads SDFAST_SIMD on every call, so that a test can compare levels in one process.
// Throws std::runtime_error when it names no level, or one that simd_supported() does not reach.
Simd simd_level();

}  // namespace sdfast
