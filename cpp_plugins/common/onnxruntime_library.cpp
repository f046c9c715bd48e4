// What ONNX Runtime calls when it is given the library: the operators go into the domain deploykit.
#include "common/onnxruntime.h"

DEPLOYKIT_API int32_t deploykit_abi() { return deploykit::abi_number; }

DEPLOYKIT_API const char* deploykit_built_with() {
  return "ONNX Runtime API " DEPLOYKIT_TEXT(ORT_API_VERSION) " headers, " DEPLOYKIT_BUILT_WITH;
}

DEPLOYKIT_API OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  const OrtApi* api = base->GetApi(ORT_API_VERSION);
  if (!api) {
    return base->GetApi(1)->CreateStatus(ORT_FAIL, "this library was built for a newer ONNX Runtime than this one");
  }
  Ort::InitApi(api);
  return deploykit::ort::guarded("deploykit", [&] {
    static Ort::CustomOpDomain domain = [] {
      Ort::CustomOpDomain made("deploykit");
      made.Add(deploykit::nms::onnxruntime_operator());
      made.Add(deploykit::decode::onnxruntime_operator());
      return made;
    }();
    Ort::ThrowOnError(api->AddCustomOpDomain(options, domain));
  });
}
