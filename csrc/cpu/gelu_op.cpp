// sdfast::gelu on CPU tensors: the values, and the slopes that the backward pass multiplies by.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <tuple>

#include "cpu/gelu.h"

namespace sdfast {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kGrain = 16384;  // values that are worth a thread

std::tuple<Tensor, Tensor> gelu_cpu(const Tensor& x) {
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float, "gelu: x should be float32");
  const Tensor in = x.is_contiguous() ? x : torch::stable::contiguous(x);
  Tensor y = torch::stable::new_empty(in, in.sizes(), ScalarType::Float);
  Tensor slope = torch::stable::new_empty(in, in.sizes(), ScalarType::Float);
  const float* from = static_cast<const float*>(in.const_data_ptr());
  float* to = static_cast<float*>(y.mutable_data_ptr());
  float* change = static_cast<float*>(slope.mutable_data_ptr());
  const GeluKernel kernel = gelu_kernel();
  torch::stable::parallel_for(0, in.numel(), kGrain, [&](int64_t begin, int64_t end) {
    kernel(from + begin, to + begin, change + begin, end - begin);
  });
  return {y, slope};
}

}  // namespace
}  // namespace sdfast

STABLE_TORCH_LIBRARY_FRAGMENT(sdfast, m) { m.def("gelu(Tensor x) -> (Tensor y, Tensor slope)"); }

STABLE_TORCH_LIBRARY_IMPL(sdfast, CPU, m) { m.impl("gelu", TORCH_BOX(&sdfast::gelu_cpu)); }
