// The definition of kernel.cuh on a CPU, for one image: what the CPU library and the ONNX Runtime operator run.
//
// Nothing is allocated here: the caller brings the workspace and keeps it from call to call.
#pragma once

#include <algorithm>
#include <functional>

#include "common/arena.h"
#include "kernel.cuh"

namespace deploykit {
namespace nms {

constexpr int32_t lanes = 16;  // kept boxes that are compared with a candidate at once; a compiler's vectors divide it

// Room for one image of `rows` rows, aligned to 8; `bytes` says how much, `Workspace(memory, ...)` lays it out.
struct Workspace {
  uint64_t* keys;
  // The kept boxes by column, padded to whole lanes by boxes that overlap nothing.
  float *x1, *y1, *x2, *y2, *area;
  int32_t* label;
  int32_t* row;
  float* score;

  static int64_t padded(int64_t count) { return (count + lanes - 1) / lanes * lanes; }

  static int64_t kept_room(int64_t rows, const Limits& limits) {
    return padded(std::min<int64_t>(std::min<int64_t>(limits.max_det, limits.topk), rows));
  }

  static int64_t bytes(int64_t rows, const Limits& limits) {
    constexpr int64_t kept = 6 * sizeof(float) + 2 * sizeof(int32_t);
    return static_cast<int64_t>(sizeof(uint64_t)) * rows + kept * kept_room(rows, limits);
  }

  Workspace(void* memory, int64_t rows, const Limits& limits) {
    const int64_t room = kept_room(rows, limits);
    Arena arena(memory);
    keys = arena.take<uint64_t>(rows);
    for (float** column : {&x1, &y1, &x2, &y2, &area, &score}) *column = arena.take<float>(room);
    label = arena.take<int32_t>(room);
    row = arena.take<int32_t>(room);
  }

  Box box(int64_t i) const { return Box{x1[i], y1[i], x2[i], y2[i], area[i]}; }
};

// The highest class value of a row. With several running maxima a compiler can use vectors; NaN may be passed over,
// because a row with NaN is dropped anyway.
template <typename T>
inline float highest_class(const T* cls, int32_t count) {
  constexpr int32_t width = 8;
  float best[width];
  for (int32_t k = 0; k < width; ++k) best[k] = to_float(cls[std::min(k, count - 1)]);
  int32_t c = 0;
  for (; c + width <= count; c += width) {
    for (int32_t k = 0; k < width; ++k) best[k] = greater(to_float(cls[c + k]), best[k]);
  }
  for (; c < count; ++c) best[0] = greater(to_float(cls[c]), best[0]);
  for (int32_t k = 1; k < width; ++k) best[0] = greater(best[k], best[0]);
  return best[0];
}

// As all_finite of kernel.cuh, without a way out in the middle, so that a compiler can use vectors.
template <typename T>
inline bool all_finite_branchless(const T* row, int32_t columns) {
  int32_t broken = 0;
  for (int32_t c = 0; c < columns; ++c) broken |= !is_finite(row[c]);
  return !broken;
}

// Rows are visited in steps that a processor may not foresee, and each lies in cache lines of its own.
template <typename T>
inline void prefetch(const T* values, int32_t count) {
#if defined(__GNUC__)
  constexpr int32_t line = 64 / sizeof(T);
  for (int32_t c = 0; c < count; c += line) __builtin_prefetch(values + c);
#else
  (void)values, (void)count;
#endif
}

// The numbers of the rows whose objectness is over the threshold, in order; without objectness all of them.
template <typename T>
inline int64_t select_by_objectness(
    const T* rows, int64_t count, int64_t stride, const Layout& layout, float conf, uint64_t* numbers) {
  constexpr int64_t block = 16;  // rows: most blocks hold none
  int64_t selected = 0;
  const auto select = [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      numbers[selected] = static_cast<uint64_t>(i);
      selected += layout.obj < 0 || to_float(rows[i * stride + layout.obj]) > conf;  // nobody can guess it: no branch
    }
  };
  const int64_t blocks = layout.obj < 0 ? 0 : count / block * block;
  for (int64_t i = 0; i < blocks; i += block) {
    const T* value = rows + i * stride + layout.obj;
    int32_t hits = 0;
    for (int64_t k = 0; k < block; ++k) hits |= to_float(value[k * stride]) > conf;
    if (hits) select(i, i + block);
  }
  select(blocks, count);
  return selected;
}

// The keys of the candidates of one image, in the order of the rows. A row's number is read before a key can be
// written over it.
template <typename T>
inline int64_t find_candidates(
    const T* rows, int64_t count, int64_t stride, const Layout& layout, float conf, uint64_t* keys) {
  constexpr int64_t ahead = 8;
  const int64_t selected = select_by_objectness(rows, count, stride, layout, conf, keys);
  int64_t candidates = 0;
  for (int64_t i = 0; i < selected; ++i) {
    if (i + ahead < selected) prefetch(rows + keys[i + ahead] * stride, layout.columns);
    const T* row = rows + keys[i] * stride;
    float score = highest_class(row + layout.cls, layout.num_classes);
    if (layout.obj >= 0) {  // rounding keeps the order of products with one positive factor
      const float obj = to_float(row[layout.obj]);
      score = lesser(obj * score, obj);
    }
    const uint32_t number = static_cast<uint32_t>(keys[i]);
    if (score > conf && all_finite_branchless(row, layout.columns)) keys[candidates++] = key_of(score, number);
  }
  return candidates;
}

// Whether a kept box of the same label overlaps `one` too much; `kept` of them are looked at, whole lanes at a time.
inline bool is_suppressed(const Box& one, int32_t label, float iou, const Workspace& work, int64_t kept) {
  for (int64_t start = 0; start < kept; start += lanes) {
    int32_t overlapping = 0;  // most boxes lie apart, and then there is nothing to divide: 0 is over no threshold
    for (int64_t i = start; i < start + lanes; ++i) {
      const int32_t same = work.label[i] == label;
      const int32_t apart = intersection(work.box(i), one) == 0.0f;
      overlapping |= same & !apart;
    }
    if (!overlapping) continue;
    int32_t hits = 0;
    for (int64_t i = start; i < start + lanes; ++i) {
      const int32_t same = work.label[i] == label;
      const int32_t over = overlaps(work.box(i), one, iou);
      hits |= same & over;
    }
    if (hits) return true;
  }
  return false;
}

struct Found {
  int64_t kept;        // rows that stay: their numbers, scores, labels and boxes are in the workspace
  int64_t candidates;  // finite rows over the threshold
};

// NMS of one image: rows of `stride` values each.
template <typename T>
Found run(const T* rows, int64_t count, int64_t stride, const Layout& layout, const Limits& limits, Workspace& work) {
  const int64_t candidates = find_candidates(rows, count, stride, layout, limits.conf, work.keys);
  const int64_t best = std::min<int64_t>(candidates, limits.topk);
  if (best < candidates) {
    std::nth_element(work.keys, work.keys + best, work.keys + candidates, std::greater<uint64_t>());
  }
  std::sort(work.keys, work.keys + best, std::greater<uint64_t>());

  int64_t kept = 0;
  for (int64_t i = 0; i < best && kept < limits.max_det; ++i) {
    const int64_t number = row_of_key(work.keys[i]);
    const T* row = rows + number * stride;
    const Box box = corners(row, layout);
    int32_t label;
    best_class(row, layout, &label);
    if (is_suppressed(box, label, limits.iou, work, kept)) continue;
    if (kept % lanes == 0) {
      std::fill_n(work.label + kept, lanes, -1);
      for (float* column : {work.x1, work.y1, work.x2, work.y2, work.area}) std::fill_n(column + kept, lanes, 0.0f);
    }
    work.x1[kept] = box.x1;
    work.y1[kept] = box.y1;
    work.x2[kept] = box.x2;
    work.y2[kept] = box.y2;
    work.area[kept] = box.area;
    work.label[kept] = label;
    work.score[kept] = score_of_key(work.keys[i]);
    work.row[kept] = static_cast<int32_t>(number);
    ++kept;
  }
  return Found{kept, candidates};
}

}  // namespace nms
}  // namespace deploykit
