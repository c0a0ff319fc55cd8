// sdfast::build_info() -> str    what this library was compiled with, as JSON
// sdfast::simd_level() -> str    the instruction set that the CPU kernels would use now
//
// Every file defines its own ops in a fragment of the sdfast namespace: adding an op touches no shared list.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <string>

#include "cpu/simd.h"

#if defined(__AVX__) || defined(__AVX512F__)
#error "plain files must be compiled for every x86-64: is -march=native among the flags?"
#endif

namespace sdfast {

#ifdef SDFAST_X86_SIMD
bool compiled_with_avx2();
bool compiled_with_avx512();
bool compiled_with_amx();
#endif

namespace {

std::string compiler() {
#if defined(__clang__)
  return std::string("clang ") + __clang_version__;
#else
  return std::string("g++ ") + __VERSION__;
#endif
}

std::string build_info() {
  std::string levels = "\"plain\"";
#ifdef SDFAST_X86_SIMD
  if (compiled_with_avx2()) levels += ", \"avx2\"";
  if (compiled_with_avx512()) levels += ", \"avx512\"";
  if (compiled_with_amx()) levels += ", \"amx\"";
#endif
  return "{\"compiler\": \"" + compiler() + "\", \"cplusplus\": " + std::to_string(__cplusplus) +
         ", \"stable_abi\": \"" SDFAST_STABLE_ABI "\", \"simd\": [" + levels +
         "], \"simd_supported\": \"" + simd_name(simd_supported()) +
         "\", \"threads\": " + std::to_string(torch::stable::get_num_threads()) + "}";
}

std::string simd_level_name() { return simd_name(simd_level()); }

}  // namespace
}  // namespace sdfast

STABLE_TORCH_LIBRARY_FRAGMENT(sdfast, m) {
  m.def("build_info() -> str");
  m.def("simd_level() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(sdfast, CompositeExplicitAutograd, m) {
  m.impl("build_info", TORCH_BOX(&sdfast::build_info));
  m.impl("simd_level", TORCH_BOX(&sdfast::simd_level_name));
}
