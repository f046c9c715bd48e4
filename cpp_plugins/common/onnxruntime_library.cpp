// What ONNX Runtime calls when it is given the library: the operators go into the domain deploykit.
#include "onnxruntime.h"

DEPLOYKIT_API int32_t deploykit_abi() { return deploykit::abi_number; }

DEPLOYKIT_API const char* deploykit_built_with() {
  static const std::string versions =
      "ONNX Runtime API " + std::to_string(ORT_API_VERSION) + " headers, " DEPLOYKIT_BUILT_WITH;
  return versions.c_str();
}

DEPLOYKIT_API OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  const OrtApi* api = base->GetApi(ORT_API_VERSION);
  if (!api) {
    return base->GetApi(1)->CreateStatus(ORT_FAIL, "this library was built for a newer ONNX Runtime than this one");
  }
  Ort::InitApi(api);
  static Ort::CustomOpDomain domain("deploykit");
  static const bool added = [] {
    domain.Add(deploykit::nms::onnxruntime_operator());
    domain.Add(deploykit::decode::onnxruntime_operator());
    return true;
  }();
  (void)added;
  return api->AddCustomOpDomain(options, domain);
}
