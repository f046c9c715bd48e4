// The kernel: a thread an output pixel, three channels; images of a batch may have different sizes.
#include "launch.h"

#include <algorithm>

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
cudaError_t launch_on(const Plan* plans, const uint8_t* const* sources, const int64_t* pitches, int32_t count,
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

cudaError_t launch(const Plan* plans, const uint8_t* const* sources, const int64_t* pitches, int32_t count,
    const void* table, bool half, void* out, cudaStream_t stream) {
  if (count < 0) return cudaErrorInvalidValue;
  for (int32_t i = 0; i < count; ++i) {
    if (plans[i].canvas_height != plans[0].canvas_height || plans[i].canvas_width != plans[0].canvas_width) {
      return cudaErrorInvalidValue;
    }
  }
  if (count == 0) return cudaSuccess;
  if (half) {
    const auto* values = static_cast<const uint16_t*>(table);
    return launch_on(plans, sources, pitches, count, values, static_cast<uint16_t*>(out), stream);
  }
  const auto* values = static_cast<const float*>(table);
  return launch_on(plans, sources, pitches, count, values, static_cast<float*>(out), stream);
}

}  // namespace letterbox
}  // namespace deploykit
