// How the cached rows that a token sees are divided into pieces. Plain arithmetic, the same on host and device.
//
// The division depends on the token's position and the model alone, and pieces are merged one after the other, so that
// a token's bits depend neither on the step's other tokens nor on whether one block takes all pieces or a block each.
#pragma once

#include <cstdint>

namespace fathom::cuda {

/// Rows a piece has at least: below, merging costs more than it saves.
constexpr int kLeastPieceRows = 64;
/// Steps of so many tokens give every piece a block of its own; larger ones have blocks enough and fold pieces as they
/// go.
constexpr int64_t kSplitTokens = 16;

/// Pieces at most, for heads in n_groups groups that each read the rows: a block for every multiprocessor of the
/// largest devices and one token. More would cost steps of many tokens what merging reads.
constexpr int most_pieces(int n_groups) {
  const int n = 128 / n_groups;
  return n < 32 ? 32 : n;
}

/// Rows of every piece but the last: whole tiles.
constexpr int rows_each(int n_visible, int most, int tile_rows) {
  const int rows = (n_visible + most - 1) / most, whole = (rows + tile_rows - 1) / tile_rows * tile_rows;
  return whole < kLeastPieceRows ? kLeastPieceRows : whole;
}

constexpr int pieces_used(int n_visible, int each) { return (n_visible + each - 1) / each; }

/// No n_visible up to most_rows has more pieces than this.
constexpr int pieces_reserved(int64_t most_rows, int most) {
  const int64_t n = (most_rows + kLeastPieceRows - 1) / kLeastPieceRows;
  return static_cast<int>(n < most ? (n < 1 ? 1 : n) : most);
}

}  // namespace fathom::cuda
