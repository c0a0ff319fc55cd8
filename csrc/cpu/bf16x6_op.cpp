// sdfast::bf16x6_product on CPU tensors: unpack, choose blocks, and share them out over the threads. A block's sum does
// not depend on which thread makes it.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <memory>
#include <optional>

#include "cpu/bf16x6.h"

namespace sdfast {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kDepth = 768;  // of a pass: what is split at once
// A second-level cache, 2 MB in every processor with AMX, holds both.
constexpr int64_t kOwnBytes = 600'000;     // of the panels that a thread splits for itself
constexpr int64_t kColumnBytes = 900'000;  // of the right factor's panels that all rows pass by

using Scratch = std::unique_ptr<char, decltype(&std::free)>;

Scratch scratch(int64_t bytes) {
  Scratch memory(static_cast<char*>(std::aligned_alloc(64, static_cast<size_t>(bytes))), &std::free);
  STD_TORCH_CHECK(memory != nullptr, "bf16x6_product: out of memory");
  return memory;
}

int64_t ceiling(int64_t count, int64_t part) { return (count + part - 1) / part; }

// `outer` is the dimension that stays, the other is summed over.
Bf16x6Factor factor_of(const Tensor& x, int outer) {
  const int k = 1 - outer;
  return {static_cast<const float*>(x.const_data_ptr()), x.size(outer), x.size(k), x.stride(outer), x.stride(k)};
}

// One of the strides has to be 1; a dimension of one element may have any.
Tensor dense(const Tensor& x, const char* name) {
  STD_TORCH_CHECK(x.dim() == 2, "bf16x6_product: ", name, " should be a matrix");
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float, "bf16x6_product: ", name, " should be float32");
  return x.stride(0) == 1 || x.stride(1) == 1 ? x : torch::stable::contiguous(x);
}

Bf16x6Factor part_of(Bf16x6Factor x, int64_t panel, int64_t k, int64_t depth) {
  x.data += panel * kBf16x6Block * x.outer_stride + k * x.k_stride;
  x.outer = std::min(x.outer - panel * kBf16x6Block, kBf16x6Block);
  x.depth = depth;
  return x;
}

template <typename Work>
void each(int64_t count, const Work& work) {
  if (count > 1) {
    torch::stable::parallel_for(0, count, 1, work);
  } else {
    work(0, count);
  }
}

// Those of a factor that an item multiplies.
struct Panels {
  const char* data;
  int64_t begin, end;
};

// The factor with fewer panels is split once and read by every thread; of the other one a thread splits some panels at
// a time for itself.
void product(const Bf16x6Factor& left, const Bf16x6Factor& right, const Bf16x6Target& to) {
  const Bf16x6Kernels kernels = bf16x6_kernels();
  const bool left_is_shared = left.outer < right.outer;
  const Bf16x6Factor &shared = left_is_shared ? left : right, &own = left_is_shared ? right : left;
  const int64_t passes = ceiling(left.depth, kDepth);
  const int64_t depth = ceiling(ceiling(left.depth, passes), kBf16x6Block) * kBf16x6Block;
  const int64_t panel_bytes = depth / kBf16x6Block * kBf16x6BlockBytes;
  const int64_t shared_panels = ceiling(shared.outer, kBf16x6Block), own_panels = ceiling(own.outer, kBf16x6Block);
  // As many items for each thread, of nearly the same size; where there are few, the shared panels are divided too.
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t columns_at_once = std::max<int64_t>(1, kColumnBytes / panel_bytes);
  const int64_t rounds = ceiling(own_panels, threads * std::max<int64_t>(1, kOwnBytes / panel_bytes));
  const int64_t group = ceiling(own_panels, threads * rounds), groups = ceiling(own_panels, group);
  const int64_t shares = std::min(shared_panels, ceiling(threads, groups)), items = groups * shares;
  const Scratch shared_split = scratch(shared_panels * panel_bytes);
  for (int64_t k = 0; k < left.depth; k += depth) {
    const int64_t here = std::min(depth, left.depth - k);
    const bool last = k + depth >= left.depth;
    each(shared_panels, [&](int64_t begin, int64_t end) {
      for (int64_t j = begin; j < end; ++j) {
        kernels.split(part_of(shared, j, k, here), !left_is_shared, shared_split.get() + j * panel_bytes);
      }
    });
    std::atomic<int64_t> next{0};
    each(std::min(items, threads), [&](int64_t, int64_t) {
      Bf16x6State state;
      const Scratch own_split = scratch(group * panel_bytes);
      kernels.begin(state);
      for (int64_t item = next.fetch_add(1); item < items; item = next.fetch_add(1)) {
        const int64_t first = item / shares * group, count = std::min(group, own_panels - first);
        const int64_t begin = shared_panels * (item % shares) / shares;
        const int64_t end = shared_panels * (item % shares + 1) / shares;
        for (int64_t i = 0; i < count; ++i) {
          kernels.split(part_of(own, first + i, k, here), left_is_shared, own_split.get() + i * panel_bytes);
        }
        const Panels mine{own_split.get() - first * panel_bytes, first, first + count};
        const Panels everybodys{shared_split.get(), begin, end};
        const Panels &rows = left_is_shared ? everybodys : mine, &columns = left_is_shared ? mine : everybodys;
        // Some columns stay in the cache while all rows pass by; along a row, blocks are written side by side.
        for (int64_t j0 = columns.begin; j0 < columns.end; j0 += columns_at_once) {
          const int64_t j1 = std::min(j0 + columns_at_once, columns.end);
          for (int64_t i = rows.begin; i < rows.end; ++i) {
            const char *row_panel = rows.data + i * panel_bytes, *after = row_panel + panel_bytes;
            for (int64_t j = j0; j < j1; ++j) {
              Bf16x6Ahead ahead;
              if (i + 1 < rows.end) {
                ahead = {after + panel_bytes * (j - j0) / (j1 - j0), after + panel_bytes * (j + 1 - j0) / (j1 - j0)};
              }
              const int64_t row = i * kBf16x6Block, column = j * kBf16x6Block;
              Bf16x6Target block = to;
              block.out += row * to.row_stride + column;
              block.add = k > 0;
              block.bias = last && to.bias ? to.bias + column : nullptr;
              block.residual = last && to.residual ? to.residual + row * to.residual_stride + column : nullptr;
              kernels.multiply(row_panel, columns.data + j * panel_bytes, ceiling(here, kBf16x6Block), block,
                               std::min(left.outer - row, kBf16x6Block), std::min(right.outer - column, kBf16x6Block),
                               ahead, state);
            }
          }
        }
      }
      kernels.end(state);
    });
  }
}

// left [M, K] right [K, N] (+ bias [N]) (+ residual [M, N]), float32.
Tensor bf16x6_product(const Tensor& left_given, const Tensor& right_given, const std::optional<Tensor>& bias,
                      const std::optional<Tensor>& residual) {
  const Tensor left = dense(left_given, "left"), right = dense(right_given, "right");
  const int64_t rows = left.size(0), columns = right.size(1);
  STD_TORCH_CHECK(left.size(1) == right.size(0), "bf16x6_product: left has ", left.size(1), " columns and right ",
                  right.size(0), " rows");
  Bf16x6Target to;
  Tensor added_bias, added_residual;
  if (bias) {
    STD_TORCH_CHECK(bias->dim() == 1 && bias->size(0) == columns && bias->scalar_type() == ScalarType::Float,
                    "bf16x6_product: bias should be [", columns, "] float32");
    added_bias = torch::stable::contiguous(*bias);
    to.bias = static_cast<const float*>(added_bias.const_data_ptr());
  }
  if (residual) {
    STD_TORCH_CHECK(residual->dim() == 2 && residual->size(0) == rows && residual->size(1) == columns &&
                        residual->scalar_type() == ScalarType::Float,
                    "bf16x6_product: residual should be [", rows, ", ", columns, "] float32");
    added_residual = residual->stride(1) == 1 ? *residual : torch::stable::contiguous(*residual);
    to.residual = static_cast<const float*>(added_residual.const_data_ptr());
    to.residual_stride = added_residual.stride(0);
  }
  STD_TORCH_CHECK(left.size(1) > 0, "bf16x6_product: nothing to sum over");
  Tensor out = torch::stable::new_empty(left, {rows, columns}, ScalarType::Float);
  if (rows == 0 || columns == 0) return out;
  to.out = static_cast<float*>(out.mutable_data_ptr());
  to.row_stride = columns;
  product(factor_of(left, 0), factor_of(right, 1), to);
  return out;
}

}  // namespace
}  // namespace sdfast

STABLE_TORCH_LIBRARY_FRAGMENT(sdfast, m) {
  m.def("bf16x6_product(Tensor left, Tensor right, Tensor? bias, Tensor? residual) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(sdfast, CPU, m) { m.impl("bf16x6_product", TORCH_BOX(&sdfast::bf16x6_product)); }
