// NMS of a batch on a GPU: what the TensorRT plugin and the CUDA library call. Needs the CUDA headers, not nvcc.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "kernel.cuh"

namespace deploykit {
namespace nms {

// Bytes of device memory for a batch; the pointer must be aligned to 256, as allocators give it.
size_t workspace_bytes(int64_t batch, int64_t count, int32_t topk);

// Rows are (batch, count, layout.columns), float16 where `half`, contiguous; outputs are those of the whole batch.
// topk is at most most_topk. Nothing is waited for; the result is CUDA's code of the launches.
cudaError_t launch(const void* rows, bool half, int32_t batch, int32_t count, const Layout& layout,
    const Limits& limits, const Outputs& out, void* workspace, cudaStream_t stream);

}  // namespace nms
}  // namespace deploykit
