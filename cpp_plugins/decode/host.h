// Decoding on a CPU: the same values as the kernel's, a column of a tile at a time, so that a compiler can use vectors.
#pragma once

#include <algorithm>

#include "kernel.cuh"

namespace deploykit {
namespace decode {

constexpr int32_t host_cells = 64;  // a tile: its rows stay in a core's cache while its columns are written

template <typename T, typename Value>
inline void decode_column(const T* raw, float* out, int32_t cells, int32_t columns, Value value) {
  float values[host_cells];
  for (int32_t i = 0; i < cells; ++i) values[i] = value(to_float(raw[i]), i);
  for (int32_t i = 0; i < cells; ++i) out[static_cast<int64_t>(i) * columns] = values[i];
}

template <typename T>
inline void decode_cells(const Head& head, const Plane<T>& plane, int32_t first) {
  const int32_t columns = columns_of(head);
  const int32_t cells = std::min(host_cells, plane.cells - first);
  const float stride = head.stride[plane.level];
  const float* anchor = head.anchor[plane.level][plane.anchor];
  float x[host_cells], y[host_cells];
  for (int32_t i = 0; i < cells; ++i) {
    x[i] = offset_of((first + i) % plane.width, stride);
    y[i] = offset_of((first + i) / plane.width, stride);
  }
  for (int32_t c = 0; c < columns; ++c) {
    const T* raw = plane.raw + static_cast<int64_t>(c) * plane.cells + first;
    float* out = plane.rows + static_cast<int64_t>(first) * columns + c;
    const auto fill = [&](auto value) { decode_column(raw, out, cells, columns, value); };
    switch (kind_of(head, c)) {
      case Kind::centre_x: fill([&](float v, int32_t i) { return centre(v, stride, x[i]); }); break;
      case Kind::centre_y: fill([&](float v, int32_t i) { return centre(v, stride, y[i]); }); break;
      case Kind::width: fill([&](float v, int32_t) { return side(v, anchor[0]); }); break;
      case Kind::height: fill([&](float v, int32_t) { return side(v, anchor[1]); }); break;
      case Kind::probability: fill([&](float v, int32_t) { return sigmoid(v); }); break;
      case Kind::keypoint_x: fill([&](float v, int32_t i) { return keypoint(v, stride, x[i]); }); break;
      case Kind::keypoint_y: fill([&](float v, int32_t i) { return keypoint(v, stride, y[i]); }); break;
    }
  }
}

// One level of one image, all anchors.
template <typename T>
inline void decode_level(const Head& head, const Grid& grid, int32_t level, int32_t image, const T* raw, float* rows) {
  for (int32_t anchor = 0; anchor < head.anchors; ++anchor) {
    const auto plane = plane_of(head, grid, level, anchor, image, raw, rows);
    for (int32_t first = 0; first < plane.cells; first += host_cells) decode_cells(head, plane, first);
  }
}

}  // namespace decode
}  // namespace deploykit
