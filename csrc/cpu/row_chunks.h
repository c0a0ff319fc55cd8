// Sums over the rows of a matrix that is worked on by many threads: every chunk of rows leaves a sum of its own, and
// those are added in order, so the result does not depend on the threads.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>
#include <vector>

namespace sdfast {

constexpr int64_t kChunkRows = 32;

// work(begin, end, sums) for rows [begin, end) of `rows`; it adds to sums [columns]. Their sum goes to total [columns].
template <typename Work>
void sum_over_rows(int64_t rows, int64_t columns, float* total, const Work& work) {
  const int64_t chunks = (rows + kChunkRows - 1) / kChunkRows;
  std::vector<float> partial(static_cast<size_t>(chunks * columns));
  if (chunks > 0) {
    torch::stable::parallel_for(0, chunks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t chunk = begin; chunk < end; ++chunk) {
        work(chunk * kChunkRows, std::min(rows, (chunk + 1) * kChunkRows), partial.data() + chunk * columns);
      }
    });
  }
  std::fill(total, total + columns, 0.0f);
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    const float* from = partial.data() + chunk * columns;
    for (int64_t i = 0; i < columns; ++i) total[i] += from[i];
  }
}

}  // namespace sdfast
