#include "cpu/simd.h"

#ifdef SDFAST_X86_SIMD
#include <cpuid.h>
#endif
#if defined(SDFAST_X86_SIMD) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace sdfast {
namespace {

#ifdef SDFAST_X86_SIMD
// __builtin_cpu_supports does not know "f16c" in every clang. Of use where AVX is, whose registers it shares.
bool has_f16c() {
  unsigned eax, ebx, ecx, edx;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C);
}

// Whether AMX and AVX-512 for bfloat16 are there. The tile registers are Linux' to give, and it wants to be asked, once
// for all threads.
bool amx_usable() {
#ifdef __linux__
  unsigned eax, ebx, ecx, edx, low, high;
  if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || !(ecx & bit_OSXSAVE)) return false;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  constexpr unsigned kTileState = 3u << 17;
  if ((low & kTileState) != kTileState) return false;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return false;
  const bool bf16_and_tile = (edx & (1u << 22)) && (edx & (1u << 24));
  if (!bf16_and_tile || !__get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) || !(eax & (1u << 5))) return false;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}
#endif

}  // namespace

const char* simd_name(Simd level) {
  switch (level) {
    case Simd::amx:
      return "amx";
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
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  static const bool amx = avx512 && amx_usable();
  return amx ? Simd::amx : avx512 ? Simd::avx512 : avx2 ? Simd::avx2 : Simd::plain;
#else
  return Simd::plain;
#endif
}

Simd simd_level() {
  const Simd widest = simd_supported();
  const char* asked = std::getenv("SDFAST_SIMD");
  if (asked == nullptr || *asked == '\0') return widest;
  for (Simd level : {Simd::plain, Simd::avx2, Simd::avx512, Simd::amx}) {
    if (std::string(asked) != simd_name(level)) continue;
    if (level <= widest) return level;
    throw std::runtime_error(std::string("SDFAST_SIMD=") + asked + " is more than this CPU and build have: " +
                             simd_name(widest));
  }
  throw std::runtime_error(std::string("SDFAST_SIMD must be plain, avx2, avx512 or amx, not ") + asked);
}

}  // namespace sdfast
