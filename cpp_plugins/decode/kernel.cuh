// Decoding the rows of an anchor head (YOLOv5, YOLOv7, YOLO-Pose), once, for g++ and nvcc: from the raw values of every
// level to `cx cy w h obj cls*C (x y v)*K` in network pixels. Knows no TensorRT and no ONNX Runtime type.
//
// The definition is that of models/layers/anchor_head.py. Arithmetic is float32 in the order written here, without a
// fused multiply-add, and the exponential is written out: so a CPU and a GPU give the same bits.
#pragma once

#include "common/portable.h"

namespace deploykit {
namespace decode {

constexpr int32_t most_levels = 8;
constexpr int32_t most_anchors = 8;  // a level

// The head: what the node's attributes say.
struct Head {
  int32_t levels;
  int32_t anchors;  // a level
  int32_t num_classes;
  int32_t num_keypoints;
  float stride[most_levels];
  float anchor[most_levels][most_anchors][2];  // width and height in pixels
};

static_assert(is_plain<Head> && sizeof(Head) == 560 && offsetof(Head, stride) == 16 && offsetof(Head, anchor) == 48,
    "runtime/native/cuda_library.py has the same struct");

// How large the levels are; level i has anchors * height * width rows.
struct Grid {
  int32_t height[most_levels];
  int32_t width[most_levels];
};

static_assert(is_plain<Grid> && sizeof(Grid) == 64 && offsetof(Grid, width) == 32,
    "runtime/native/cuda_library.py has the same struct");

// One level, anchor and image: `cells` raw values a column, column after column, and where its rows begin.
template <typename T>
struct Plane {
  const T* raw;
  float* rows;
  int32_t level;
  int32_t anchor;
  int32_t cells;
  int32_t width;
};

DEPLOYKIT_HOST_DEVICE int32_t columns_of(const Head& head) { return 5 + head.num_classes + 3 * head.num_keypoints; }

DEPLOYKIT_HOST_DEVICE int64_t rows_of(const Head& head, const Grid& grid) {
  int64_t cells = 0;
  for (int32_t i = 0; i < head.levels; ++i) cells += static_cast<int64_t>(grid.height[i]) * grid.width[i];
  return cells * head.anchors;
}

// e^x to 2 units in the last place for -87 <= x <= 88, the ends outside; NaN stays NaN.
DEPLOYKIT_HOST_DEVICE float exponential(float x) {
  x = x < -87.0f ? -87.0f : x;
  x = x > 88.0f ? 88.0f : x;
  // x = n ln 2 + r. Adding 1.5 * 2^23 rounds to a whole number, whose bits are then the lowest of the sum.
  const float shifted = x * 1.44269504f + 12582912.0f;
  const float n = shifted - 12582912.0f;
  // ln 2 in two parts, of which the first has few bits, so that its product with n is exact.
  const float r = (x - n * 0.693359375f) - n * -0.000212194440f;
  float sum = 1.0f / 5040.0f;
  sum = sum * r + 1.0f / 720.0f;
  sum = sum * r + 1.0f / 120.0f;
  sum = sum * r + 1.0f / 24.0f;
  sum = sum * r + 1.0f / 6.0f;
  sum = sum * r + 0.5f;
  sum = sum * r + 1.0f;
  sum = sum * r + 1.0f;
  return sum * float_of_bits((bits_of_float(shifted) << 23) + 0x3f800000u);
}

DEPLOYKIT_HOST_DEVICE float sigmoid(float x) { return 1.0f / (1.0f + exponential(-x)); }

// Where a cell begins, half a cell earlier, in pixels.
DEPLOYKIT_HOST_DEVICE float offset_of(int32_t cell, float stride) {
  return static_cast<float>(cell) * stride - 0.5f * stride;
}

DEPLOYKIT_HOST_DEVICE float centre(float raw, float stride, float offset) {
  return sigmoid(raw) * (2.0f * stride) + offset;
}

DEPLOYKIT_HOST_DEVICE float side(float raw, float anchor) {
  const float s = sigmoid(raw);
  return s * s * (4.0f * anchor);
}

DEPLOYKIT_HOST_DEVICE float keypoint(float raw, float stride, float offset) { return raw * (2.0f * stride) + offset; }

// What a column holds.
enum class Kind { centre_x, centre_y, width, height, probability, keypoint_x, keypoint_y };

DEPLOYKIT_HOST_DEVICE Kind kind_of(const Head& head, int32_t column) {
  if (column < 4) return static_cast<Kind>(column);
  const int32_t rest = column - 5 - head.num_classes;
  if (rest < 0 || rest % 3 == 2) return Kind::probability;
  return rest % 3 == 0 ? Kind::keypoint_x : Kind::keypoint_y;
}

// One value of the row of a cell.
DEPLOYKIT_HOST_DEVICE float decoded(
    const Head& head, int32_t level, int32_t anchor, Kind kind, int32_t x, int32_t y, float raw) {
  const float stride = head.stride[level];
  switch (kind) {
    case Kind::centre_x: return centre(raw, stride, offset_of(x, stride));
    case Kind::centre_y: return centre(raw, stride, offset_of(y, stride));
    case Kind::width: return side(raw, head.anchor[level][anchor][0]);
    case Kind::height: return side(raw, head.anchor[level][anchor][1]);
    case Kind::keypoint_x: return keypoint(raw, stride, offset_of(x, stride));
    case Kind::keypoint_y: return keypoint(raw, stride, offset_of(y, stride));
    case Kind::probability: break;
  }
  return sigmoid(raw);
}

// ---- A tile of cells by a team of lanes, as in nms_kpt/kernel.cuh
// ----------------------------------------------------
//
// Values lie column after column in the input and row after row in the output. Both are touched in order: a tile is
// transposed in memory that the team shares.

constexpr int32_t tile_cells = 32;
constexpr int32_t tile_columns = 64;

struct Scratch {
  float values[tile_columns][tile_cells + 1];  // one more, so that a column's values lie in different banks
};

template <typename T, typename Team>
DEPLOYKIT_HOST_DEVICE void decode_tile(
    Team& team, const Head& head, const Plane<T>& plane, int32_t first, Scratch& scratch) {
  const int32_t columns = columns_of(head);
  const int32_t cells = plane.cells - first < tile_cells ? plane.cells - first : tile_cells;
  for (int32_t start = 0; start < columns; start += tile_columns) {
    const int32_t some = columns - start < tile_columns ? columns - start : tile_columns;
    for (int32_t i = team.lane(); i < some * tile_cells; i += team.lanes()) {
      const int32_t c = i / tile_cells;
      const int32_t cell = i % tile_cells;
      if (cell >= cells) continue;
      const int32_t place = first + cell;
      const float raw = to_float(plane.raw[static_cast<int64_t>(start + c) * plane.cells + place]);
      scratch.values[c][cell] = decoded(
          head, plane.level, plane.anchor, kind_of(head, start + c), place % plane.width, place / plane.width, raw);
    }
    team.sync();
    for (int32_t i = team.lane(); i < some * cells; i += team.lanes()) {
      const int32_t cell = i / some;
      const int32_t c = i % some;
      plane.rows[static_cast<int64_t>(first + cell) * columns + start + c] = scratch.values[c][cell];
    }
    team.sync();
  }
}

// The plane of one level, anchor and image. `raw` is the level's whole tensor (batch, anchors * columns, height,
// width), `rows` the whole output (batch, rows, columns).
template <typename T>
DEPLOYKIT_HOST_DEVICE Plane<T> plane_of(
    const Head& head, const Grid& grid, int32_t level, int32_t anchor, int32_t image, const T* raw, float* rows) {
  const int64_t columns = columns_of(head);
  int64_t before = 0;
  for (int32_t i = 0; i < level; ++i) before += static_cast<int64_t>(grid.height[i]) * grid.width[i];
  Plane<T> plane{};
  plane.level = level;
  plane.anchor = anchor;
  plane.width = grid.width[level];
  plane.cells = grid.height[level] * grid.width[level];
  plane.raw = raw + (static_cast<int64_t>(image) * head.anchors + anchor) * columns * plane.cells;
  const int64_t first =
      image * rows_of(head, grid) + before * head.anchors + static_cast<int64_t>(anchor) * plane.cells;
  plane.rows = rows + first * columns;
  return plane;
}

}  // namespace decode
}  // namespace deploykit
