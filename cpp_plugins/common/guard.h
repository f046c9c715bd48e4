// The one place where exceptions end. Neither TensorRT's nor ONNX Runtime's interface lets one through, and where
// memory runs out any string or vector throws.
#pragma once

#include <exception>
#include <stdexcept>
#include <string>
#include <utility>

namespace deploykit {

// What `body()` returns; where it throws, what `failed(error, reason)` returns, with a null `error` where what was
// thrown is no std::exception. `failed` itself must not throw: it is called when there may be no memory left.
template <typename Body, typename Failed>
auto guarded(Body&& body, Failed&& failed) noexcept -> decltype(body()) {
  try {
    return std::forward<Body>(body)();
  } catch (const std::exception& error) {
    return failed(&error, error.what());
  } catch (...) {
    return failed(nullptr, "an exception of an unknown type");
  }
}

// What is wrong with the arguments becomes an exception; nothing is wrong where the text is empty.
inline void require_valid(const std::string& error) {
  if (!error.empty()) throw std::invalid_argument(error);
}

}  // namespace deploykit
