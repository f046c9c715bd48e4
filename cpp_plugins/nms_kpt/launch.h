// NMS of a batch on a GPU: what the TensorRT plugin and the CUDA library call. Needs the CUDA headers, not nvcc.
#pragma once

#include <cuda_runtime_api.h>

#include "launch_plan.h"

namespace deploykit {
namespace nms {

// Rows are (batch, count, layout.columns), float16 where `half`, contiguous; outputs are those of the whole batch.
// topk is at most most_topk. The workspace is workspace_bytes() of device memory for this route, aligned to 256, as
// allocators give it. Nothing is waited for; the result is CUDA's code of the launches.
cudaError_t launch(const void* rows, bool half, int32_t batch, int32_t count, const Layout& layout,
    const Limits& limits, const Outputs& out, void* workspace, Route route, cudaStream_t stream);

}  // namespace nms
}  // namespace deploykit
