// Keypoint NMS: the definition of runtime/postprocess/nms.py, once, for g++ and nvcc. Knows no TensorRT and no ONNX
// Runtime type.
//
// Arithmetic is float32 in the order written here. The build turns fused multiply-add off (-ffp-contract=off,
// --fmad=false), because one bit of an overlap decides whether a row stays.
//
// The first half is the definition itself, which the CPU library (host.h) and the kernels share. The second half is the
// work of one image as done by a team of lanes: a thread block on a GPU, threads or a single lane on a CPU.
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

template <typename T>
DEPLOYKIT_HOST_DEVICE bool all_finite(const T* row, const Layout& layout) {
  for (int32_t c = 0; c < layout.columns; ++c) {
    if (!is_finite(row[c])) return false;
  }
  return true;
}

// Candidates as one number each, so that the higher one goes first: by score, then the lower row. Scores are over a
// threshold of at least 0, and positive floats are ordered as their bits are.
DEPLOYKIT_HOST_DEVICE uint64_t key_of(float score, uint32_t row) {
  return static_cast<uint64_t>(bits_of_float(score)) << 32 | (0xffffffffu - row);
}

// Whether a row is a candidate, and its key. The objectness is looked at first: most rows end there.
template <typename T>
DEPLOYKIT_HOST_DEVICE bool is_candidate(
    const T* row, const Layout& layout, float conf, uint32_t number, uint64_t* key) {
  int32_t label;
  float score;
  if (layout.obj < 0) {
    score = best_class(row, layout, &label);
  } else {
    const float obj = to_float(row[layout.obj]);
    if (!(obj > conf)) return false;
    score = lesser(best_class(row, layout, &label), obj);
  }
  *key = key_of(score, number);
  return score > conf && all_finite(row, layout);
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

// ---- One image by a team of lanes -----------------------------------------------------------------------------------
//
// A Team has lane() and lanes(), sync() (all lanes meet, and see what the others wrote), add(counter, n) and
// next(counter) (atomic; next returns the count before).

constexpr int32_t most_topk = 3840;    // as TensorRT's TopK allows
constexpr int32_t most_sorted = 4096;  // the power of two above

// What a team shares while it works: a thread block's shared memory, under 48 KiB.
struct Scratch {
  uint64_t sorted[most_sorted];
  uint8_t suppressed[most_sorted];
  uint32_t histogram[256];
  uint32_t count;
};

// The k-th highest of n different keys (k <= n), a byte at a time from the top.
template <typename Team>
DEPLOYKIT_HOST_DEVICE uint64_t kth_highest(
    Team& team, const uint64_t* keys, uint32_t n, uint32_t k, uint32_t* histogram) {
  uint64_t prefix = 0;
  uint64_t mask = 0;
  for (int shift = 56; shift >= 0; shift -= 8) {
    for (uint32_t i = team.lane(); i < 256; i += team.lanes()) histogram[i] = 0;
    team.sync();
    for (uint32_t i = team.lane(); i < n; i += team.lanes()) {
      if ((keys[i] & mask) == prefix) team.add(&histogram[(keys[i] >> shift) & 255u], 1u);
    }
    team.sync();
    uint32_t digit = 255;  // every lane walks down the same counts, so that all agree
    while (histogram[digit] < k) k -= histogram[digit--];
    prefix |= static_cast<uint64_t>(digit) << shift;
    mask |= static_cast<uint64_t>(255u) << shift;
    team.sync();
  }
  return prefix;
}

// Bitonic sort of a power of two of keys, the highest first.
template <typename Team>
DEPLOYKIT_HOST_DEVICE void sort_down(Team& team, uint64_t* keys, uint32_t size) {
  for (uint32_t run = 2; run <= size; run *= 2) {
    for (uint32_t step = run / 2; step > 0; step /= 2) {
      for (uint32_t i = team.lane(); i < size; i += team.lanes()) {
        const uint32_t other = i ^ step;
        if (other > i && (keys[i] < keys[other]) == ((i & run) == 0)) {
          const uint64_t key = keys[i];
          keys[i] = keys[other];
          keys[other] = key;
        }
      }
      team.sync();
    }
  }
}

// The best `topk` of n keys into scratch.sorted, the highest first; returns how many they are.
template <typename Team>
DEPLOYKIT_HOST_DEVICE uint32_t select_best(
    Team& team, const uint64_t* keys, uint32_t n, uint32_t topk, Scratch& scratch) {
  const uint32_t count = n < topk ? n : topk;
  const uint64_t least = n > topk ? kth_highest(team, keys, n, topk, scratch.histogram) : 0;
  uint32_t size = 1;
  while (size < count) size *= 2;
  if (team.lane() == 0) scratch.count = 0;
  team.sync();
  for (uint32_t i = team.lane(); i < n; i += team.lanes()) {
    if (keys[i] >= least) scratch.sorted[team.next(&scratch.count)] = keys[i];
  }
  for (uint32_t i = count + team.lane(); i < size; i += team.lanes()) scratch.sorted[i] = 0;
  team.sync();
  sort_down(team, scratch.sorted, size);
  return count;
}

template <typename T, typename Team>
DEPLOYKIT_HOST_DEVICE void write_slot(
    Team& team, const T* row, const Layout& layout, const Chosen& one, float score, uint32_t slot, const Outputs& out) {
  if (team.lane() == 0) {
    float* box = out.boxes + 4 * slot;
    box[0] = one.box.x1;
    box[1] = one.box.y1;
    box[2] = one.box.x2;
    box[3] = one.box.y2;
    out.scores[slot] = score;
    out.labels[slot] = one.label;
  }
  const uint32_t values = 3 * layout.num_keypoints;
  for (uint32_t i = team.lane(); i < values; i += team.lanes()) {
    out.keypoints[slot * values + i] = keypoint_value(row, layout, i);
  }
}

template <typename Team>
DEPLOYKIT_HOST_DEVICE void clear_slots(
    Team& team, uint32_t first, const Layout& layout, int32_t max_det, const Outputs& out) {
  const uint32_t values = 3 * layout.num_keypoints;
  for (uint32_t slot = first + team.lane(); slot < static_cast<uint32_t>(max_det); slot += team.lanes()) {
    for (int i = 0; i < 4; ++i) out.boxes[4 * slot + i] = 0.0f;
    out.scores[slot] = 0.0f;
    out.labels[slot] = 0;
    for (uint32_t i = 0; i < values; ++i) out.keypoints[slot * values + i] = 0.0f;
  }
}

// Everything after the scores: `keys` are the n candidates in any order, `chosen` is room for topk.
template <typename T, typename Team>
DEPLOYKIT_HOST_DEVICE void finish_image(Team& team, const T* rows, int64_t stride, const Layout& layout,
    const Limits& limits, const uint64_t* keys, uint32_t n, Chosen* chosen, Scratch& scratch, const Outputs& out) {
  const uint32_t count = select_best(team, keys, n, static_cast<uint32_t>(limits.topk), scratch);
  for (uint32_t i = team.lane(); i < count; i += team.lanes()) {
    const T* row = rows + row_of_key(scratch.sorted[i]) * stride;
    chosen[i].box = corners(row, layout);
    best_class(row, layout, &chosen[i].label);
    scratch.suppressed[i] = 0;
  }
  team.sync();
  uint32_t kept = 0;
  for (uint32_t i = 0; i < count && kept < static_cast<uint32_t>(limits.max_det); ++i) {
    // All lanes read the same: whoever is ahead writes behind the next row that stays.
    if (scratch.suppressed[i]) continue;
    const Chosen one = chosen[i];
    const uint64_t key = scratch.sorted[i];
    write_slot(team, rows + row_of_key(key) * stride, layout, one, score_of_key(key), kept, out);
    ++kept;
    for (uint32_t j = i + 1 + team.lane(); j < count; j += team.lanes()) {
      if (!scratch.suppressed[j] && chosen[j].label == one.label && overlaps(one.box, chosen[j].box, limits.iou)) {
        scratch.suppressed[j] = 1;
      }
    }
    team.sync();
  }
  clear_slots(team, kept, layout, limits.max_det, out);
  if (team.lane() == 0) {
    *out.num_dets = static_cast<int32_t>(kept);
    *out.num_candidates = static_cast<int32_t>(n);
  }
}

}  // namespace nms
}  // namespace deploykit
