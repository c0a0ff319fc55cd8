// Masked-pixel and representation loss on a GPU: what the launcher is given. Nothing here needs torch.
#pragma once

#include <cstdint>

#include "cpu/mae_distill.h"

namespace sdfast {

constexpr int kMaxScaledChannels = 16;  // channels of uint8 images that carry a mean and a standard deviation

// The operands of both parts (pointers of `pixels` and `tokens` are device pointers, gain and offset apart) and the
// results. `partial` holds 2 * cuda_blocks(...) values of the computing type, `counters` two ints.
struct CudaMaeDistill {
  PixelRows pixels;
  int64_t pixel_rows = 0, patch_values = 0, patches = 0;
  TokenRows tokens;
  int64_t token_rows = 0, bank_size = 0;
  double token_divisor = 1.0, mae_weight = 0.0, distill_weight = 0.0;
  bool wide = false;
  int* counters = nullptr;
  void *partial = nullptr, *loss = nullptr, *mae = nullptr, *distill = nullptr;
};

// Blocks of the main kernel on the current device.
int mae_distill_blocks(int64_t rows, bool wide);

// Two launches on the cudaStream_t: count the masked patches, then everything else. Returns the cudaError_t.
int launch_mae_distill(const CudaMaeDistill& call, int blocks, void* stream);

// The error's name in words.
const char* mae_distill_error(int error);

}  // namespace sdfast
