// What a batch takes of a GPU: which way it goes, and its workspace. Knows no CUDA.
#pragma once

#include "team.cuh"

namespace deploykit {
namespace nms {

// How the work behind the scores is laid out. The results are the same bit for bit.
enum class Route : int32_t {
  automatic = 0,  // by spreads()
  blocks = 1,     // one thread block for each image
  spread = 2,     // each image over the whole GPU
};

constexpr int64_t most_spread_images = 32;   // bounds the workspace whatever the GPU is
constexpr int64_t least_spread_rows = 1024;  // fewer rows are finished sooner than more kernels start

// The choice of `automatic`: an image goes over the whole GPU where a block for each would leave three quarters of the
// multiprocessors idle, and where there are rows enough to share out.
inline bool spreads(int64_t batch, int64_t count, int32_t multiprocessors) {
  return batch <= most_spread_images && 4 * batch <= multiprocessors && count >= least_spread_rows;
}

// Where the parts of the workspace begin, each aligned to 256 bytes.
struct Parts {
  size_t keys, best, sorted, chosen, overlaps, total;

  Parts(int64_t batch, int64_t count, int32_t topk, bool is_spread) {
    const int64_t most = is_spread ? topk : 0;
    keys = aligned(sizeof(uint32_t) * batch);
    best = keys + aligned(sizeof(uint64_t) * batch * count);
    sorted = best + aligned(sizeof(uint64_t) * batch * most);
    chosen = sorted + aligned(sizeof(uint64_t) * batch * most);
    overlaps = chosen + aligned(sizeof(Chosen) * batch * topk);
    total = overlaps + aligned(sizeof(uint64_t) * batch * words_of(static_cast<uint32_t>(most)));
  }

  static size_t aligned(size_t size) { return (size + 255) / 256 * 256; }
};

// Bytes for a batch. Those of `automatic` are enough for every smaller batch of no more rows too, on any GPU, because
// TensorRT asks once, for the largest shapes.
inline size_t workspace_bytes(int64_t batch, int64_t count, int32_t topk, Route route) {
  if (route != Route::automatic) return Parts(batch, count, topk, route == Route::spread).total;
  const size_t by_blocks = Parts(batch, count, topk, false).total;
  if (count < least_spread_rows) return by_blocks;
  const size_t spread = Parts(batch < most_spread_images ? batch : most_spread_images, count, topk, true).total;
  return spread > by_blocks ? spread : by_blocks;
}

// The rows, and where the parts of the workspace lie. With Route::blocks only `found`, `keys` and `chosen` are there.
template <typename T>
Batch<T> batch_of(const T* rows, int32_t images, int32_t count, const Layout& layout, const Limits& limits,
    const Outputs& out, void* workspace, bool is_spread) {
  const Parts parts(images, count, limits.topk, is_spread);
  auto* memory = static_cast<char*>(workspace);
  Batch<T> batch{};
  batch.rows = rows;
  batch.count = static_cast<uint32_t>(count);
  batch.layout = layout;
  batch.limits = limits;
  batch.out = out;
  batch.found = reinterpret_cast<uint32_t*>(memory);
  batch.keys = reinterpret_cast<uint64_t*>(memory + parts.keys);
  batch.best = reinterpret_cast<uint64_t*>(memory + parts.best);
  batch.sorted = reinterpret_cast<uint64_t*>(memory + parts.sorted);
  batch.chosen = reinterpret_cast<Chosen*>(memory + parts.chosen);
  batch.overlaps = reinterpret_cast<uint64_t*>(memory + parts.overlaps);
  return batch;
}

}  // namespace nms
}  // namespace deploykit
