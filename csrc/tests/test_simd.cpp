#include <cstdlib>
#include <exception>
#include <string>

#include "check.h"
#include "cpu/simd.h"

using sdfast::Simd;

int main() {
  unsetenv("SDFAST_SIMD");
  CHECK(sdfast::simd_level() == sdfast::simd_supported());
  for (Simd level : {Simd::plain, Simd::avx2, Simd::avx512, Simd::amx}) {
    setenv("SDFAST_SIMD", sdfast::simd_name(level), 1);
    if (level <= sdfast::simd_supported()) {
      CHECK(sdfast::simd_level() == level);
    } else {
      CHECK_THROWS(sdfast::simd_level());
    }
  }
  setenv("SDFAST_SIMD", "sse9", 1);
  CHECK_THROWS(sdfast::simd_level());
  setenv("SDFAST_SIMD", "", 1);
  CHECK(sdfast::simd_level() == sdfast::simd_supported());
  CHECK(std::string(sdfast::simd_name(Simd::avx2)) == "avx2");
  return failures();
}
