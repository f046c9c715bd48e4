// The kernels: one that scores all rows of a batch, one in which a thread block finishes each image.
#include "launch.h"

namespace deploykit {
namespace nms {
namespace {

constexpr int score_threads = 256;
constexpr int finish_threads = 1024;

// A thread block as the team of kernel.cuh.
struct BlockTeam {
  __device__ uint32_t lane() const { return threadIdx.x; }
  __device__ uint32_t lanes() const { return blockDim.x; }
  __device__ void sync() const { __syncthreads(); }
  __device__ void add(uint32_t* counter, uint32_t value) const { atomicAdd(counter, value); }
  __device__ uint32_t next(uint32_t* counter) const { return atomicAdd(counter, 1u); }
};

// What lies in the workspace, each part aligned to 256 bytes.
struct Parts {
  size_t keys, chosen, total;

  Parts(int64_t batch, int64_t count, int32_t topk) {
    keys = aligned(sizeof(uint32_t) * batch);
    chosen = keys + aligned(sizeof(uint64_t) * batch * count);
    total = chosen + aligned(sizeof(Chosen) * batch * topk);
  }

  static size_t aligned(size_t size) { return (size + 255) / 256 * 256; }
};

// A thread a row; candidates are appended in any order, which the sort on unique keys makes good.
template <typename T>
__global__ void score_rows(const T* rows, uint32_t count, Layout layout, float conf, uint32_t* found, uint64_t* keys) {
  const uint32_t number = blockIdx.x * blockDim.x + threadIdx.x;
  if (number >= count) return;
  const size_t image = blockIdx.y;
  const T* row = rows + (image * count + number) * layout.columns;
  uint64_t key;
  if (is_candidate(row, layout, conf, number, &key)) keys[image * count + atomicAdd(&found[image], 1u)] = key;
}

// A block an image.
template <typename T>
__global__ void __launch_bounds__(finish_threads) finish_images(const T* rows, uint32_t count, Layout layout,
    Limits limits, const uint32_t* found, const uint64_t* keys, Chosen* chosen, Outputs out) {
  __shared__ Scratch scratch;
  const size_t image = blockIdx.x;
  BlockTeam team;
  finish_image(team, rows + image * count * layout.columns, layout.columns, layout, limits, keys + image * count,
      found[image], chosen + image * limits.topk, scratch, outputs_of_image(out, image, layout, limits));
}

template <typename T>
cudaError_t launch_on(const T* rows, int32_t batch, int32_t count, const Layout& layout, const Limits& limits,
    const Outputs& out, char* memory, cudaStream_t stream) {
  const Parts parts(batch, count, limits.topk);
  auto* found = reinterpret_cast<uint32_t*>(memory);
  auto* keys = reinterpret_cast<uint64_t*>(memory + parts.keys);
  auto* chosen = reinterpret_cast<Chosen*>(memory + parts.chosen);
  if (const cudaError_t code = cudaMemsetAsync(found, 0, sizeof(uint32_t) * batch, stream)) return code;
  if (count > 0) {
    const dim3 grid((count + score_threads - 1) / score_threads, batch);
    score_rows<<<grid, score_threads, 0, stream>>>(rows, count, layout, limits.conf, found, keys);
    if (const cudaError_t code = cudaGetLastError()) return code;
  }
  finish_images<<<batch, finish_threads, 0, stream>>>(rows, count, layout, limits, found, keys, chosen, out);
  return cudaGetLastError();
}

}  // namespace

size_t workspace_bytes(int64_t batch, int64_t count, int32_t topk) { return Parts(batch, count, topk).total; }

cudaError_t launch(const void* rows, bool half, int32_t batch, int32_t count, const Layout& layout,
    const Limits& limits, const Outputs& out, void* workspace, cudaStream_t stream) {
  if (batch == 0) return cudaSuccess;
  if (batch < 0 || batch > 65535 || count < 0 || limits.topk < 1 || limits.topk > most_topk || limits.max_det < 1) {
    return cudaErrorInvalidValue;
  }
  auto* memory = static_cast<char*>(workspace);
  return half ? launch_on(static_cast<const Half*>(rows), batch, count, layout, limits, out, memory, stream)
              : launch_on(static_cast<const float*>(rows), batch, count, layout, limits, out, memory, stream);
}

}  // namespace nms
}  // namespace deploykit
