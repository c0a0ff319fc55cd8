// Softmax attention over many sequences of different lengths on the CPU: what a kernel is given. Nothing here needs
// torch.
//
//   out_i = sum_j softmax_j(scale q_i . k_j) m_ij v_j     for the queries i and the keys j of one sequence and one head
//
// The mask m is 1, or with dropout 0 and 1 / (1 - rate), as attention_mask.inl.h makes it. The scores of a block of
// queries stay in the caches; the backward pass makes them again from the logarithm of the softmax' divisor (Dao et
// al., 2022, FlashAttention).
#pragma once

#include <cstdint>

namespace sdfast {

// A matrix of vectors [token, head, dim] in float32 or bfloat16, the values of a head side by side.
struct Heads {
  void* data = nullptr;
  int64_t token_stride = 0;  // in elements
  int64_t head_stride = 0;
  bool bf16 = false;
};

// Rows [q_begin, q_end) of the queries see rows [k_begin, k_end) of keys and values.
struct Sequence {
  int64_t q_begin, q_end, k_begin, k_end;
};

// Of the weights: one whose 32 random bits are below `threshold` is dropped, the others are multiplied by `scale`.
struct Dropout {
  uint32_t threshold = 0;
  float scale = 1.0f;
  uint64_t seed = 0;
};

struct AttentionOperands {
  Heads q, k, v, out;  // of one type, and so the gradients
  float* lse = nullptr;  // [heads, queries]: logarithm of the sum of exp(scaled scores)
  int64_t queries = 0;   // rows of q: the stride of lse
  int64_t dim = 0;
  float scale = 1.0f;
  Dropout dropout;
  Heads grad_out, grad_q, grad_k, grad_v;  // backward only
};

// One instruction set's kernels, for one sequence and one head. `scratch` holds attention_scratch_bytes() bytes. Where
// there are `begin` and `end`, a thread calls them before its first and after its last, with 64 bytes to keep for it.
struct AttentionKernels {
  void (*forward)(const AttentionOperands&, const Sequence&, int64_t head, float* scratch);
  void (*backward)(const AttentionOperands&, const Sequence&, int64_t head, float* scratch);
  void (*begin)(void* kept) = nullptr;
  void (*end)(void* kept) = nullptr;
};

AttentionKernels attention_plain();
#ifdef SDFAST_X86_SIMD
AttentionKernels attention_avx2();
AttentionKernels attention_avx512();
AttentionKernels attention_amx();             // for bfloat16
AttentionKernels attention_tiles_emulated();  // the same without AMX, in tests
#endif

// Those of simd_level().
AttentionKernels attention_kernels(bool bf16);

constexpr int64_t kAttentionLanes = 16;       // padded sizes are multiples of the widest vector
constexpr int64_t kAttentionQueryBlock = 48;  // queries whose scores are held at once

static constexpr int64_t attention_padded(int64_t size) {
  return (size + kAttentionLanes - 1) / kAttentionLanes * kAttentionLanes;
}

constexpr int64_t kAttentionTileStrip = 32;     // the same with tiles: queries whose scores are held in float32,
constexpr int64_t kAttentionTileQueries = 256;  // and in bfloat16

static constexpr int64_t attention_tile_padded(int64_t size) { return (size + 31) / 32 * 32; }

// Enough for both directions and any instruction set: keys and values as rows and as columns, their gradients, and a
// block of queries with two blocks of scores.
static constexpr int64_t attention_scratch_bytes(int64_t keys, int64_t dim, bool bf16) {
  int64_t tokens = attention_padded(keys), width = attention_padded(dim);
  const int64_t vectors = (6 * tokens * width + kAttentionQueryBlock * (4 * width + 2 * tokens + 2)) * 4 + 64;
  if (!bf16) return vectors;
  tokens = attention_tile_padded(keys);
  width = attention_tile_padded(dim);
  const int64_t tiles = 16 * tokens * width + kAttentionTileQueries * (10 * width + 4 * tokens) +
                        kAttentionTileStrip * (6 * width + 10 * tokens) + 64;
  return vectors > tiles ? vectors : tiles;
}

}  // namespace sdfast
