// One sequence of the latent cache as a file: written whole or not at all, read whole or not at all.
//
// Layout, little endian (a:n is a field of n bytes at byte a):
//
//   0:8   "FATHOMKV"                 24:4  bytes of the fingerprint, F
//   8:4   version, 1 or 2            28:4  layers, L
//   12:4  dtype (core/dtype.h)       32:8  tokens, N
//   16:8  bytes of the whole file    40    fingerprint:F | row_elements i64:8L | token ids i32:4N | XXH64 of all
//   before:8
//
//   Version 2 is for rows of several tokens and recent rows (CacheLayout). After byte 40 it has
//   40:4  kinds of recent rows, R    44:4  recent_tokens       48:8  first page with recent rows
//   and after row_elements: tokens_per_row i64:8L | elements and dtype of recent rows, i64:16R
//
//   then for each page of 64 tokens (the last one may be shorter):
//   0:8 XXH64 of data | 8:8 bytes of data | 16 data: a zstd frame of the page's rows, layer after layer, recent ones
//   last. Rows of f32, f16 and bf16 are split per layer into byte planes (first the lowest byte of every element, ...):
//   high bytes of neighbouring values are alike and compress, low bytes are noise.
#pragma once

#include <cstdint>
#include <filesystem>
#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "cache/pages.h"
#include "core/atomic_file.h"

namespace fathom {

constexpr uint32_t kSequenceFileVersion = 1, kRecentRowsVersion = 2;
constexpr size_t kMaxFingerprintBytes = 4096;

/// Writes a sequence to a file page by page, so that others can have their turn in between.
class SequenceWriter {
 public:
  /// For the first tokens.size() tokens of `sequence`, whose ids are `tokens` and from which it could go on
  /// (Sequence::resumable). The file will have mode 0600. `fingerprint` names everything that the rows depend on:
  /// model, weights, rotary set-up. Throws Error{kRuntime} if the system refuses, as write_page() does.
  SequenceWriter(const std::filesystem::path& path, std::string_view fingerprint, std::span<const int32_t> tokens,
                 const Sequence& sequence, uint64_t max_file_bytes = std::numeric_limits<uint64_t>::max());
  ~SequenceWriter();

  enum class Status {
    kMore,     ///< call again
    kSaved,    ///< that was the last page: the file stands in its place
    kTooLarge  ///< it would be larger than max_file_bytes
  };
  /// Writes the next page. `sequence` has the rows of the constructor's, recent ones included, but need not be it.
  /// Until kSaved nothing is seen of the file, and nothing is left of it when the writer goes.
  Status write_page(const Sequence& sequence);

  int64_t first_recent() const { return first_recent_; }  ///< first page whose recent rows are saved

 private:
  struct Compressor;

  AtomicFile file_;
  const uint64_t max_file_bytes_;
  const int64_t n_tokens_, first_recent_;
  int64_t next_page_ = 0;
  std::vector<std::byte> header_;
  const std::unique_ptr<Compressor> compressor_;
};

/// A saved sequence, opened: the header is read and verified, pages are read on demand. Keeps the file open, so that it
/// stays readable when someone removes or replaces it. One thread at a time.
class SequenceFile {
 public:
  /// Throws Error{kModel} naming path, what is wrong and where: missing, not such a file, another version, truncated,
  /// damaged. Never allocates more than the file's size justifies.
  explicit SequenceFile(std::filesystem::path path);
  ~SequenceFile();
  SequenceFile(const SequenceFile&) = delete;
  SequenceFile& operator=(const SequenceFile&) = delete;

  const std::string& fingerprint() const { return fingerprint_; }
  const CacheLayout& layout() const { return layout_; }
  const std::vector<int32_t>& tokens() const { return tokens_; }
  uint64_t file_bytes() const { return file_bytes_; }
  /// The fewest tokens that read() can bring back: 1, or more where recent rows are needed to go on.
  int64_t least_tokens() const { return least_tokens(layout_, first_recent_); }
  static int64_t least_tokens(const CacheLayout& layout, int64_t first_recent);

  /// Throws Error{kModel} unless the file is of this model, its rows have the pool's sizes (the dtype may differ), it
  /// has at most max_tokens tokens and their ids lie in [0, vocab_size); names both sides.
  void check_fits(std::string_view fingerprint, const CacheLayout& layout, int64_t max_tokens,
                  int64_t vocab_size) const;

  /// The first n_tokens tokens, 0 or at least least_tokens(), as a new sequence; check_fits() must hold for the pool's
  /// layout. Rows of another dtype are converted through float. Nothing, and no page taken, if the pool lacks room.
  /// Throws Error{kModel} if a page is damaged; the pool is then as before.
  std::optional<Sequence> read(PagePool& pool, int64_t n_tokens) const;

 private:
  void read_header();
  void read_at(uint64_t offset, void* data, size_t size_bytes) const;
  [[noreturn]] void refuse(const std::string& what, const std::string& expected, const std::string& got,
                           const std::string& advice) const;

  std::filesystem::path path_;
  int fd_;
  uint64_t file_bytes_ = 0;
  uint64_t pages_offset_ = 0;
  std::string fingerprint_;
  CacheLayout layout_;
  int64_t first_recent_ = 0;  // page
  std::vector<int32_t> tokens_;
};

}  // namespace fathom
