// Keypoint NMS: the definition of runtime/postprocess/nms.py, once, for g++ and nvcc. Knows no TensorRT and no ONNX
// Runtime type.
//
// Arithmetic is float32 in the order written here. The build turns fused multiply-add off (-ffp-contract=off,
// --fmad=false), because one bit of an overlap decides whether a row stays.
//
// The CPU library (host.h) and the kernels (team.cuh, spread.cuh) share it.
#pragma once

#include "common/portable.h"

namespace deploykit {
namespace nms {

// Which columns of a row hold what; -1: there are none. `columns` are those that must be finite.
struct Layout {
  int32_t columns;
  int32_t box;
  int32_t obj;
  int32_t cls;
  int32_t num_classes;
  int32_t keypoints;
  int32_t num_keypoints;
  int32_t kpt_dims;
};

static_assert(
    is_plain<Layout> && sizeof(Layout) == 8 * sizeof(int32_t), "runtime/native/library.py has the same struct");

struct Limits {
  float conf;
  float iou;
  int32_t max_det;
  int32_t topk;
};

static_assert(is_plain<Limits> && sizeof(Limits) == 16 && offsetof(Limits, max_det) == 8,
    "runtime/native/library.py has the same struct");

// Where the objects of one image go: M = max_det slots, of which the unused ones become zero.
struct Outputs {
  int32_t* num_dets;
  float* boxes;
  float* scores;
  int32_t* labels;
  float* keypoints;  // null without keypoints
  int32_t* num_candidates;
};

static_assert(
    is_plain<Outputs> && sizeof(Outputs) == 6 * sizeof(void*), "runtime/native/cuda_library.py passes six pointers");

struct Box {
  float x1, y1, x2, y2, area;
};

constexpr int32_t most_topk = 3840;  // candidates of an image that a GPU looks at, as TensorRT's TopK allows

// What suppression asks of a candidate.
struct Chosen {
  Box box;
  int32_t label;
};

// The columns of the ONNX node's input: cx cy w h [obj] cls*C (x y [v])*K. Where the one class does not count, the
// objectness takes its place: the score is that column alone, and the class only has to be finite.
DEPLOYKIT_HOST_DEVICE Layout packed_layout(
    int32_t num_classes, int32_t num_keypoints, int32_t kpt_dims, bool has_obj, bool cls_counts) {
  const int32_t cls = has_obj ? 5 : 4;
  const bool multiplies = has_obj && cls_counts;
  Layout layout{};
  layout.box = 0;
  layout.obj = multiplies ? 4 : -1;
  layout.cls = multiplies ? 5 : 4;
  layout.num_classes = num_classes;
  layout.keypoints = num_keypoints > 0 ? cls + num_classes : -1;
  layout.num_keypoints = num_keypoints;
  layout.kpt_dims = kpt_dims;
  layout.columns = cls + num_classes + num_keypoints * kpt_dims;
  return layout;
}

// Not fmin and fmax: these compile to one instruction each. Of a NaN nothing follows here: a row that holds one is no
// candidate, and of infinite corners, whose difference is one, neither suppresses.
DEPLOYKIT_HOST_DEVICE float lesser(float a, float b) { return a < b ? a : b; }
DEPLOYKIT_HOST_DEVICE float greater(float a, float b) { return a > b ? a : b; }

// The product of one class of a row.
template <typename T>
DEPLOYKIT_HOST_DEVICE float product_of_class(const T* row, const Layout& layout, int32_t index) {
  const float cls = to_float(row[layout.cls + index]);
  return layout.obj < 0 ? cls : to_float(row[layout.obj]) * cls;
}

// The best class of a row, the lowest at a tie, and its product.
template <typename T>
DEPLOYKIT_HOST_DEVICE float best_class(const T* row, const Layout& layout, int32_t* label) {
  float best = product_of_class(row, layout, 0);
  *label = 0;
  for (int32_t c = 1; c < layout.num_classes; ++c) {
    const float score = product_of_class(row, layout, c);
    if (score > best) {
      best = score;
      *label = c;
    }
  }
  return best;
}

// Candidates as one number each, so that the higher one goes first: by score, then the lower row. Scores are over a
// threshold of at least 0, and positive floats are ordered as their bits are.
DEPLOYKIT_HOST_DEVICE uint64_t key_of(float score, uint32_t row) {
  return static_cast<uint64_t>(bits_of_float(score)) << 32 | (0xffffffffu - row);
}

DEPLOYKIT_HOST_DEVICE float score_of_key(uint64_t key) { return float_of_bits(static_cast<uint32_t>(key >> 32)); }

DEPLOYKIT_HOST_DEVICE uint32_t row_of_key(uint64_t key) { return 0xffffffffu - static_cast<uint32_t>(key); }

template <typename T>
DEPLOYKIT_HOST_DEVICE Box corners(const T* row, const Layout& layout) {
  const float cx = to_float(row[layout.box]);
  const float cy = to_float(row[layout.box + 1]);
  const float half_w = to_float(row[layout.box + 2]) / 2.0f;
  const float half_h = to_float(row[layout.box + 3]) / 2.0f;
  Box box{cx - half_w, cy - half_h, cx + half_w, cy + half_h, 0.0f};
  box.area = (box.x2 - box.x1) * (box.y2 - box.y1);
  return box;
}

DEPLOYKIT_HOST_DEVICE float intersection(const Box& a, const Box& b) {
  const float width = greater(lesser(a.x2, b.x2) - greater(a.x1, b.x1), 0.0f);
  const float height = greater(lesser(a.y2, b.y2) - greater(a.y1, b.y1), 0.0f);
  return width * height;
}

DEPLOYKIT_HOST_DEVICE bool overlaps(const Box& a, const Box& b, float iou) {
  const float inter = intersection(a, b);
  const float both = a.area + b.area;
  return inter / (both - inter) > iou;
}

// Value `index` of 3 * K of a row's keypoints; a network that does not tell visibility says 1.
template <typename T>
DEPLOYKIT_HOST_DEVICE float keypoint_value(const T* row, const Layout& layout, int32_t index) {
  const int32_t dim = index % 3;
  return dim < layout.kpt_dims ? to_float(row[layout.keypoints + index / 3 * layout.kpt_dims + dim]) : 1.0f;
}

// The outputs of one image of a batch.
DEPLOYKIT_HOST_DEVICE Outputs outputs_of_image(
    const Outputs& all, size_t image, const Layout& layout, const Limits& limits) {
  const size_t first = image * limits.max_det;
  Outputs one = all;
  one.num_dets += image;
  one.boxes += 4 * first;
  one.scores += first;
  one.labels += first;
  if (one.keypoints) one.keypoints += 3 * layout.num_keypoints * first;
  one.num_candidates += image;
  return one;
}

}  // namespace nms
}  // namespace deploykit
