// NMS by teams of lanes: a thread block on a GPU, threads on a CPU. Here is what both routes share, and the one in
// which a team finishes an image; spread.cuh has the other.
//
// A Team has lane() and lanes(); sync(): all lanes meet, and see what the others wrote; and, atomic and in any order,
// next(counter): one more, and the count before; tally(histogram, digit): one more there; merge(word, bits): sets them.
// It is cut into warps: warps() of them, of which warp() is the lane's own.
//
// A Warp has index(), lane(), width(), which is 32 at most, and what all its lanes call together: ballot(is), a bit for
// each lane; greatest(value), lowest(value) and sum(value) of the lanes; reserve(counter, n): n more, and the count
// before.
#pragma once

#include "kernel.cuh"

namespace deploykit {
namespace nms {

constexpr int32_t most_sorted = 4096;  // the power of two above most_topk
constexpr uint32_t tile = 64;          // rows whose overlaps with one row are the bits of one word
constexpr uint32_t most_tiles = most_topk / tile;
constexpr uint32_t no_label = 0xffffffffu;

DEPLOYKIT_HOST_DEVICE uint32_t tiles_of(uint32_t rows) { return (rows + tile - 1) / tile; }

// Words of the matrix of overlaps of one image: for each tile of columns one of every row.
DEPLOYKIT_HOST_DEVICE uint64_t words_of(uint32_t rows) {
  return static_cast<uint64_t>(tiles_of(rows)) * tiles_of(rows) * tile;
}

// A batch on its way: rows and outputs of all images, and the workspace.
template <typename T>
struct Batch {
  const T* rows;
  uint32_t count;
  Layout layout;
  Limits limits;
  Outputs out;
  uint32_t* found;     // an image: candidates
  uint64_t* keys;      // an image: `count`, of the candidates, in any order
  uint64_t* best;      // an image: topk, of the best where there are more, in any order
  uint64_t* sorted;    // an image: topk, the highest first
  Chosen* chosen;      // an image: topk, in that order
  uint64_t* overlaps;  // an image: words_of(topk)

  DEPLOYKIT_HOST_DEVICE const T* rows_of(size_t image) const { return rows + image * count * layout.columns; }
  DEPLOYKIT_HOST_DEVICE const T* row_of(size_t image, uint64_t key) const {
    return rows_of(image) + static_cast<size_t>(row_of_key(key)) * layout.columns;
  }
  DEPLOYKIT_HOST_DEVICE uint64_t* keys_of(size_t image) const { return keys + image * count; }
  DEPLOYKIT_HOST_DEVICE Chosen* chosen_of(size_t image) const { return chosen + image * limits.topk; }
  DEPLOYKIT_HOST_DEVICE uint32_t topk() const { return static_cast<uint32_t>(limits.topk); }
};

// Who stays, and what that follows from: a team's shared memory.
struct Suppression {
  uint64_t removed[most_tiles];
  uint64_t diagonal[tile];  // of each row of a tile, which later ones of the same tile it overlaps
  uint16_t kept[most_topk];
};

struct Selection {
  uint32_t histogram[256];
  uint32_t count;
};

// What a team shares while it finishes an image: under 48 KiB.
struct Scratch {
  uint64_t sorted[most_sorted];
  Suppression suppression;
  Selection selection;
};

static_assert(sizeof(Scratch) <= 48 * 1024, "a thread block has so much without asking");

DEPLOYKIT_HOST_DEVICE uint32_t lowest_bit(uint64_t word) {
#if defined(__CUDA_ARCH__)
  return static_cast<uint32_t>(__ffsll(static_cast<long long>(word)) - 1);
#else
  uint32_t bit = 0;
  while (!(word >> bit & 1u)) ++bit;
  return bit;
#endif
}

DEPLOYKIT_HOST_DEVICE uint32_t bits_set(uint32_t word) {
#if defined(__CUDA_ARCH__)
  return static_cast<uint32_t>(__popc(word));
#else
  uint32_t count = 0;
  for (; word; word &= word - 1) ++count;
  return count;
#endif
}

// ---- Scores ---------------------------------------------------------------------------------------------------------

// A column that must be over the threshold, so that most rows end there; -1: there is none.
DEPLOYKIT_HOST_DEVICE int32_t gate_of(const Layout& layout) {
  if (layout.obj >= 0) return layout.obj;
  return layout.num_classes == 1 ? layout.cls : -1;
}

// Rows that a warp scores: one a lane looks at the gate. Without a gate each is read by all lanes, so fewer are enough.
DEPLOYKIT_HOST_DEVICE uint32_t rows_of_warp(const Layout& layout, uint32_t width) {
  return gate_of(layout) < 0 && width > 8 ? 8 : width;
}

// The score of a row that is read once, by all lanes side by side; below every threshold where a value is not finite.
// Rounding keeps the order of products with one positive factor, so the highest class gives the highest product.
template <typename T, typename Warp>
DEPLOYKIT_HOST_DEVICE float score_of_row(Warp& warp, const T* row, const Layout& layout) {
  float best = float_of_bits(0xff800000u);  // minus infinity
  bool is_broken = false;
  for (int32_t c = static_cast<int32_t>(warp.lane()); c < layout.columns; c += static_cast<int32_t>(warp.width())) {
    const T value = row[c];
    is_broken |= !is_finite(value);
    if (c >= layout.cls && c < layout.cls + layout.num_classes) best = greater(to_float(value), best);
  }
  if (warp.ballot(is_broken)) return -1.0f;
  best = warp.greatest(best);
  if (layout.obj < 0) return best;
  const float obj = to_float(row[layout.obj]);
  return lesser(obj * best, obj);
}

// Appends the candidates among the rows of one warp of block `block` to those of an image. One atomic is for all of
// them; the order between warps is any, which unique keys make good.
template <typename T, typename Team>
DEPLOYKIT_HOST_DEVICE void score_rows(Team& team, const Batch<T>& batch, uint32_t block, size_t image) {
  auto warp = team.warp();
  const Layout& layout = batch.layout;
  const float conf = batch.limits.conf;
  const T* rows = batch.rows_of(image);
  const uint32_t share = rows_of_warp(layout, warp.width());
  const uint32_t first = (block * team.warps() + warp.index()) * share;
  const uint32_t number = first + warp.lane();
  const int32_t gate = gate_of(layout);
  const bool is_row = warp.lane() < share && number < batch.count;
  const bool is_open =
      is_row && (gate < 0 || to_float(rows[static_cast<size_t>(number) * layout.columns + gate]) > conf);
  uint64_t key = 0;  // no candidate has it, because scores are positive
  for (uint32_t open = warp.ballot(is_open); open; open &= open - 1) {
    const uint32_t lane = lowest_bit(open);
    const float score = score_of_row(warp, rows + static_cast<size_t>(first + lane) * layout.columns, layout);
    if (lane == warp.lane() && score > conf) key = key_of(score, number);
  }
  const uint32_t hits = warp.ballot(key != 0);
  if (!hits) return;
  const uint32_t slot = warp.reserve(&batch.found[image], bits_set(hits));
  if (key) batch.keys_of(image)[slot + bits_set(hits & ((1u << warp.lane()) - 1))] = key;
}

// The box and the best class of a candidate: the lowest of those whose product is the highest.
template <typename T, typename Warp>
DEPLOYKIT_HOST_DEVICE Chosen chosen_row(Warp& warp, const T* row, const Layout& layout) {
  Chosen one{corners(row, layout), 0};
  if (layout.num_classes == 1) return one;
  float best = float_of_bits(0xff800000u);
  uint32_t label = no_label;
  for (uint32_t c = warp.lane(); c < static_cast<uint32_t>(layout.num_classes); c += warp.width()) {
    const float score = product_of_class(row, layout, static_cast<int32_t>(c));
    if (score > best) {
      best = score;
      label = c;
    }
  }
  const float highest = warp.greatest(best);
  one.label = static_cast<int32_t>(warp.lowest(best == highest ? label : no_label));
  return one;
}

// ---- The best, in order ---------------------------------------------------------------------------------------------

// A number that just the k highest of n different keys (k <= n) reach, found a byte at a time from the top. Scores that
// differ tell it after a few bytes.
template <typename Team>
DEPLOYKIT_HOST_DEVICE uint64_t bound_of_highest(
    Team& team, const uint64_t* keys, uint32_t n, uint32_t k, uint32_t* histogram) {
  uint64_t prefix = 0;
  uint64_t mask = 0;
  for (int shift = 56; shift >= 0; shift -= 8) {
    for (uint32_t i = team.lane(); i < 256; i += team.lanes()) histogram[i] = 0;
    team.sync();
    for (uint32_t i = team.lane(); i < n; i += team.lanes()) {
      if ((keys[i] & mask) == prefix) team.tally(histogram, static_cast<uint32_t>(keys[i] >> shift) & 255u);
    }
    team.sync();
    uint32_t digit = 255;  // every lane walks down the same counts, so that all agree
    while (histogram[digit] < k) k -= histogram[digit--];
    const bool is_told = histogram[digit] == k;  // all keys of this digit belong to the highest
    prefix |= static_cast<uint64_t>(digit) << shift;
    mask |= static_cast<uint64_t>(255u) << shift;
    team.sync();
    if (is_told) return prefix;
  }
  return prefix;
}

// The best `topk` of n keys, or all of them, in any order; returns how many they are.
template <typename Team>
DEPLOYKIT_HOST_DEVICE uint32_t keep_best(
    Team& team, const uint64_t* keys, uint32_t n, uint32_t topk, uint64_t* best, Selection& scratch) {
  const uint64_t least = n > topk ? bound_of_highest(team, keys, n, topk, scratch.histogram) : 0;
  if (team.lane() == 0) scratch.count = 0;
  team.sync();
  for (uint32_t i = team.lane(); i < n; i += team.lanes()) {
    if (keys[i] >= least) best[team.next(&scratch.count)] = keys[i];
  }
  return n < topk ? n : topk;
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

// ---- Suppression ----------------------------------------------------------------------------------------------------

DEPLOYKIT_HOST_DEVICE bool suppresses(const Chosen& one, const Chosen& later, float iou) {
  return one.label == later.label && overlaps(one.box, later.box, iou);
}

// Overlaps that are computed when they are asked for.
struct ComputedOverlaps {
  const Chosen* chosen;
  uint32_t count;
  float iou;

  template <typename Team>
  DEPLOYKIT_HOST_DEVICE void diagonal(Team& team, uint32_t number, uint64_t* words) const {
    constexpr uint32_t width = 4;  // columns of a lane: 1024 lanes do it at once
    for (uint32_t i = team.lane(); i < tile; i += team.lanes()) words[i] = 0;
    team.sync();
    const uint32_t first = number * tile;
    const uint32_t rows = count - first < tile ? count - first : tile;
    for (uint32_t i = team.lane(); i < tile * tile / width; i += team.lanes()) {
      const uint32_t row = i % tile, column = i / tile * width;
      uint64_t word = 0;
      for (uint32_t c = column; c < column + width; ++c) {
        const bool is_pair = row < c && c < rows;
        if (is_pair && suppresses(chosen[first + row], chosen[first + c], iou)) word |= uint64_t{1} << c;
      }
      if (word) team.merge(&words[row], word);
    }
  }

  // Marks what the rows that stay of a tile suppress behind it.
  template <typename Team>
  DEPLOYKIT_HOST_DEVICE void remove(Team& team, uint32_t number, uint64_t stays, uint64_t* removed) const {
    for (uint32_t i = (number + 1) * tile + team.lane(); i < count; i += team.lanes()) {
      const Chosen later = chosen[i];
      for (uint64_t rest = stays; rest; rest &= rest - 1) {
        if (!suppresses(chosen[number * tile + lowest_bit(rest)], later, iou)) continue;
        team.merge(&removed[i / tile], uint64_t{1} << i % tile);
        break;
      }
    }
  }
};

// Goes through the `count` chosen rows in their order, a tile at a time: which stay, at most `max_det`, lies in
// scratch.kept; returns how many.
template <typename Team, typename Overlaps>
DEPLOYKIT_HOST_DEVICE uint32_t suppress(
    Team& team, uint32_t count, uint32_t max_det, const Overlaps& overlaps, Suppression& scratch) {
  const uint32_t tiles = tiles_of(count);
  for (uint32_t i = team.lane(); i < tiles; i += team.lanes()) scratch.removed[i] = 0;
  uint32_t kept = 0;
  for (uint32_t number = 0; number < tiles && kept < max_det; ++number) {
    team.sync();
    overlaps.diagonal(team, number, scratch.diagonal);
    team.sync();
    const uint32_t rows = count - number * tile < tile ? count - number * tile : tile;
    uint64_t open = ~scratch.removed[number] & ~uint64_t{0} >> (tile - rows);
    uint64_t stays = 0;
    while (open && kept < max_det) {  // every lane finds the same
      const uint32_t row = lowest_bit(open);
      stays |= uint64_t{1} << row;
      open &= ~(scratch.diagonal[row] | uint64_t{1} << row);
      if (team.lane() == 0) scratch.kept[kept] = static_cast<uint16_t>(number * tile + row);
      ++kept;
    }
    overlaps.remove(team, number, stays, scratch.removed);
  }
  team.sync();
  return kept;
}

// All slots of an image, a warp each: those of the rows that stay, and zeros behind them. `sorted` are the keys in the
// order of `chosen`.
template <typename T, typename Team>
DEPLOYKIT_HOST_DEVICE void write_slots(
    Team& team, const Batch<T>& batch, size_t image, const uint64_t* sorted, const uint16_t* kept, uint32_t num_kept) {
  auto warp = team.warp();
  const Outputs out = outputs_of_image(batch.out, image, batch.layout, batch.limits);
  const Chosen* chosen = batch.chosen_of(image);
  const uint32_t values = 3 * static_cast<uint32_t>(batch.layout.num_keypoints);
  for (uint32_t slot = warp.index(); slot < static_cast<uint32_t>(batch.limits.max_det); slot += team.warps()) {
    float* points = out.keypoints + static_cast<size_t>(slot) * values;
    if (slot >= num_kept) {
      if (warp.lane() == 0) {
        for (int i = 0; i < 4; ++i) out.boxes[4 * static_cast<size_t>(slot) + i] = 0.0f;
        out.scores[slot] = 0.0f;
        out.labels[slot] = 0;
      }
      for (uint32_t i = warp.lane(); i < values; i += warp.width()) points[i] = 0.0f;
      continue;
    }
    const uint64_t key = sorted[kept[slot]];
    if (warp.lane() == 0) {
      const Chosen one = chosen[kept[slot]];
      float* box = out.boxes + 4 * static_cast<size_t>(slot);
      box[0] = one.box.x1;
      box[1] = one.box.y1;
      box[2] = one.box.x2;
      box[3] = one.box.y2;
      out.scores[slot] = score_of_key(key);
      out.labels[slot] = one.label;
    }
    const T* row = batch.row_of(image, key);
    for (uint32_t i = warp.lane(); i < values; i += warp.width()) {
      points[i] = keypoint_value(row, batch.layout, static_cast<int32_t>(i));
    }
  }
  if (team.lane() == 0) {
    *out.num_dets = static_cast<int32_t>(num_kept);
    *out.num_candidates = static_cast<int32_t>(batch.found[image]);
  }
}

// Everything after the scores, by one team.
template <typename T, typename Team>
DEPLOYKIT_HOST_DEVICE void finish_image(Team& team, const Batch<T>& batch, size_t image, Scratch& scratch) {
  const uint32_t count =
      keep_best(team, batch.keys_of(image), batch.found[image], batch.topk(), scratch.sorted, scratch.selection);
  uint32_t size = 1;
  while (size < count) size *= 2;
  for (uint32_t i = count + team.lane(); i < size; i += team.lanes()) scratch.sorted[i] = 0;
  team.sync();
  sort_down(team, scratch.sorted, size);
  auto warp = team.warp();
  Chosen* chosen = batch.chosen_of(image);
  for (uint32_t i = warp.index(); i < count; i += team.warps()) {
    const Chosen one = chosen_row(warp, batch.row_of(image, scratch.sorted[i]), batch.layout);
    if (warp.lane() == 0) chosen[i] = one;
  }
  const ComputedOverlaps computed{chosen, count, batch.limits.iou};  // suppress() begins with a sync
  const uint32_t kept =
      suppress(team, count, static_cast<uint32_t>(batch.limits.max_det), computed, scratch.suppression);
  write_slots(team, batch, image, scratch.sorted, scratch.suppression.kept, kept);
}

}  // namespace nms
}  // namespace deploykit
