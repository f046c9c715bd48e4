// The definition of kernel.cuh on a CPU, for one image: what the CPU library and the ONNX Runtime operator run.
//
// Nothing is allocated here: the caller brings the workspace and keeps it from call to call.
#pragma once

#include <algorithm>
#include <functional>

#include "candidates.h"
#include "common/arena.h"

namespace deploykit {
namespace nms {

constexpr int32_t lanes = 16;  // kept boxes that are compared with a candidate at once; a compiler's vectors divide it

// Kept boxes of one label by column, and the block with the others of it; -1: there are none.
struct Block {
  float x1[lanes], y1[lanes], x2[lanes], y2[lanes], area[lanes];
  int32_t used;
  int32_t next;
};

struct Kept {
  Box box;
  float score;
  int32_t label;
  int32_t row;
};

// Room for one image of `rows` rows, aligned to 8; `bytes` says how much, `Workspace(memory, ...)` lays it out.
struct Workspace {
  uint64_t* keys;
  Kept* kept;
  Block* blocks;
  int32_t* newest;  // of each label that objects may have: its block that is not full
  void* row;        // a copy of one

  static int64_t groups(const Layout& layout, const Choice& choice) { return choice.agnostic ? 1 : layout.num_classes; }

  static int64_t numbers(int64_t rows, const Layout& layout, const Choice& choice) {
    return choice.multi_label ? rows * layout.num_classes : rows;
  }

  static int64_t kept_room(int64_t numbers, const Limits& limits) {
    return std::min<int64_t>(std::min<int64_t>(limits.max_det, limits.topk), numbers);
  }

  // A block is full, or the newest of its label.
  static int64_t block_room(int64_t kept, int64_t groups) { return kept / lanes + std::min(kept, groups); }

  static int64_t bytes(int64_t rows, const Layout& layout, const Limits& limits, const Choice& choice) {
    const int64_t all = numbers(rows, layout, choice), kept = kept_room(all, limits), labels = groups(layout, choice);
    return static_cast<int64_t>(sizeof(uint64_t)) * Keys::room_for(all, limits) +
           static_cast<int64_t>(sizeof(Kept)) * kept + static_cast<int64_t>(sizeof(Block)) * block_room(kept, labels) +
           static_cast<int64_t>(sizeof(int32_t)) * labels + static_cast<int64_t>(sizeof(float)) * layout.columns;
  }

  Workspace(void* memory, int64_t rows, const Layout& layout, const Limits& limits, const Choice& choice) {
    const int64_t all = numbers(rows, layout, choice), room = kept_room(all, limits), labels = groups(layout, choice);
    Arena arena(memory);
    keys = arena.take<uint64_t>(Keys::room_for(all, limits));
    kept = arena.take<Kept>(room);
    blocks = arena.take<Block>(block_room(room, labels));
    newest = arena.take<int32_t>(labels);
    row = arena.take<float>(layout.columns);
  }
};

// Whether a kept box of the same label overlaps `one` too much: `block` is the newest of the label, -1 where there is
// none. Whole lanes are looked at; those that are not used overlap nothing.
inline bool is_suppressed(const Box& one, float iou, const Block* blocks, int32_t block) {
  for (; block >= 0; block = blocks[block].next) {
    const Block& kept = blocks[block];
    const auto box = [&](int32_t i) { return Box{kept.x1[i], kept.y1[i], kept.x2[i], kept.y2[i], kept.area[i]}; };
    int32_t overlapping = 0;  // most boxes lie apart, and then there is nothing to divide: 0 is over no threshold
    for (int32_t i = 0; i < lanes; ++i) overlapping |= !(intersection(box(i), one) == 0.0f);
    if (!overlapping) continue;
    int32_t hits = 0;
    for (int32_t i = 0; i < lanes; ++i) hits |= static_cast<int32_t>(overlaps(box(i), one, iou));
    if (hits) return true;
  }
  return false;
}

// Adds a kept box to those of its label, whose newest block is `newest`; `used` blocks there are.
inline void keep(const Box& box, Block* blocks, int32_t* newest, int32_t* used) {
  if (*newest < 0 || blocks[*newest].used == lanes) {
    Block& fresh = blocks[*used];
    for (float* column : {fresh.x1, fresh.y1, fresh.x2, fresh.y2, fresh.area}) std::fill_n(column, lanes, 0.0f);
    fresh.used = 0;
    fresh.next = *newest;
    *newest = (*used)++;
  }
  Block& block = blocks[*newest];
  const int32_t i = block.used++;
  block.x1[i] = box.x1;
  block.y1[i] = box.y1;
  block.x2[i] = box.x2;
  block.y2[i] = box.y2;
  block.area[i] = box.area;
}

struct Found {
  int64_t kept;        // objects that stay: they are in the workspace
  int64_t candidates;  // finite rows, or pairs, over the threshold
};

// NMS of one image.
template <typename T>
Found run(const Rows<T>& rows, const Layout& layout, const Limits& limits, const Choice& choice, Workspace& work) {
  T* const copy = static_cast<T*>(work.row);
  const int64_t all = Workspace::numbers(rows.count, layout, choice);
  Keys keys{work.keys, Keys::room_for(all, limits), limits.topk};
  if (rows.by_columns()) {
    candidates_by_columns(keys, rows, layout, limits.conf, choice, copy);
  } else {
    candidates_by_rows(keys, rows, layout, limits.conf, choice);
  }
  std::fill_n(work.newest, Workspace::groups(layout, choice), -1);
  const int64_t best = std::min<int64_t>(keys.size, limits.topk);
  int64_t sorted = 0, kept = 0;
  int32_t used = 0;
  for (int64_t i = 0; i < best && kept < limits.max_det; ++i) {
    if (i == sorted) {  // whether an object stays depends on those before it alone: often the first few are enough
      sorted = std::min(best, std::max<int64_t>(4 * sorted, 4 * static_cast<int64_t>(limits.max_det)));
      const auto descending = std::greater<uint64_t>();
      uint64_t* const last = keys.values + keys.size;
      if (sorted < keys.size) std::nth_element(keys.values + i, keys.values + sorted, last, descending);
      std::sort(keys.values + i, keys.values + sorted, descending);
    }
    const int64_t number = row_of_key(keys.values[i]);
    const int64_t index = choice.multi_label ? number / layout.num_classes : number;
    const T* row = rows.row(index, layout, copy);
    const Box box = corners(row, layout);
    int32_t label = static_cast<int32_t>(number % layout.num_classes);
    if (!choice.multi_label) best_class(row, layout, &label);
    int32_t* const newest = work.newest + (choice.agnostic ? 0 : label);
    if (is_suppressed(box, limits.iou, work.blocks, *newest)) continue;
    keep(box, work.blocks, newest, &used);
    work.kept[kept++] = Kept{box, score_of_key(keys.values[i]), label, static_cast<int32_t>(index)};
  }
  return Found{kept, keys.candidates};
}

}  // namespace nms
}  // namespace deploykit
