// The kernel: a thread an output pixel, three channels; pictures of a batch may have different sizes.
#include <cuda_runtime_api.h>

#include <algorithm>

#include "kernel.cuh"

namespace deploykit {
namespace letterbox {
namespace {

constexpr int32_t images_a_launch = 8;  // their descriptions travel as kernel arguments, of which there are 4 KiB

struct Image {
  const uint8_t* source;
  int64_t pitch;
  Plan plan;
};

template <typename T>
struct Batch {
  Image images[images_a_launch];
  T table[3 * 256];
};

template <typename T>
__global__ void fill_canvases(Batch<T> batch, T* out) {
  __shared__ T table[3 * 256];  // arguments lie in constant memory, which serves one address at a time
  const int32_t thread = threadIdx.y * blockDim.x + threadIdx.x;
  for (int32_t i = thread; i < 3 * 256; i += blockDim.x * blockDim.y) table[i] = batch.table[i];
  __syncthreads();
  const Image& image = batch.images[blockIdx.z];
  const Plan& plan = image.plan;
  const int32_t x = blockIdx.x * blockDim.x + threadIdx.x;
  const int32_t y = blockIdx.y * blockDim.y + threadIdx.y;
  if (x >= plan.canvas_width || y >= plan.canvas_height) return;
  const size_t plane = static_cast<size_t>(plan.canvas_height) * plan.canvas_width;
  T* place = out + 3 * plane * blockIdx.z + static_cast<size_t>(y) * plan.canvas_width + x;
  const Pixel pixel = canvas_pixel(plan, image.source, image.pitch, x, y);
  for (int32_t c = 0; c < 3; ++c) place[c * plane] = table[256 * c + pixel.values[c]];
}

template <typename T>
cudaError_t launch(const Plan* plans, const uint8_t* const* sources, const int64_t* pitches, int32_t count,
    const T* table, T* out, cudaStream_t stream) {
  const size_t size = 3 * static_cast<size_t>(plans[0].canvas_height) * plans[0].canvas_width;
  const dim3 threads(32, 8);
  for (int32_t start = 0; start < count; start += images_a_launch) {
    const int32_t some = std::min(images_a_launch, count - start);
    Batch<T> batch{};
    for (int32_t i = 0; i < some; ++i) {
      batch.images[i] = Image{sources[start + i], pitches[start + i], plans[start + i]};
    }
    std::copy_n(table, 3 * 256, batch.table);
    const dim3 grid((plans[0].canvas_width + threads.x - 1) / threads.x,
        (plans[0].canvas_height + threads.y - 1) / threads.y, some);
    fill_canvases<<<grid, threads, 0, stream>>>(batch, out + size * start);
    if (const cudaError_t code = cudaGetLastError()) return code;
  }
  return cudaSuccess;
}

}  // namespace
}  // namespace letterbox
}  // namespace deploykit

DEPLOYKIT_API const char* deploykit_built_with() { return DEPLOYKIT_BUILT_WITH; }

// Pictures in device memory (BGR, `pitches` bytes a row) to (count, 3, H, W) in device memory; all canvases have the
// size of the first. `table` is host memory: three times 256 values in the output's channel order, float16 where `half`,
// else float32. Returns 0, or CUDA's error code.
DEPLOYKIT_API int32_t deploykit_letterbox_cuda(const deploykit::letterbox::Plan* plans, const uint8_t* const* sources,
    const int64_t* pitches, int32_t count, const void* table, int32_t half, void* out, void* stream) {
  using deploykit::letterbox::launch;
  for (int32_t i = 0; i < count; ++i) {
    if (plans[i].canvas_height != plans[0].canvas_height || plans[i].canvas_width != plans[0].canvas_width) {
      return cudaErrorInvalidValue;
    }
  }
  if (count <= 0) return count ? cudaErrorInvalidValue : cudaSuccess;
  const auto where = static_cast<cudaStream_t>(stream);
  if (half) {
    const auto* values = static_cast<const uint16_t*>(table);
    return launch(plans, sources, pitches, count, values, static_cast<uint16_t*>(out), where);
  }
  const auto* values = static_cast<const float*>(table);
  return launch(plans, sources, pitches, count, values, static_cast<float*>(out), where);
}
