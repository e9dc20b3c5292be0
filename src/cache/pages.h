// Who owns which latent page: a pool of pages with reference counts, and sequences that share and copy them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/backend.h"
#include "core/buffer.h"
#include "core/dtype.h"
#include "core/sparse_memory.h"
#include "core/tensor.h"

namespace fathom {

/// Tokens per page. 64 rows of 576 bf16 values are 72 KiB: large enough that a page is one streaming read, small enough
/// that a sequence wastes half a page (32 tokens) on average.
constexpr int kPageTokens = 64;

/// Rows of one element type, one for each token.
struct TokenRows {
  int64_t elements = 0;
  DType dtype = DType::kBF16;
  bool operator==(const TokenRows&) const = default;
};

/// What cached tokens are, layer by layer. MLA keeps [latent C | rotated key R] = kv_lora_rank + qk_rope_head_dim
/// elements (after the norm and after RoPE); plain attention keeps keys and values, 2 * heads * head_dim. A model that
/// keeps further rows (indexer keys) counts them as further layers.
///
/// V4 keeps two kinds of rows: those of layers, which stand for several tokens each and stay, and recent rows, far
/// larger, of which only the last `recent_tokens` tokens' are ever read. A page's recent rows are its recent part.
struct CacheLayout {
  int n_layers = 0;
  std::vector<int64_t> row_elements;  ///< one per layer, positive; q8_0 needs multiples of 32
  DType dtype = DType::kBF16;         ///< f32, f16, bf16, q8_0 or f8_e4m3
  /// One per layer, dividing kPageTokens or divided by it; empty: 1. A row is in the page of its last token.
  std::vector<int64_t> tokens_per_row{};
  std::vector<TokenRows> recent{};  ///< beside the layers
  int64_t recent_tokens = 0;        ///< before a position, that evaluation from there reads; 0 without recent rows

  size_t row_bytes(int layer_idx) const;
  /// Rows of a layer that the first n_tokens of a page complete; of a row longer than a page the page's share is one.
  int64_t n_rows(int layer_idx, int64_t n_tokens) const;
  size_t rows_bytes(int layer_idx, int64_t n_tokens) const {
    return static_cast<size_t>(n_rows(layer_idx, n_tokens)) * row_bytes(layer_idx);
  }
  size_t recent_row_bytes(int recent_idx) const;
  bool has_recent() const { return !recent.empty(); }
  size_t tokens_bytes(int64_t n_tokens) const;                     ///< of a page's first tokens, all layers
  size_t page_bytes() const { return tokens_bytes(kPageTokens); }  ///< all layers
  size_t recent_token_bytes() const;                               ///< all recent rows of a token
  size_t recent_page_bytes() const { return kPageTokens * recent_token_bytes(); }
  /// What one sequence holds of recent parts while it evaluates n_tokens, at most.
  size_t recent_bytes(int64_t n_tokens) const;
  std::string describe() const;  ///< "27 layers x 576 bf16", "61 layers x 576 + 61 x 128 bf16"
  bool operator==(const CacheLayout&) const = default;
};

/// Tokens whose recent parts a sequence keeps beyond those it reads, so that its last ones can be taken back.
constexpr int64_t kRecentSlack = kPageTokens;

/// Throws Error{kUsage} for a dtype the cache cannot hold or rows that do not divide into its blocks, BugError for a
/// layout without rows.
void validate(const CacheLayout& layout);

class Sequence;

/// A fixed number of pages, in the memory of a backend or on the heap. Memory is reserved at once; of the host's a page
/// costs nothing until it is first written. Every holder of a page (a sequence, a prefix tree) counts once; a page
/// without holders is free, its old content still in place. Not thread-safe: one thread (the scheduler) owns the pool
/// and everything that holds its pages. Must outlive them.
class PagePool {
 public:
  /// n_pages >= 0, n_pages * kPageTokens below 2^31. The backend, where one is given, must outlive the pool. Throws as
  /// validate(layout) does, Error{kNoMemory} naming the size.
  PagePool(CacheLayout layout, int64_t n_pages, Backend* backend = nullptr);
  PagePool(const PagePool&) = delete;
  PagePool& operator=(const PagePool&) = delete;

  const CacheLayout& layout() const { return layout_; }
  /// [n_pages, rows of a page, row_elements[layer_idx]] of the cache dtype, contiguous. With a row a token: slot s of a
  /// sequence is row s of [n_pages * kPageTokens, row_elements].
  Tensor layer(int layer_idx) const;
  /// [n_pages, kPageTokens, elements]; pages are further apart than their rows take.
  Tensor recent(int recent_idx) const;
  /// The rows of one page in one layer: an address of the device that holds the pool.
  std::byte* page_data(int layer_idx, int32_t page_id) const;
  /// The same of its recent rows.
  std::byte* recent_data(int recent_idx, int32_t page_id) const;
  /// The rows of a page's first n_tokens where the host can read them: in place, or brought to `scratch`.
  const std::byte* read_rows(int layer_idx, int32_t page_id, int n_tokens, std::vector<std::byte>& scratch) const;
  /// Overwrites the rows of a page's first n_tokens.
  void write_rows(int layer_idx, int32_t page_id, int n_tokens, const std::byte* rows);
  /// The same of its recent rows.
  const std::byte* read_recent(int recent_idx, int32_t page_id, int n_tokens, std::vector<std::byte>& scratch) const;
  void write_recent(int recent_idx, int32_t page_id, int n_tokens, const std::byte* rows);

  int32_t n_pages() const { return static_cast<int32_t>(ref_counts_.size()); }
  int32_t free_pages() const { return static_cast<int32_t>(free_.size()); }
  int32_t used_pages() const { return n_pages() - free_pages(); }
  size_t capacity_bytes() const { return static_cast<size_t>(n_pages()) * layout_.page_bytes(); }
  size_t used_bytes() const { return static_cast<size_t>(used_pages()) * layout_.page_bytes() + recent_bytes(); }
  size_t recent_bytes() const { return static_cast<size_t>(n_recent_pages_) * layout_.recent_page_bytes(); }

  /// A page with one holder, or nothing if all are taken.
  std::optional<int32_t> allocate();
  /// One more holder of a page in use.
  void retain(int32_t page_id);
  /// One holder less; the last one frees the page.
  void release(int32_t page_id);
  int32_t ref_count(int32_t page_id) const;
  /// Copies the rows of a page's first n_tokens to another, in all layers, and its recent part where it has one.
  void copy_rows(int32_t from_page, int32_t to_page, int n_tokens);

  /// Whether somebody holds the page's recent part: else its content is lost.
  bool has_recent(int32_t page_id) const;
  /// Makes sure that recent parts of n_pages pages can get their first holder. Throws Error{kNoMemory} where a device
  /// lacks the memory, and nothing has changed.
  void prepare_recent(int64_t n_pages);
  /// Of the device that holds recent rows; nothing: the host's memory is the limit.
  std::optional<uint64_t> device_free_bytes() const;
  /// One more holder of the recent part of a page in use; a part without holders begins with undefined content.
  void retain_recent(int32_t page_id);
  /// One holder less; the last one gives its memory back. A holder lets go of the recent part before the page.
  void release_recent(int32_t page_id);

  /// The first violation found, or nothing: every reference count equals its holders (`live` sequences, which must be
  /// all there are, plus `held` ids, one entry per holder; `held_recent` likewise of recent parts); the free list names
  /// every page without holders exactly once; every sequence has the pages its length needs.
  std::optional<std::string> check_integrity(std::span<const Sequence* const> live, std::span<const int32_t> held = {},
                                             std::span<const int32_t> held_recent = {}) const;

 private:
  void check_page(int32_t page_id) const;
  const std::byte* fetch(const std::byte* rows, size_t size_bytes, std::vector<std::byte>& scratch) const;
  void put(std::byte* to, const std::byte* rows, size_t size_bytes);
  std::optional<std::string> check_recent(std::span<const Sequence* const> live,
                                          std::span<const int32_t> held_recent) const;

  CacheLayout layout_;
  Backend* backend_;                              // null: the heap
  std::vector<std::shared_ptr<Buffer>> buffers_;  // one per layer
  std::vector<int32_t> ref_counts_;
  std::vector<int32_t> free_;  // a stack: the page freed last is taken first, while it may still be in a CPU cache
  std::unique_ptr<SparseRange> recent_;  // a unit for each page, of which only held ones cost memory
  std::vector<size_t> recent_offsets_;   // of each kind of rows in a unit
  std::vector<int32_t> recent_counts_;
  int64_t n_recent_pages_ = 0;
};

/// The cached tokens of one timeline: position p lives in page pages()[p / 64], row p % 64. To add tokens: reserve(n),
/// write the rows at slots(length(), n), advance(n). Pages are shared with forks and with a prefix tree and never
/// written while shared: reserve() copies the last, partly filled page first.
///
/// With recent rows a sequence holds the recent parts of its last pages alone: those within recent_tokens +
/// kRecentSlack of its end. It can be cut only where enough of them are left, see resumable().
class Sequence {
 public:
  explicit Sequence(PagePool& pool) : pool_(&pool) {}
  /// Shares `pages` (each retained), the first `n_tokens` rows of which are this sequence's tokens. Needs exactly
  /// ceil(n_tokens / 64) pages, the last of them with their recent parts (resumable_at).
  Sequence(PagePool& pool, std::span<const int32_t> pages, int64_t n_tokens);
  ~Sequence() { clear(); }
  Sequence(Sequence&& other) noexcept;
  Sequence& operator=(Sequence&& other) noexcept;
  Sequence(const Sequence&) = delete;
  Sequence& operator=(const Sequence&) = delete;

  int64_t length() const { return length_; }
  PagePool& pool() const { return *pool_; }
  /// Pages in order of position; after a reserve() there may be more than length() needs.
  std::span<const int32_t> pages() const { return pages_; }
  /// Pages from this one on have their recent parts held; 0 without recent rows.
  int64_t first_recent() const { return first_recent_; }
  /// The most of the first n_tokens that truncate() can leave: n_tokens or, where recent parts are gone, 0.
  int64_t resumable(int64_t n_tokens) const;

  /// Pages that reserve(n_tokens) would take from the pool now, a copy of the shared last page included.
  int64_t pages_needed(int64_t n_tokens) const;
  /// Makes slots [length, length + n_tokens) writable. False, and nothing changed, if the pool lacks the pages.
  /// Throws Error{kNoMemory} if a device has no room for their recent rows; nothing has changed then either.
  [[nodiscard]] bool reserve(int64_t n_tokens);
  /// Row of a position below length() + reserved, in the tensors PagePool::layer() seen as [n_pages * 64,
  /// row_elements].
  int32_t slot(int64_t pos) const;
  /// Rows of positions [first_pos, first_pos + n). Rows at or past length() are for writing: throws BugError if their
  /// page is shared (no reserve() since the last fork or truncate).
  std::vector<int32_t> slots(int64_t first_pos, int64_t n) const;
  /// n_tokens reserved rows have been written.
  void advance(int64_t n_tokens);
  /// Forgets positions [n_tokens, length) and returns the pages only they and unused reservations needed. n_tokens must
  /// be resumable.
  void truncate(int64_t n_tokens);
  void clear() { truncate(0); }
  /// A second timeline over the same tokens; costs no page until one of the two writes. Rows reserved but not advanced
  /// stay with this one and need a new reserve() before they are written.
  Sequence fork() const;

 private:
  PagePool* pool_;
  std::vector<int32_t> pages_;
  int64_t length_ = 0;
  int64_t first_recent_ = 0;
};

/// Whether a text of n_tokens can go on if recent parts are there from page first_recent on.
bool resumable_at(const CacheLayout& layout, int64_t n_tokens, int64_t first_recent);

}  // namespace fathom
