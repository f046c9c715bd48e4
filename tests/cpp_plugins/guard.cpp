// What becomes of an exception behind the guards of common/guard.h; with -DWITH_ONNXRUNTIME behind those of
// common/onnxruntime.h too, over an API that only knows how to make a status.
#include "common/guard.h"

#include <cstdio>
#include <new>
#include <string>

#if defined(WITH_ONNXRUNTIME)
#include "common/onnxruntime.h"
#endif

namespace {

struct NoException {};

template <typename Body>
void guard(const char* what, Body body) {
  const int result = deploykit::guarded(body, [&](const std::exception* error, const char* reason) {
    std::printf("%s: %s%s\n", what, reason, error ? "" : " (no std::exception)");
    return -1;
  });
  std::printf("%s: %d\n", what, result);
}

#if defined(WITH_ONNXRUNTIME)
struct Attributes {
  std::string validation_error() const { return ""; }
};

Attributes read(const OrtKernelInfo*) { return {}; }

struct HungryKernel {
  explicit HungryKernel(const Attributes&) { throw std::bad_alloc(); }
};

OrtStatus* ORT_API_CALL create_status(OrtErrorCode code, const char* message) NO_EXCEPTION {
  std::printf("status %d: %s\n", static_cast<int>(code), message);
  return reinterpret_cast<OrtStatus*>(1);
}

void check_onnxruntime() {
  static OrtApi api{};
  api.CreateStatus = create_status;
  Ort::InitApi(&api);
  using deploykit::ort::guarded;
  void* kernel = nullptr;
  const auto tell = [](const OrtStatus* status) { std::puts(status ? "error" : "fine"); };
  tell(guarded("Op", [] {}));
  tell(guarded("Op", [] { throw std::invalid_argument("the rows are wrong"); }));
  tell(guarded("Op", [] { throw Ort::Exception("no such attribute", ORT_NO_SUCHFILE); }));
  tell(guarded("Op", [] { throw NoException(); }));
  tell(deploykit::ort::create_kernel<HungryKernel>("Op", nullptr, read, &kernel));
  std::puts(kernel ? "a kernel" : "no kernel");
}
#endif

}  // namespace

int main() {
  guard("nothing", [] { return 7; });
  guard("memory", []() -> int { throw std::bad_alloc(); });
  guard("argument", []() -> int {
    deploykit::require_valid("");
    deploykit::require_valid("the rows are wrong");
    return 0;
  });
  guard("a thing", []() -> int { throw NoException(); });
#if defined(WITH_ONNXRUNTIME)
  check_onnxruntime();
#endif
  return 0;
}
