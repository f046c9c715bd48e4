// Steps 1 to 3 of the definition on a CPU: which rows, or pairs of a row and a class, are candidates, and the keys of
// the best of them. Rows may lie one after the other, or column by column.
#pragma once

#include <algorithm>
#include <functional>

#include "kernel.cuh"

namespace deploykit {
namespace nms {

// What is chosen among. `wanted`: of each class 1 or 0; null: all are. `multi_label`: candidates are pairs of a row and
// a class. `agnostic`: objects of different labels suppress each other.
struct Choice {
  const uint8_t* wanted;
  int32_t multi_label;
  int32_t agnostic;
};

static_assert(is_plain<Choice> && sizeof(Choice) == sizeof(void*) + 2 * sizeof(int32_t),
    "runtime/native/library.py has the same struct");

// The rows of one image. One of the strides is 1: values lie side by side in a row, or in a column.
template <typename T>
struct Rows {
  const T* values;
  int64_t count;
  int64_t row_stride;
  int64_t column_stride;

  bool by_columns() const { return column_stride != 1; }
  const T* column(int64_t index) const { return values + index * column_stride; }

  // The values of one row side by side; of rows by columns they are copied, to where there is room for them.
  const T* row(int64_t index, const Layout& layout, T* copy) const {
    const T* first = values + index * row_stride;
    if (!by_columns()) return first;
    for (int32_t c = 0; c < layout.columns; ++c) copy[c] = first[c * column_stride];
    return copy;
  }
};

// Keys of candidates, of which only the best `topk` matter: where the room ends, the others go. A key's number is the
// row's, or with several labels that of the pair, which has the order of rows and then of classes.
struct Keys {
  static constexpr int64_t slack = 64;  // how many may be pushed after one `reserve`

  uint64_t* values;
  int64_t room;
  int64_t topk;
  int64_t size = 0;        // kept keys
  int64_t candidates = 0;  // all that there were
  uint64_t least = 0;      // no key up to this one is among the best

  static int64_t room_for(int64_t numbers, const Limits& limits) {
    return std::min(numbers, 2 * static_cast<int64_t>(limits.topk)) + slack;
  }

  void reserve() {
    if (size + slack <= room) return;
    std::nth_element(values, values + topk - 1, values + size, std::greater<uint64_t>());
    least = values[topk - 1];
    size = topk;
  }

  // Lower scores are not among the best.
  float least_score() const { return score_of_key(least); }

  // Nobody can guess which ones count: there is no branch.
  void push(uint64_t key, bool counts) {
    values[size] = key;
    size += counts & (key > least);
  }
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

// Without a way out in the middle, so that a compiler can use vectors.
template <typename T>
inline bool all_finite(const T* row, int32_t columns) {
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

// The score of a class value, given the row's objectness if there is one. Rounding keeps the order of products with one
// positive factor, so the score of a row is that of its highest class.
inline float score_of(float cls, float obj, bool has_obj) { return has_obj ? lesser(obj * cls, obj) : cls; }

// The candidates that one row, whose best score is over the threshold, gives.
template <typename T>
inline void push_row(
    Keys& keys, const T* row, int64_t number, float score, const Layout& layout, float conf, const Choice& choice) {
  keys.reserve();
  if (!choice.multi_label) {
    int32_t label = 0;
    if (choice.wanted) best_class(row, layout, &label);
    const bool counts = !choice.wanted || choice.wanted[label];
    keys.push(key_of(score, static_cast<uint32_t>(number)), counts);
    keys.candidates += counts;
    return;
  }
  constexpr int32_t width = 16;  // classes at once: most score too little to be looked at one by one
  const bool has_obj = layout.obj >= 0;
  const float obj = has_obj ? to_float(row[layout.obj]) : 1.0f;
  const uint32_t first = static_cast<uint32_t>(number) * static_cast<uint32_t>(layout.num_classes);
  for (int32_t start = 0; start < layout.num_classes; start += width) {
    const T* cls = row + layout.cls + start;
    const int32_t used = std::min(width, layout.num_classes - start);
    float scores[width] = {};  // 0 is over no threshold
    if (used == width) {
      for (int32_t k = 0; k < width; ++k) scores[k] = score_of(to_float(cls[k]), obj, has_obj);
    } else {
      for (int32_t k = 0; k < used; ++k) scores[k] = score_of(to_float(cls[k]), obj, has_obj);
    }
    for (int32_t k = 0; choice.wanted && k < used; ++k) {
      if (!choice.wanted[start + k]) scores[k] = 0.0f;
    }
    const float least = keys.least_score();
    int32_t candidates = 0, hits = 0;
    for (int32_t k = 0; k < width; ++k) {
      candidates += scores[k] > conf;
      hits |= (scores[k] > conf) & (scores[k] >= least);
    }
    keys.candidates += candidates;
    if (!hits) continue;
    keys.reserve();
    for (int32_t k = 0; k < width; ++k) {
      keys.push(key_of(scores[k], first + static_cast<uint32_t>(start + k)), scores[k] > conf);
    }
  }
}

// Numbers of rows that may be candidates: those of one block after the other until `most` are there or all were seen.
// With an objectness only those where it is over the threshold: no score is over its objectness.
template <typename T>
inline int64_t select_by_objectness(
    const Rows<T>& rows, const Layout& layout, float conf, int64_t* next, int32_t* numbers, int64_t most) {
  constexpr int64_t block = 16;  // rows: most blocks hold none
  int64_t selected = 0;
  while (*next < rows.count && selected + block <= most) {
    const int64_t first = *next;
    const int64_t last = *next = std::min(first + block, rows.count);
    if (layout.obj < 0) {
      for (int64_t i = first; i < last; ++i) numbers[selected++] = static_cast<int32_t>(i);
      continue;
    }
    const T* value = rows.values + first * rows.row_stride + layout.obj;
    int32_t hits = 0;
    if (last - first == block) {
      for (int64_t k = 0; k < block; ++k) hits |= to_float(value[k * rows.row_stride]) > conf;
      if (!hits) continue;
    }
    for (int64_t i = first; i < last; ++i) {
      numbers[selected] = static_cast<int32_t>(i);
      selected += to_float(value[(i - first) * rows.row_stride]) > conf;  // nobody can guess it: no branch
    }
  }
  return selected;
}

template <typename T>
inline void candidates_by_rows(
    Keys& keys, const Rows<T>& rows, const Layout& layout, float conf, const Choice& choice) {
  constexpr int64_t most = 512, ahead = 8;
  int32_t numbers[most];
  const bool has_obj = layout.obj >= 0;
  for (int64_t next = 0; next < rows.count;) {
    const int64_t selected = select_by_objectness(rows, layout, conf, &next, numbers, most);
    for (int64_t i = 0; i < selected; ++i) {
      if (i + ahead < selected) prefetch(rows.values + numbers[i + ahead] * rows.row_stride, layout.columns);
      const T* row = rows.values + numbers[i] * rows.row_stride;
      const float obj = has_obj ? to_float(row[layout.obj]) : 1.0f;
      const float score = score_of(highest_class(row + layout.cls, layout.num_classes), obj, has_obj);
      if (score > conf && all_finite(row, layout.columns)) {
        push_row(keys, row, numbers[i], score, layout, conf, choice);
      }
    }
  }
}

// Columns are read in blocks of rows, long enough that what lies side by side is worth the step to the next column.
// Those that decide nothing are read in short parts of a block, and only where a row of the part scores.
template <typename T>
inline void candidates_by_columns(
    Keys& keys, const Rows<T>& rows, const Layout& layout, float conf, const Choice& choice, T* copy) {
  constexpr int64_t block = 512, part = 64;
  const bool has_obj = layout.obj >= 0;
  float best[block];
  for (int64_t first = 0; first < rows.count; first += block) {
    const int64_t size = std::min(block, rows.count - first);
    const T* obj = has_obj ? rows.column(layout.obj) + first : nullptr;
    int32_t hits = !has_obj;
    for (int64_t k = 0; has_obj && k < size; ++k) hits |= to_float(obj[k]) > conf;
    if (!hits) continue;
    for (int64_t k = 0; k < size; ++k) best[k] = to_float(rows.column(layout.cls)[first + k]);
    for (int32_t c = 1; c < layout.num_classes; ++c) {
      const T* values = rows.column(layout.cls + c) + first;
      for (int64_t k = 0; k < size; ++k) best[k] = greater(to_float(values[k]), best[k]);
    }
    for (int64_t k = 0; has_obj && k < size; ++k) best[k] = score_of(best[k], to_float(obj[k]), true);
    for (int64_t start = 0; start < size; start += part) {
      const int64_t used = std::min(part, size - start);
      hits = 0;
      for (int64_t k = 0; k < used; ++k) hits |= best[start + k] > conf;
      if (!hits) continue;
      int32_t broken[part] = {};
      for (int32_t c = 0; c < layout.columns; ++c) {
        const T* values = rows.column(c) + first + start;
        for (int64_t k = 0; k < used; ++k) broken[k] |= !is_finite(values[k]);
      }
      for (int64_t k = 0; k < used; ++k) {
        const float score = best[start + k];
        if (!(score > conf) || broken[k]) continue;
        const int64_t number = first + start + k;
        const bool whole = choice.multi_label || choice.wanted;  // else the number and the score are all that is asked
        push_row(keys, whole ? rows.row(number, layout, copy) : nullptr, number, score, layout, conf, choice);
      }
    }
  }
}

}  // namespace nms
}  // namespace deploykit
