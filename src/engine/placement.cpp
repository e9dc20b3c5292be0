#include "engine/placement.h"

#include <algorithm>
#include <functional>
#include <set>
#include <vector>

#include "core/error.h"

namespace fathom {
namespace {

constexpr size_t kAlign = 256;  // any vector load of a kernel, and the unit device allocators use themselves
constexpr size_t kPiece = size_t{64} << 20;  // between two calls of progress

/// Host bytes that weights view, and where they go.
struct Piece {
  const std::byte* begin;
  size_t size_bytes;
  bool is_used = false;
  bool is_matrix = false;  ///< of n_rows rows of one type
  DType dtype = DType::kF32;
  int64_t n_rows = 0, n_columns = 0;
  size_t row_bytes = 0, device_row_bytes = 0;  ///< of a matrix
  size_t offset = 0;

  bool holds(const std::byte* p) const { return std::less_equal<>()(begin, p) && std::less<>()(p, begin + size_bytes); }
  size_t device_bytes() const { return is_matrix ? static_cast<size_t>(n_rows) * device_row_bytes : size_bytes; }
};

/// Addresses of the weights that nodes multiply with or look rows up in.
std::set<const std::byte*> matrices_of(std::span<const Node> nodes) {
  std::set<const std::byte*> found;
  auto add = [&](const Tensor& t) {
    if (t) found.insert(t.data);
  };
  for (const Node& node : nodes) {
    if (const auto* a = std::get_if<EmbedRowsArgs>(&node.args)) add(a->table);
    if (const auto* a = std::get_if<LinearArgs>(&node.args)) add(a->weight);
    if (const auto* a = std::get_if<GroupedLinearArgs>(&node.args)) add(a->weight);
    if (const auto* a = std::get_if<GatedFfnArgs>(&node.args))
      add(a->weights.gate), add(a->weights.up), add(a->weights.down);
    if (const auto* a = std::get_if<MoeFfnArgs>(&node.args)) {
      for (const GatedFfnWeights* w : {&a->experts, &a->shared}) add(w->gate), add(w->up), add(w->down);
    }
  }
  return found;
}

}  // namespace

std::shared_ptr<Buffer> place_weights(deepseek::Weights& weights, const std::map<std::string, Tensor>& file,
                                      std::span<const Node> nodes, const std::set<const std::byte*>& stay,
                                      Backend& backend, const std::function<void(uint64_t, uint64_t)>& progress) {
  std::vector<Piece> pieces;
  for (const auto& [name, t] : file) {
    Piece piece{t.data, t.size_bytes()};
    piece.dtype = t.dtype, piece.n_rows = t.n_rows(), piece.n_columns = t.shape.rank == 0 ? 0 : t.shape.last();
    pieces.push_back(piece);
  }
  for (const std::shared_ptr<Buffer>& buffer : weights.owned) pieces.push_back({buffer->data(), buffer->size_bytes()});
  std::sort(pieces.begin(), pieces.end(),
            [](const Piece& a, const Piece& b) { return std::less<>()(a.begin, b.begin); });
  auto piece_of = [&](const Tensor& t) -> Piece& {
    const auto after =
        std::upper_bound(pieces.begin(), pieces.end(), t.data,
                         [](const std::byte* p, const Piece& piece) { return std::less<>()(p, piece.begin); });
    FATHOM_CHECK(after != pieces.begin() && std::prev(after)->holds(t.data), "a weight outside the model's tensors");
    return *std::prev(after);
  };
  const std::set<const std::byte*> matrices = matrices_of(nodes);
  weights.each([&](const Tensor& t) {
    if (stay.contains(t.data)) return;
    Piece& piece = piece_of(t);
    piece.is_used = true;
    if (!matrices.contains(t.data)) return;
    piece.is_matrix = true;
    piece.row_bytes = row_bytes(piece.dtype, piece.n_columns);
    piece.device_row_bytes = backend.weight_row_bytes(piece.dtype, piece.n_columns);
  });
  size_t total = 0;
  uint64_t total_file = 0, done = 0;
  for (Piece& piece : pieces) {
    if (!piece.is_used) continue;
    piece.offset = total;
    total += (piece.device_bytes() + kAlign - 1) / kAlign * kAlign;
    total_file += piece.size_bytes;
  }

  const std::shared_ptr<Buffer> buffer = backend.allocate(total, "the model's weights");
  for (const Piece& piece : pieces) {
    if (!piece.is_used) continue;
    std::byte* to = buffer->data() + piece.offset;
    if (piece.is_matrix) {
      const auto rows_each = static_cast<int64_t>(std::max<size_t>(1, kPiece / piece.row_bytes));
      for (int64_t row = 0; row < piece.n_rows; row += rows_each) {
        const int64_t n = std::min(rows_each, piece.n_rows - row);
        if (progress) progress(done, total_file);
        backend.upload_weights(to + static_cast<size_t>(row) * piece.device_row_bytes,
                               piece.begin + static_cast<size_t>(row) * piece.row_bytes, piece.dtype, n,
                               piece.n_columns);
        done += static_cast<uint64_t>(n) * piece.row_bytes;
      }
    } else {
      backend.upload(to, piece.begin, piece.size_bytes);
      done += piece.size_bytes;
    }
  }
  if (progress) progress(total_file, total_file);

  weights.each([&](Tensor& t) {
    if (stay.contains(t.data)) return;
    const Piece& piece = piece_of(t);
    const auto from_begin = static_cast<size_t>(t.data - piece.begin);
    std::byte* to = buffer->data() + piece.offset;
    if (!piece.is_matrix) {
      t.data = to + from_begin;
      return;
    }
    // A view of a matrix is whole rows (gate and up may be halves of one tensor).
    t.data = to + from_begin / piece.row_bytes * piece.device_row_bytes;
    for (int i = 0; i + 1 < t.shape.rank; ++i) {
      int64_t& stride = t.strides_bytes[static_cast<size_t>(i)];
      stride = stride / static_cast<int64_t>(piece.row_bytes) * static_cast<int64_t>(piece.device_row_bytes);
    }
  });
  return buffer;
}

}  // namespace fathom
