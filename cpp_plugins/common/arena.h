// One piece of memory cut into arrays, one behind the other.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <type_traits>

namespace deploykit {

// The memory is the caller's; it must be aligned to the largest alignment that is asked for, which comes first.
class Arena {
 public:
  explicit Arena(void* memory) : next_(static_cast<std::byte*>(memory)) {}

  // The next `count` values, whose lifetime begins here; they hold nothing yet. No code comes of that.
  template <typename T>
  T* take(int64_t count) {
    static_assert(std::is_trivial_v<T>, "the arena destroys nothing");
    T* const values = reinterpret_cast<T*>(next_);
    std::uninitialized_default_construct_n(values, count);
    next_ += static_cast<int64_t>(sizeof(T)) * count;
    return values;
  }

 private:
  std::byte* next_;
};

}  // namespace deploykit
