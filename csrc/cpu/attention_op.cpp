// sdfast::attention_forward and sdfast::attention_backward on CPU tensors: unpack, and share the sequences' heads out
// over the threads. Every head of every sequence writes rows of its own, so nothing depends on the number of threads.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <tuple>

#include "cpu/attention.h"

namespace sdfast {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

Heads heads_of(const Tensor& tensor, const char* name) {
  STD_TORCH_CHECK(tensor.dim() == 3, "attention: ", name, " should be [tokens, heads, dim]");
  const bool bf16 = tensor.scalar_type() == ScalarType::BFloat16;
  STD_TORCH_CHECK(bf16 || tensor.scalar_type() == ScalarType::Float, "attention: ", name,
                  " should be float32 or bfloat16");
  STD_TORCH_CHECK(tensor.size(2) <= 1 || tensor.stride(2) == 1, "attention: the values of a head in ", name,
                  " should lie side by side");
  return {tensor.mutable_data_ptr(), tensor.stride(0), tensor.stride(1), bf16};
}

void check_like(const Tensor& tensor, const Tensor& like, const char* name) {
  STD_TORCH_CHECK(tensor.dim() == 3 && tensor.size(0) == like.size(0) && tensor.size(1) == like.size(1) &&
                      tensor.size(2) == like.size(2),
                  "attention: ", name, " has a wrong shape");
  STD_TORCH_CHECK(tensor.scalar_type() == like.scalar_type(), "attention: ", name, " has another type");
}

// The threshold is the rate in units of 2^-32, rounded; the scale is by what that leaves, so that the mean is exact.
Dropout dropout_of(double rate, int64_t seed) {
  STD_TORCH_CHECK(rate >= 0.0 && rate <= 1.0, "attention: dropout should be a probability, not ", rate);
  constexpr double kAll = 4294967296.0;
  const double dropped = std::min(std::nearbyint(rate * kAll), kAll - 1.0);
  return {static_cast<uint32_t>(dropped), static_cast<float>(kAll / (kAll - dropped)), static_cast<uint64_t>(seed)};
}

struct Problem {
  AttentionOperands x;
  const Sequence* sequences = nullptr;
  int64_t count = 0, heads = 0, longest = 0;
  int64_t queries = 0, keys = 0;  // rows of q and of k
};

// `bounds` is [sequences, 4] int64, ordered: no row of q or of k belongs to two sequences.
Problem problem_of(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& bounds, double scale,
                   double dropout, int64_t seed) {
  Problem p;
  p.x.q = heads_of(q, "q");
  p.x.k = heads_of(k, "k");
  p.x.v = heads_of(v, "v");
  check_like(v, k, "v");
  STD_TORCH_CHECK(q.size(1) == k.size(1) && q.size(2) == k.size(2), "attention: q and k should have the same heads");
  STD_TORCH_CHECK(q.scalar_type() == k.scalar_type(), "attention: q and k should have the same type");
  STD_TORCH_CHECK(bounds.dim() == 2 && bounds.size(1) == 4 && bounds.scalar_type() == ScalarType::Long &&
                      bounds.is_contiguous(),
                  "attention: bounds should be [sequences, 4] int64 and contiguous");
  static_assert(sizeof(Sequence) == 4 * sizeof(int64_t));
  p.sequences = static_cast<const Sequence*>(bounds.const_data_ptr());
  p.count = bounds.size(0);
  p.heads = q.size(1);
  p.queries = q.size(0);
  p.keys = k.size(0);
  p.x.queries = p.queries;
  p.x.dim = q.size(2);
  p.x.scale = static_cast<float>(scale);
  p.x.dropout = dropout_of(dropout, seed);
  int64_t q_end = 0, k_end = 0;
  for (int64_t i = 0; i < p.count; ++i) {
    const Sequence& s = p.sequences[i];
    STD_TORCH_CHECK(s.q_begin >= q_end && s.q_end >= s.q_begin && s.q_end <= p.queries && s.k_begin >= k_end &&
                        s.k_end >= s.k_begin && s.k_end <= p.keys,
                    "attention: the bounds of sequence ", i, " do not fit");
    STD_TORCH_CHECK(s.q_end == s.q_begin || s.k_end > s.k_begin, "attention: sequence ", i, " has no keys");
    q_end = s.q_end;
    k_end = s.k_end;
    if (s.k_end - s.k_begin > p.longest) p.longest = s.k_end - s.k_begin;
  }
  return p;
}

void zero_rows(const Heads& to, int64_t begin, int64_t end, int64_t heads, int64_t dim) {
  const int64_t bytes = to.bf16 ? 2 : 4;
  for (int64_t token = begin; token < end; ++token) {
    for (int64_t head = 0; head < heads; ++head) {
      std::memset(static_cast<char*>(to.data) + bytes * (token * to.token_stride + head * to.head_stride), 0,
                  static_cast<size_t>(bytes * dim));
    }
  }
}

// Zeros in the rows that belong to no sequence (padding), and in all of a sequence that has no queries.
void zero_outside(const Problem& p, const Heads& to, bool queries) {
  int64_t end = 0;
  for (int64_t i = 0; i < p.count; ++i) {
    const Sequence& s = p.sequences[i];
    if (s.q_end == s.q_begin) continue;
    zero_rows(to, end, queries ? s.q_begin : s.k_begin, p.heads, p.x.dim);
    end = queries ? s.q_end : s.k_end;
  }
  zero_rows(to, end, queries ? p.queries : p.keys, p.heads, p.x.dim);
}

void run(const Problem& p, bool forwards) {
  const AttentionKernels kernels = attention_kernels(p.x.q.bf16);
  const auto kernel = forwards ? kernels.forward : kernels.backward;
  const size_t bytes = static_cast<size_t>(attention_scratch_bytes(p.longest, p.x.dim, p.x.q.bf16));
  const int64_t items = p.count * p.heads;
  std::atomic<int64_t> next{0};
  const auto work = [&](int64_t, int64_t) {
    const std::unique_ptr<void, decltype(&std::free)> scratch(std::malloc(bytes), &std::free);
    STD_TORCH_CHECK(scratch != nullptr, "attention: out of memory");
    alignas(64) char kept[64];
    if (kernels.begin != nullptr) kernels.begin(kept);
    for (int64_t i = next.fetch_add(1); i < items; i = next.fetch_add(1)) {
      const Sequence& s = p.sequences[i / p.heads];
      if (s.q_end > s.q_begin) kernel(p.x, s, i % p.heads, static_cast<float*>(scratch.get()));
    }
    if (kernels.end != nullptr) kernels.end(kept);
  };
  const int64_t threads = torch::stable::get_num_threads(), workers = items < threads ? items : threads;
  if (workers > 1) {
    torch::stable::parallel_for(0, workers, 1, work);
  } else {
    work(0, 1);
  }
}

std::tuple<Tensor, Tensor> attention_forward(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& bounds,
                                             double scale, double dropout, int64_t seed) {
  Problem p = problem_of(q, k, v, bounds, scale, dropout, seed);
  Tensor out = torch::stable::new_empty(q, {p.queries, p.heads, p.x.dim}, q.scalar_type());
  Tensor lse = torch::stable::new_zeros(q, {p.heads, p.queries}, ScalarType::Float);
  p.x.out = heads_of(out, "out");
  p.x.lse = static_cast<float*>(lse.mutable_data_ptr());
  zero_outside(p, p.x.out, true);
  run(p, true);
  return {out, lse};
}

void attention_backward(const Tensor& grad_out, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out,
                        const Tensor& lse, const Tensor& bounds, double scale, double dropout, int64_t seed,
                        const Tensor& grad_q, const Tensor& grad_k, const Tensor& grad_v) {
  Problem p = problem_of(q, k, v, bounds, scale, dropout, seed);
  check_like(grad_out, q, "grad_out");
  check_like(out, q, "out");
  check_like(grad_q, q, "grad_q");
  check_like(grad_k, k, "grad_k");
  check_like(grad_v, v, "grad_v");
  STD_TORCH_CHECK(lse.dim() == 2 && lse.size(0) == p.heads && lse.size(1) == p.queries && lse.is_contiguous() &&
                      lse.scalar_type() == ScalarType::Float,
                  "attention: lse should be [heads, queries] float32 and contiguous");
  p.x.out = heads_of(out, "out");
  p.x.lse = static_cast<float*>(lse.mutable_data_ptr());
  p.x.grad_out = heads_of(grad_out, "grad_out");
  p.x.grad_q = heads_of(grad_q, "grad_q");
  p.x.grad_k = heads_of(grad_k, "grad_k");
  p.x.grad_v = heads_of(grad_v, "grad_v");
  zero_outside(p, p.x.grad_q, true);
  zero_outside(p, p.x.grad_k, false);
  zero_outside(p, p.x.grad_v, false);
  run(p, false);
}

}  // namespace
}  // namespace sdfast

STABLE_TORCH_LIBRARY_FRAGMENT(sdfast, m) {
  m.def(
      "attention_forward(Tensor q, Tensor k, Tensor v, Tensor bounds, float scale, float dropout, int seed) -> "
      "(Tensor out, Tensor lse)");
  m.def(
      "attention_backward(Tensor grad_out, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, Tensor bounds, "
      "float scale, float dropout, int seed, Tensor(a!) grad_q, Tensor(b!) grad_k, Tensor(c!) grad_v) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(sdfast, CPU, m) {
  m.impl("attention_forward", TORCH_BOX(&sdfast::attention_forward));
  m.impl("attention_backward", TORCH_BOX(&sdfast::attention_backward));
}
