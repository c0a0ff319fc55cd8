#include "cpu/simd.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace sdfast {

const char* simd_name(Simd level) {
  switch (level) {
    case Simd::avx512:
      return "avx512";
    case Simd::avx2:
      return "avx2";
    default:
      return "plain";
  }
}

Simd simd_supported() {
#ifdef SDFAST_X86_SIMD
  // The same features as the flags in CMakeLists.txt.
  const bool avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  return avx512 ? Simd::avx512 : avx2 ? Simd::avx2 : Simd::plain;
#else
  return Simd::plain;
#endif
}

Simd simd_level() {
  const Simd widest = simd_supported();
  const char* asked = std::getenv("SDFAST_SIMD");
  if (asked == nullptr || *asked == '\0') return widest;
  for (Simd level : {Simd::plain, Simd::avx2, Simd::avx512}) {
    if (std::string(asked) != simd_name(level)) continue;
    if (level <= widest) return level;
    throw std::runtime_error(std::string("SDFAST_SIMD=") + asked + " is more than this CPU and build have: " +
                             simd_name(widest));
  }
  throw std::runtime_error(std::string("SDFAST_SIMD must be plain, avx2 or avx512, not ") + asked);
}

}  // namespace sdfast
