// The attention kernels of every instruction set against the plain formula in double precision, forward and backward.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <random>
#include <utility>
#include <vector>

#include "check.h"
#include "cpu/attention.h"
#include "cpu/simd.h"

using sdfast::AttentionOperands;
using sdfast::Sequence;
using sdfast::Simd;

namespace {

constexpr float kUntouched = 776.0f;  // between the rows that a kernel may write; a bfloat16 number too
constexpr double kEpsilon = 1.1920929e-7, kBf16Unit = 1.0 / 256;

struct Settings {
  std::vector<Sequence> sequences;
  int64_t heads = 2, dim = 8;
  bool packed = false;   // q, k and v in one matrix [tokens, 3, heads, dim], as a fused projection leaves them
  float largest = 0.0f;  // when above 0: q and k are stretched so that the largest |scaled score| is this
  bool bf16 = false;
  double dropout = 0.0;
};

float number_at(const void* numbers, int64_t index, bool bf16) {
  if (!bf16) return static_cast<const float*>(numbers)[index];
  const uint32_t bits = static_cast<uint32_t>(static_cast<const uint16_t*>(numbers)[index]) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// To bfloat16 by cutting off.
void put_number(void* numbers, int64_t index, bool bf16, float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if (bf16) {
    static_cast<uint16_t*>(numbers)[index] = static_cast<uint16_t>(bits >> 16);
  } else {
    static_cast<float*>(numbers)[index] = value;
  }
}

// float32 or bfloat16 numbers in a row.
struct Numbers {
  bool bf16 = false;
  std::vector<float> wide;
  std::vector<uint16_t> half;

  void assign(int64_t count, bool as_bf16, float value) {
    bf16 = as_bf16;
    wide.resize(bf16 ? 0 : static_cast<size_t>(count));
    half.resize(bf16 ? static_cast<size_t>(count) : 0);
    each([&](float) { return value; });
  }
  void* data() { return bf16 ? static_cast<void*>(half.data()) : wide.data(); }
  int64_t size() const { return static_cast<int64_t>(wide.size() + half.size()); }
  float get(int64_t i) const { return number_at(bf16 ? static_cast<const void*>(half.data()) : wide.data(), i, bf16); }
  template <typename Change>
  void each(Change change) {
    for (int64_t i = 0; i < size(); ++i) put_number(data(), i, bf16, change(get(i)));
  }
};

// One matrix [rows, heads, dim] somewhere in `storage`.
struct Matrix {
  Numbers storage;
  sdfast::Heads heads;
  int64_t rows = 0;
};

struct Problem {
  Settings s;
  int64_t queries = 0, keys = 0;
  float scale = 1.0f;
  Numbers inputs;  // q, k and v
  Matrix out, grad_out, grad_q, grad_k, grad_v;
  std::vector<float> lse;
  AttentionOperands x;
  // The plain formula's, [rows, heads, dim] without gaps, and the sizes that rounding errors are measured by.
  std::vector<double> exact_out, exact_grad_q, exact_grad_k, exact_grad_v, exact_lse;
  double top_score = 0, top_q = 0, top_k = 0, top_v = 0, top_grad = 0, top_product = 0;
};

float at(const sdfast::Heads& m, int64_t row, int64_t head, int64_t i) {
  return number_at(m.data, row * m.token_stride + head * m.head_stride + i, m.bf16);
}

void put(const sdfast::Heads& m, int64_t row, int64_t head, int64_t i, float value) {
  put_number(m.data, row * m.token_stride + head * m.head_stride + i, m.bf16, value);
}

Matrix make_matrix(int64_t rows, const Settings& s) {
  Matrix m;
  m.rows = rows;
  m.storage.assign(rows * s.heads * (s.dim + 3) + 5, s.bf16, kUntouched);
  m.heads = {m.storage.data(), s.heads * (s.dim + 3), s.dim + 3, s.bf16};
  return m;
}

uint32_t mixed(uint32_t x) {
  x = (x ^ (x >> 16)) * 0x7feb352du;
  x = (x ^ (x >> 15)) * 0x846ca68bu;
  return x ^ (x >> 16);
}

// What a weight is multiplied by, as sdfast/ops/attention/mask.py has it.
double mask_of(const sdfast::Dropout& d, int64_t head, int64_t query, int64_t key) {
  const uint32_t low = static_cast<uint32_t>(d.seed), high = static_cast<uint32_t>(d.seed >> 32);
  const uint32_t h = static_cast<uint32_t>(head), q = static_cast<uint32_t>(query);
  const uint32_t first = mixed(q + mixed(h + mixed(high + mixed(low))));
  const uint32_t second = mixed(q + mixed(h + mixed(low + mixed(~high))));
  uint32_t x = first + static_cast<uint32_t>(key) * 0x9e3779b9u;
  x = ((x ^ (x >> 16)) * 0x7feb352du) ^ second;
  x = (x ^ (x >> 15)) * 0x846ca68bu;
  return (x ^ (x >> 16)) >= d.threshold ? static_cast<double>(d.scale) : 0.0;
}

void draw_inputs(Problem& p, std::mt19937& rng) {
  const Settings& s = p.s;
  const int64_t row = s.heads * s.dim, size = s.bf16 ? 2 : 4;
  std::normal_distribution<float> normal;
  if (s.packed) {
    p.inputs.assign(3 * p.queries * row, s.bf16, 0.0f);
    char* data = static_cast<char*>(p.inputs.data());
    p.x.q = {data, 3 * row, s.dim, s.bf16};
    p.x.k = {data + row * size, 3 * row, s.dim, s.bf16};
    p.x.v = {data + 2 * row * size, 3 * row, s.dim, s.bf16};
  } else {
    p.inputs.assign((p.queries + 2 * p.keys) * row, s.bf16, 0.0f);
    char* data = static_cast<char*>(p.inputs.data());
    p.x.q = {data, row, s.dim, s.bf16};
    p.x.k = {data + p.queries * row * size, s.dim, p.keys * s.dim, s.bf16};  // head after head
    p.x.v = {data + (p.queries + p.keys) * row * size, row, s.dim, s.bf16};
  }
  p.inputs.each([&](float) { return normal(rng); });
}

double score(const Problem& p, int64_t query, int64_t key, int64_t head) {
  double sum = 0;
  for (int64_t i = 0; i < p.s.dim; ++i) {
    sum += static_cast<double>(at(p.x.q, query, head, i)) * static_cast<double>(at(p.x.k, key, head, i));
  }
  return sum * static_cast<double>(p.scale);
}

template <typename Visit>
void each_query(const Problem& p, Visit visit) {
  for (const Sequence& s : p.s.sequences) {
    for (int64_t head = 0; head < p.s.heads; ++head) {
      for (int64_t query = s.q_begin; query < s.q_end; ++query) visit(s, head, query);
    }
  }
}

double top_score(const Problem& p) {
  double top = 0;
  each_query(p, [&](const Sequence& s, int64_t head, int64_t query) {
    for (int64_t key = s.k_begin; key < s.k_end; ++key) top = std::max(top, std::fabs(score(p, query, key, head)));
  });
  return top;
}

double largest(const sdfast::Heads& m, int64_t rows, const Settings& s) {
  double top = 0;
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t head = 0; head < s.heads; ++head) {
      for (int64_t i = 0; i < s.dim; ++i) top = std::max(top, std::fabs(static_cast<double>(at(m, row, head, i))));
    }
  }
  return top;
}

void answer(Problem& p) {
  const int64_t dim = p.s.dim, heads = p.s.heads;
  const auto size = [&](int64_t rows) { return static_cast<size_t>(rows * heads * dim); };
  p.exact_out.assign(size(p.queries), 0.0);
  p.exact_grad_q.assign(size(p.queries), 0.0);
  p.exact_grad_k.assign(size(p.keys), 0.0);
  p.exact_grad_v.assign(size(p.keys), 0.0);
  p.exact_lse.assign(static_cast<size_t>(heads * p.queries), 0.0);
  each_query(p, [&](const Sequence& s, int64_t head, int64_t query) {
    const int64_t count = s.k_end - s.k_begin;
    std::vector<double> weights(static_cast<size_t>(count)), products(static_cast<size_t>(count));
    double top = -HUGE_VAL, sum = 0, delta = 0;
    for (int64_t j = 0; j < count; ++j) {
      weights[static_cast<size_t>(j)] = score(p, query, s.k_begin + j, head);
      top = std::max(top, weights[static_cast<size_t>(j)]);
    }
    for (double& weight : weights) sum += weight = std::exp(weight - top);
    p.exact_lse[static_cast<size_t>(head * p.queries + query)] = top + std::log(sum);
    const size_t own = static_cast<size_t>((query * heads + head) * dim);
    for (int64_t j = 0; j < count; ++j) {
      double& weight = weights[static_cast<size_t>(j)];
      double& product = products[static_cast<size_t>(j)];
      const size_t theirs = static_cast<size_t>(((s.k_begin + j) * heads + head) * dim);
      weight /= sum;
      const double mask = mask_of(p.x.dropout, head, query, j);
      double terms = 0;
      for (int64_t i = 0; i < dim; ++i) {
        const double value = static_cast<double>(at(p.x.v, s.k_begin + j, head, i));
        const double grad = static_cast<double>(at(p.grad_out.heads, query, head, i));
        p.exact_out[own + static_cast<size_t>(i)] += weight * mask * value;
        p.exact_grad_v[theirs + static_cast<size_t>(i)] += weight * mask * grad;
        product += mask * value * grad;
        terms += std::fabs(mask * value * grad);
      }
      delta += weight * product;
      // A bfloat16 output's rounding is in every term of what the backward pass sums of it.
      p.top_product = std::max(p.top_product, p.s.bf16 ? terms : std::fabs(product));
    }
    for (int64_t j = 0; j < count; ++j) {
      const double grad = weights[static_cast<size_t>(j)] * (products[static_cast<size_t>(j)] - delta) *
                          static_cast<double>(p.scale);
      const size_t theirs = static_cast<size_t>(((s.k_begin + j) * heads + head) * dim);
      for (int64_t i = 0; i < dim; ++i) {
        p.exact_grad_q[own + static_cast<size_t>(i)] += grad * static_cast<double>(at(p.x.k, s.k_begin + j, head, i));
        p.exact_grad_k[theirs + static_cast<size_t>(i)] += grad * static_cast<double>(at(p.x.q, query, head, i));
      }
    }
  });
}

void make(Problem& p, const Settings& settings) {
  std::mt19937 rng(static_cast<unsigned>(settings.dim * 7 + settings.sequences.front().q_end));
  p.s = settings;
  p.queries = settings.sequences.back().q_end;
  p.keys = settings.sequences.back().k_end;
  p.scale = 1.0f / std::sqrt(static_cast<float>(settings.dim));
  draw_inputs(p, rng);
  if (settings.largest > 0.0f) {
    const float stretch = std::sqrt(settings.largest / static_cast<float>(top_score(p)));
    for (int64_t head = 0; head < settings.heads; ++head) {
      for (int64_t i = 0; i < settings.dim; ++i) {
        for (int64_t row = 0; row < p.queries; ++row) put(p.x.q, row, head, i, at(p.x.q, row, head, i) * stretch);
        for (int64_t row = 0; row < p.keys; ++row) put(p.x.k, row, head, i, at(p.x.k, row, head, i) * stretch);
      }
    }
  }
  p.out = make_matrix(p.queries, settings);
  p.grad_out = make_matrix(p.queries, settings);
  p.grad_q = make_matrix(p.queries, settings);
  p.grad_k = make_matrix(p.keys, settings);
  p.grad_v = make_matrix(p.keys, settings);
  std::normal_distribution<float> normal;
  p.grad_out.storage.each([&](float) { return 1.5f * normal(rng); });
  if (settings.dropout > 0.0) {
    p.x.dropout = {static_cast<uint32_t>(settings.dropout * 4294967296.0),
                   static_cast<float>(1.0 / (1.0 - settings.dropout)), 0x123456789abcdef0u};
  }
  p.lse.assign(static_cast<size_t>(settings.heads * p.queries), kUntouched);
  p.x.lse = p.lse.data();
  p.x.queries = p.queries;
  p.x.dim = settings.dim;
  p.x.scale = p.scale;
  p.x.out = p.out.heads;
  p.x.grad_out = p.grad_out.heads;
  p.x.grad_q = p.grad_q.heads;
  p.x.grad_k = p.grad_k.heads;
  p.x.grad_v = p.grad_v.heads;
  p.top_score = top_score(p);
  p.top_q = largest(p.x.q, p.queries, settings);
  p.top_k = largest(p.x.k, p.keys, settings);
  p.top_v = largest(p.x.v, p.keys, settings);
  p.top_grad = largest(p.x.grad_out, p.queries, settings);
}

// Both directions, with scratch memory of exactly the size that is asked for, full of NaN: nothing is read unwritten.
void run(Problem& p, const sdfast::AttentionKernels& kernels) {
  for (Matrix* m : {&p.out, &p.grad_q, &p.grad_k, &p.grad_v}) {
    m->storage.each([](float) { return kUntouched; });
  }
  char kept[64];
  if (kernels.begin != nullptr) kernels.begin(kept);
  for (const auto kernel : {kernels.forward, kernels.backward}) {
    for (const Sequence& s : p.s.sequences) {
      const int64_t bytes = sdfast::attention_scratch_bytes(s.k_end - s.k_begin, p.s.dim, p.s.bf16);
      for (int64_t head = 0; head < p.s.heads; ++head) {
        std::vector<float> scratch(static_cast<size_t>(bytes) / sizeof(float), NAN);
        scratch.resize(scratch.size() + 16, kUntouched);
        kernel(p.x, s, head, scratch.data());
        CHECK(std::count(scratch.end() - 16, scratch.end(), kUntouched) == 16);
      }
    }
  }
  if (kernels.end != nullptr) kernels.end(kept);
}

// Of all instruction sets that this CPU has, for one type.
std::vector<sdfast::AttentionKernels> kernels_of(bool bf16) {
  std::vector<sdfast::AttentionKernels> found;
  for (Simd level : {Simd::plain, Simd::avx2, Simd::avx512, Simd::amx}) {
    if (level > sdfast::simd_supported()) continue;
    setenv("SDFAST_SIMD", sdfast::simd_name(level), 1);
    found.push_back(sdfast::attention_kernels(bf16));
  }
#ifdef SDFAST_X86_SIMD
  if (bf16 && sdfast::simd_supported() >= Simd::avx512 && __builtin_cpu_supports("avx512bf16")) {
    found.push_back(sdfast::attention_tiles_emulated());
  }
#endif
  return found;
}

// Largest error at most `units` rounding units of `size` (or of the largest exact value), and the gaps as they were.
bool near(const Matrix& m, const std::vector<double>& exact, const Problem& p, double size) {
  // A score's rounding error is a weight's relative error. In bfloat16 what comes out and goes in again is rounded.
  const double unit = (16.0 + 4.0 * p.top_score) * kEpsilon + (p.s.bf16 ? 3.0 * kBf16Unit : 0.0);
  double worst = 0, top = size;
  int64_t untouched = m.storage.size();
  for (int64_t row = 0; row < m.rows; ++row) {
    for (int64_t head = 0; head < p.s.heads; ++head) {
      for (int64_t i = 0; i < p.s.dim; ++i) {
        const double wanted = exact[static_cast<size_t>((row * p.s.heads + head) * p.s.dim + i)];
        const double error = std::fabs(static_cast<double>(at(m.heads, row, head, i)) - wanted);
        if (!(error <= worst)) worst = error;  // NaN too
        top = std::max(top, std::fabs(wanted));
      }
    }
  }
  untouched -= m.rows * p.s.heads * p.s.dim;
  int64_t left = 0;
  for (int64_t i = 0; i < m.storage.size(); ++i) left += m.storage.get(i) == kUntouched;
  return worst <= unit * top && left == untouched;
}

bool near_lse(const Problem& p) {
  for (size_t i = 0; i < p.lse.size(); ++i) {
    const double error = std::fabs(static_cast<double>(p.lse[i]) - p.exact_lse[i]);
    if (!(error <= 8.0 * kEpsilon * (1.0 + p.top_score))) return false;
  }
  return true;
}

void compare(const Settings& settings) {
  Problem p;
  make(p, settings);
  answer(p);
  const double scale = static_cast<double>(p.scale), kept = static_cast<double>(p.x.dropout.scale);
  for (const sdfast::AttentionKernels& kernels : kernels_of(settings.bf16)) {
    run(p, kernels);
    CHECK(near(p.out, p.exact_out, p, kept * p.top_v));
    CHECK(near(p.grad_v, p.exact_grad_v, p, kept * p.top_grad));
    CHECK(near(p.grad_q, p.exact_grad_q, p, scale * p.top_k * p.top_product));
    CHECK(near(p.grad_k, p.exact_grad_k, p, scale * p.top_q * p.top_product));
    CHECK(near_lse(p));
  }
}

// The values of one head in rows [begin, end).
std::vector<float> values(const sdfast::Heads& m, int64_t begin, int64_t end, int64_t head, int64_t dim) {
  std::vector<float> found;
  for (int64_t row = begin; row < end; ++row) {
    for (int64_t i = 0; i < dim; ++i) found.push_back(at(m, row, head, i));
  }
  return found;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

bool any_nan(const std::vector<float>& found) {
  return std::any_of(found.begin(), found.end(), [](float value) { return std::isnan(value); });
}

bool all_nan(const std::vector<float>& found) {
  return std::all_of(found.begin(), found.end(), [](float value) { return std::isnan(value); });
}

// A NaN at row 3, head 1, value 2 of the first sequence's q, k, v or grad_out: everything that depends on it is NaN,
// and the other sequence and the other head keep their bits.
void check_nan(bool bf16, const sdfast::AttentionKernels& kernels) {
  Settings settings{{{0, 53, 0, 53}, {53, 72, 53, 72}}, 2, 24};
  settings.bf16 = bf16;
  Problem clean;
  make(clean, settings);
  run(clean, kernels);
  for (int where = 0; where < 4; ++where) {
    Problem p;
    make(p, settings);
    const sdfast::Heads inputs[4] = {p.x.q, p.x.k, p.x.v, p.x.grad_out};
    put(inputs[where], 3, 1, 2, NAN);
    run(p, kernels);
    const sdfast::Heads found[4] = {p.x.out, p.x.grad_q, p.x.grad_k, p.x.grad_v};
    const sdfast::Heads wanted[4] = {clean.x.out, clean.x.grad_q, clean.x.grad_k, clean.x.grad_v};
    for (int m = 0; m < 4; ++m) {
      CHECK(same_bits(values(found[m], 0, 72, 0, 24), values(wanted[m], 0, 72, 0, 24)));
      CHECK(same_bits(values(found[m], 53, 72, 1, 24), values(wanted[m], 53, 72, 1, 24)));
    }
    const std::vector<float> row = values(p.x.out, 3, 4, 1, 24), others = values(p.x.out, 4, 53, 1, 24);
    if (where == 0) CHECK(all_nan(row) && !any_nan(others));
    if (where == 1) CHECK(all_nan(row) && all_nan(others));
    if (where == 2) CHECK(std::isnan(row[2]) && !std::isnan(row[1]) && std::isnan(others[2]) && !std::isnan(others[3]));
    if (where == 3) CHECK(same_bits(row, values(clean.x.out, 3, 4, 1, 24)));
    CHECK(all_nan(values(p.x.grad_q, 3, 4, 1, 24)));  // whatever was NaN, these are
    CHECK(all_nan(values(p.x.grad_k, 0, 53, 1, 24)) || where == 2);
    if (where == 2) CHECK(any_nan(values(p.x.grad_k, 0, 53, 1, 24)));
    if (where < 2) CHECK(all_nan(values(p.x.grad_v, 3, 4, 1, 24)));
    if (where == 3) CHECK(std::isnan(at(p.x.grad_v, 20, 1, 2)) && !std::isnan(at(p.x.grad_v, 20, 1, 1)));
  }
}

// Scores near the end of float's range: all at -1e38 is an even mean; one at 1e38 takes everything.
void check_extremes(bool bf16, const sdfast::AttentionKernels& kernels) {
  Settings settings{{{0, 2, 0, 21}}, 1, 1};
  settings.bf16 = bf16;
  Problem p;
  make(p, settings);
  put(p.x.q, 0, 0, 0, 1e19f);
  put(p.x.q, 1, 0, 0, -1e19f);
  for (int64_t key = 0; key < 21; ++key) put(p.x.k, key, 0, 0, -1e19f);
  run(p, kernels);
  float mean = 0;
  for (int64_t key = 0; key < 21; ++key) mean += at(p.x.v, key, 0, 0) / 21.0f;
  CHECK(std::fabs(at(p.x.out, 0, 0, 0) - mean) < (bf16 ? 1e-2f : 1e-5f));
  CHECK(std::fabs(at(p.x.out, 1, 0, 0) - mean) < (bf16 ? 1e-2f : 1e-5f));
  put(p.x.k, 17, 0, 0, 1e19f);
  run(p, kernels);
  CHECK(at(p.x.out, 0, 0, 0) == at(p.x.v, 17, 0, 0));
  CHECK(!any_nan(values(p.x.out, 0, 2, 0, 1)));
}

void compare_all(bool bf16, double dropout) {
  const auto with = [&](std::vector<Sequence> all, int64_t heads, int64_t dim, bool packed, float largest = 0.0f) {
    compare({std::move(all), heads, dim, packed, largest, bf16, dropout});
  };
  for (int64_t dim : {1, 8, 24, 32, 64, 80, 96}) {
    for (int64_t tokens : {1, 37, 50, 197, 250}) with({{0, tokens, 0, tokens}}, 2, dim, true);
    with({{0, 1, 0, 197}}, 2, dim, false);  // the CLS query
    with({{0, 50, 0, 1}}, 2, dim, false);   // a single key
    with({{0, 147, 0, 37}, {147, 150, 37, 287}}, 3, dim, false);
    for (float score : {80.0f, 2000.0f}) with({{0, 37, 0, 37}}, 2, dim, true, score);
  }
  // Every remainder of a tile's rows and of a vector's columns, and blocks of queries that just fit or just do not.
  for (int64_t tokens = 2; tokens <= 36; ++tokens) with({{0, tokens, 0, 38 - tokens}}, 1, 17, false);
  for (int64_t queries : {47, 48, 49, 96, 97, 256, 257, 530}) with({{0, queries, 0, 65}}, 1, 33, false);
}

}  // namespace

int main() {
  for (const bool bf16 : {false, true}) {
    for (const double dropout : {0.0, 0.25}) compare_all(bf16, dropout);
  }
  for (const bool bf16 : {false, true}) {
    for (const sdfast::AttentionKernels& kernels : kernels_of(bf16)) {
      check_nan(bf16, kernels);
      check_extremes(bf16, kernels);
    }
  }
  return failures();
}
