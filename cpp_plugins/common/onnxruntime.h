// What the ONNX Runtime operators share. The API is handed over when they are registered: no library is linked to.
#pragma once

#define ORT_API_MANUAL_INIT
#include <onnxruntime_cxx_api.h>

#include <cstdio>
#include <string>

#include "common/guard.h"
#include "common/portable.h"

namespace deploykit {
namespace ort {

inline OrtErrorCode code_of(const std::exception* error) {
  if (const auto* own = dynamic_cast<const Ort::Exception*>(error)) return own->GetOrtErrorCode();
  return dynamic_cast<const std::invalid_argument*>(error) ? ORT_INVALID_ARGUMENT : ORT_FAIL;
}

// Runs `body()`; what it throws becomes the status that ONNX Runtime takes for an error. `name` is the operator's.
template <typename Body>
OrtStatusPtr guarded(const char* name, Body&& body) noexcept {
  return deploykit::guarded(
      [&]() -> OrtStatusPtr {
        body();
        return nullptr;
      },
      [&](const std::exception* error, const char* reason) -> OrtStatusPtr {
        char message[1024];
        std::snprintf(message, sizeof message, "%s: %s", name, reason);
        return Ort::GetApi().CreateStatus(code_of(error), message);
      });
}

// The attribute `name` of a node, or `missing` where the node has none.
inline int64_t integer_or(const OrtKernelInfo* kernel, const char* name, int64_t missing) {
  int64_t value = missing;
  OrtStatusPtr absent = Ort::GetApi().KernelInfoGetAttribute_int64(kernel, name, &value);
  if (!absent) return value;
  Ort::GetApi().ReleaseStatus(absent);
  return missing;
}

// The kernel of a node, unless its attributes make no sense.
template <typename Kernel, typename Attributes>
OrtStatusPtr create_kernel(
    const char* name, const OrtKernelInfo* info, Attributes (*read)(const OrtKernelInfo*), void** kernel) noexcept {
  return guarded(name, [&] {
    const Attributes attributes = read(info);
    require_valid(attributes.validation_error());
    *kernel = new Kernel(attributes);
  });
}

}  // namespace ort

// The operators, one a folder.
namespace nms {
const OrtCustomOp* onnxruntime_operator();
}
namespace decode {
const OrtCustomOp* onnxruntime_operator();
}

}  // namespace deploykit
