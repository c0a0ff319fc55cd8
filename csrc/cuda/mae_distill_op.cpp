// sdfast::mae_distill on CUDA tensors: unpack, allocate, launch on torch's current stream. Nothing waits for the GPU.

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include "cpu/mae_distill_operands.h"
#include "cuda/mae_distill.h"

namespace sdfast {
namespace {

Outputs mae_distill_cuda(const Operands& o) {
  STD_TORCH_CHECK(o.mean.size() <= kMaxScaledChannels, "mae_distill: mean and std are for at most ", kMaxScaledChannels,
                  " channels here");
  const Tensor& like = o.pred.has_value() ? *o.pred : *o.student;
  const int32_t device = like.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  CudaMaeDistill call;
  call.wide = o.in_double();
  call.mae_weight = o.mae_weight;
  call.distill_weight = o.distill_weight;
  PixelPart pixels;
  TokenPart tokens;
  if (o.pred.has_value()) {
    unpack(pixels, o);
    call.pixels = pixels.x;
    call.pixel_rows = pixels.rows;
    call.patch_values = pixels.values;
    call.patches = pixels.patches;
  }
  if (o.student.has_value()) {
    unpack(tokens, o);
    call.tokens = tokens.x;
    call.token_rows = tokens.rows;
    call.bank_size = tokens.bank_size;
    call.token_divisor = tokens.divisor;
  }
  const int64_t most_rows = call.pixel_rows > call.token_rows ? call.pixel_rows : call.token_rows;
  const int blocks = mae_distill_blocks(most_rows, call.wide);
  const ScalarType type = call.wide ? ScalarType::Double : ScalarType::Float;
  const Tensor loss = torch::stable::new_empty(like, {}, type), mae = torch::stable::new_empty(like, {}, type);
  const Tensor distill = torch::stable::new_empty(like, {}, type);
  const Tensor partial = torch::stable::new_empty(like, {2 * static_cast<int64_t>(blocks)}, type);
  const Tensor counters = torch::stable::new_empty(like, {2}, ScalarType::Int);
  call.loss = loss.mutable_data_ptr();
  call.mae = mae.mutable_data_ptr();
  call.distill = distill.mutable_data_ptr();
  call.partial = partial.mutable_data_ptr();
  call.counters = static_cast<int*>(counters.mutable_data_ptr());
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  const int error = launch_mae_distill(call, blocks, stream);
  STD_TORCH_CHECK(error == 0, "mae_distill: ", mae_distill_error(error));
  return {loss, mae, distill, o.pred.has_value() ? pixels.grad : gradient_for(like, false),
          o.student.has_value() ? tokens.grad : gradient_for(like, false)};
}

}  // namespace
}  // namespace sdfast

STABLE_TORCH_LIBRARY_IMPL(sdfast, CUDA, m) { m.impl("mae_distill", TORCH_BOX(&sdfast::with_operands<sdfast::mae_distill_cuda>)); }
