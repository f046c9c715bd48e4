// What every source of this folder shares: one spelling for host and device, exported names, half precision, the ABI.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__CUDACC__)
#define DEPLOYKIT_HOST_DEVICE __host__ __device__ inline
#else
#define DEPLOYKIT_HOST_DEVICE inline
#endif

// Everything is hidden but what is marked; the build adds -fvisibility=hidden.
#if defined(_WIN32)
#define DEPLOYKIT_API extern "C" __declspec(dllexport)
#else
#define DEPLOYKIT_API extern "C" __attribute__((visibility("default")))
#endif

// A number of the preprocessor as text.
#define DEPLOYKIT_TEXT_OF(value) #value
#define DEPLOYKIT_TEXT(value) DEPLOYKIT_TEXT_OF(value)

// The build names its compilers here.
#if !defined(DEPLOYKIT_BUILT_WITH)
#define DEPLOYKIT_BUILT_WITH "an unknown compiler"
#endif

namespace deploykit {

// Counts up whenever an exported function or struct changes; runtime/native/library.py asks for the same number.
constexpr int32_t abi_number = 7;

// Whether a struct may cross the C interface: its members lie as C says, and its bytes are all there is to it.
template <typename T>
constexpr bool is_plain = std::conjunction_v<std::is_standard_layout<T>, std::is_trivially_copyable<T>>;

// An IEEE 754 half as it lies in memory. Widening is exact, and the same code on both sides, so that no result depends
// on a compiler's half type.
struct Half {
  uint16_t bits;
};

DEPLOYKIT_HOST_DEVICE float float_of_bits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

DEPLOYKIT_HOST_DEVICE uint32_t bits_of_float(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

DEPLOYKIT_HOST_DEVICE float to_float(float value) { return value; }

DEPLOYKIT_HOST_DEVICE float to_float(Half value) {
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000u) << 16;
  const uint32_t rest = value.bits & 0x7fffu;
  if (rest < 0x400u) {  // zero or denormal: a whole number of 2^-24
    return float_of_bits(bits_of_float(static_cast<float>(rest) * 5.9604644775390625e-8f) | sign);
  }
  const uint32_t exponent = rest >= 0x7c00u ? 255u - 31u : 127u - 15u;  // infinity and NaN stay what they are
  return float_of_bits(((rest << 13) + (exponent << 23)) | sign);
}

DEPLOYKIT_HOST_DEVICE bool is_finite(float value) { return (bits_of_float(value) & 0x7f800000u) != 0x7f800000u; }

DEPLOYKIT_HOST_DEVICE bool is_finite(Half value) { return (value.bits & 0x7c00u) != 0x7c00u; }

}  // namespace deploykit
