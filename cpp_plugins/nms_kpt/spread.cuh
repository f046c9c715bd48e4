// NMS that spreads one image over many teams: what finish_image of team.cuh does, in four steps with the GPU's own
// order between them. Each function is the work of one team (a thread block) of its step; the scores are before it.
//
// 1. select_best: only where there are more candidates than topk, these are found as finish_image does.
// 2. place_candidates: a warp for each counts the keys above its own. That is its place, so nothing is sorted.
// 3. mark_overlaps: a team for each pair of tiles of 64 rows; what a row suppresses of a tile is one word of bits.
// 4. scan_image: one team goes through the tiles and only reads bits.
#pragma once

#include "team.cuh"

namespace deploykit {
namespace nms {

constexpr uint32_t tile_lanes = tile;  // lanes of a team of mark_overlaps

// How many candidates of an image are looked at.
template <typename T>
DEPLOYKIT_HOST_DEVICE uint32_t looked_at(const Batch<T>& batch, size_t image) {
  return batch.found[image] < batch.topk() ? batch.found[image] : batch.topk();
}

template <typename T, typename Team>
DEPLOYKIT_HOST_DEVICE void select_best(Team& team, const Batch<T>& batch, size_t image, Selection& scratch) {
  const uint32_t found = batch.found[image];
  if (found <= batch.topk()) return;
  keep_best(team, batch.keys_of(image), found, batch.topk(), batch.best + image * batch.topk(), scratch);
}

template <typename T, typename Team>
DEPLOYKIT_HOST_DEVICE void place_candidates(Team& team, const Batch<T>& batch, uint32_t block, size_t image) {
  auto warp = team.warp();
  const uint32_t count = looked_at(batch, image);
  const uint32_t number = block * team.warps() + warp.index();
  if (number >= count) return;
  const uint64_t* keys = batch.found[image] > batch.topk() ? batch.best + image * batch.topk() : batch.keys_of(image);
  const uint64_t key = keys[number];
  uint32_t above = 0;
  for (uint32_t i = warp.lane(); i < count; i += warp.width()) above += keys[i] > key;
  const uint32_t place = warp.sum(above);
  const Chosen one = chosen_row(warp, batch.row_of(image, key), batch.layout);
  if (warp.lane() > 0) return;
  batch.sorted[image * batch.topk() + place] = key;
  batch.chosen_of(image)[place] = one;
}

// The matrix of overlaps of one image, made of words of 64 columns. Words of one tile of columns lie side by side, so
// that lanes which follow each other read and write neighbours. Words below the diagonal are never written or read.
struct StoredOverlaps {
  uint64_t* words;
  uint32_t rows;  // of the matrix: whole tiles
  uint32_t count;

  template <typename T>
  DEPLOYKIT_HOST_DEVICE StoredOverlaps(const Batch<T>& batch, size_t image)
      : words(batch.overlaps + image * words_of(batch.topk())),
        rows(tiles_of(batch.topk()) * tile),
        count(looked_at(batch, image)) {}

  DEPLOYKIT_HOST_DEVICE uint64_t& word(uint32_t row, uint32_t tile_of_columns) const {
    return words[static_cast<size_t>(tile_of_columns) * rows + row];
  }

  template <typename Team>
  DEPLOYKIT_HOST_DEVICE void diagonal(Team& team, uint32_t number, uint64_t* into) const {
    for (uint32_t i = team.lane(); i < tile; i += team.lanes()) {
      into[i] = number * tile + i < count ? word(number * tile + i, number) : 0;
    }
  }

  template <typename Team>
  DEPLOYKIT_HOST_DEVICE void remove(Team& team, uint32_t number, uint64_t stays, uint64_t* removed) const {
    const uint32_t behind = (tiles_of(count) - number - 1) * tile;
    for (uint32_t i = team.lane(); i < behind; i += team.lanes()) {
      if (!(stays >> i % tile & 1u)) continue;
      const uint32_t other = number + 1 + i / tile;
      if (const uint64_t bits = word(number * tile + i % tile, other)) team.merge(&removed[other], bits);
    }
  }
};

template <typename T, typename Team>
DEPLOYKIT_HOST_DEVICE void mark_overlaps(
    Team& team, const Batch<T>& batch, uint32_t tile_of_columns, uint32_t tile_of_rows, size_t image, Chosen* scratch) {
  const StoredOverlaps stored(batch, image);
  const uint32_t first = tile_of_columns * tile;
  if (tile_of_rows > tile_of_columns || first >= stored.count) return;
  const uint32_t width = stored.count - first < tile ? stored.count - first : tile;
  const Chosen* chosen = batch.chosen_of(image);
  for (uint32_t i = team.lane(); i < width; i += team.lanes()) scratch[i] = chosen[first + i];
  team.sync();
  for (uint32_t i = team.lane(); i < tile; i += team.lanes()) {
    const uint32_t row = tile_of_rows * tile + i;
    if (row >= stored.count) return;
    const Chosen one = chosen[row];
    uint64_t word = 0;
    for (uint32_t c = tile_of_rows == tile_of_columns ? i + 1 : 0; c < width; ++c) {
      if (suppresses(one, scratch[c], batch.limits.iou)) word |= uint64_t{1} << c;
    }
    stored.word(row, tile_of_columns) = word;
  }
}

template <typename T, typename Team>
DEPLOYKIT_HOST_DEVICE void scan_image(Team& team, const Batch<T>& batch, size_t image, Suppression& scratch) {
  const StoredOverlaps stored(batch, image);
  const uint32_t kept = suppress(team, stored.count, static_cast<uint32_t>(batch.limits.max_det), stored, scratch);
  write_slots(team, batch, image, batch.sorted + image * batch.topk(), scratch.kept, kept);
}

}  // namespace nms
}  // namespace deploykit
