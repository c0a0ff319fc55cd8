// Launches the kernels of mae_distill_kernels.cuh.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "cuda/mae_distill.h"
#include "cuda/mae_distill_kernels.cuh"

namespace sdfast {

int mae_distill_blocks(int64_t rows, bool wide) {
  int device = 0, multiprocessors = 1;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  const int at_once = wide ? kBlocksAMultiprocessor<double> : kBlocksAMultiprocessor<float>;
  const int64_t most = static_cast<int64_t>(multiprocessors) * at_once;
  const int64_t useful = (rows + kWarps - 1) / kWarps;
  return static_cast<int>(useful < 1 ? 1 : useful < most ? useful : most);
}

const char* mae_distill_error(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

int launch_mae_distill(const CudaMaeDistill& call, int blocks, void* stream_handle) {
  const PixelScale scale = pixel_scale(call.pixels);
  const cudaStream_t stream = static_cast<cudaStream_t>(stream_handle);
  count_rows<<<1, kThreads, 0, stream>>>(call.pixels.mask, call.pixel_rows, call.counters);
  if (call.wide) {
    both_parts<double><<<blocks, kThreads, 0, stream>>>(call, scale);
  } else {
    both_parts<float><<<blocks, kThreads, 0, stream>>>(call, scale);
  }
  return static_cast<int>(cudaGetLastError());
}

}  // namespace sdfast
