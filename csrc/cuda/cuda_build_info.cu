// sdfast::cuda_build_info() -> str    what the CUDA library was compiled with, as JSON
#include <cuda_runtime.h>
#include <torch/csrc/stable/library.h>

#include <string>

namespace sdfast {
namespace {

// CUDA versions are 1000 * major + 10 * minor.
std::string dotted(int version) { return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10); }

// Only its attributes are read: for which architecture the code was made that this device would run.
__global__ void probe() {}

std::string cuda_build_info() {
  cudaFuncAttributes attributes{};
  const cudaError_t found = cudaFuncGetAttributes(&attributes, probe);
  (void)cudaGetLastError();  // No device, or none that this binary serves: not the caller's error.
  const std::string device = found == cudaSuccess
                                 ? "{\"machine_code\": " + std::to_string(attributes.binaryVersion) +
                                       ", \"ptx\": " + std::to_string(attributes.ptxVersion) + "}"
                                 : "null";
  return "{\"nvcc\": \"" + std::to_string(__CUDACC_VER_MAJOR__) + "." + std::to_string(__CUDACC_VER_MINOR__) +
         "\", \"runtime\": \"" + dotted(CUDART_VERSION) + "\", \"stable_abi\": \"" SDFAST_STABLE_ABI "\", \"kernel\": " +
         device + "}";
}

}  // namespace
}  // namespace sdfast

STABLE_TORCH_LIBRARY_FRAGMENT(sdfast, m) { m.def("cuda_build_info() -> str"); }

STABLE_TORCH_LIBRARY_IMPL(sdfast, CompositeExplicitAutograd, m) {
  m.impl("cuda_build_info", TORCH_BOX(&sdfast::cuda_build_info));
}
