// A folder of saved sequences that several processes may share: the prefix cache that survives the program.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "cache/pages.h"
#include "cache/sequence_file.h"

namespace fathom {

/// Saves sequences under a name made from their content and finds the one that shares the longest beginning with a
/// text, comparing tokens, never hashes alone. The folder (mode 0700) is kept below a size by removing the least
/// recently used files; only files named as this store names them are ever removed. Several processes may use one
/// folder: files appear and disappear whole, and removal is under a lock. In memory it keeps the token ids of every
/// file. One thread at a time. Throws Error{kRuntime} where the system refuses.
class DiskStore {
 public:
  /// Makes the folder if needed, and private. `fingerprint` as for SequenceWriter; files of others are left alone and
  /// not found. Throws Error{kRuntime} if the folder cannot be made or belongs to another user.
  DiskStore(std::filesystem::path folder, uint64_t max_bytes, std::string fingerprint);

  /// A text on its way into the store.
  class Saving {
   public:
    const std::vector<int32_t>& tokens() const { return tokens_; }
    int64_t first_recent() const { return writer_->first_recent(); }

   private:
    friend class DiskStore;
    std::vector<int32_t> tokens_;
    std::string name_;
    std::unique_ptr<SequenceWriter> writer_;
  };
  /// Begins to save the first tokens.size() tokens of `sequence`. Nothing if there are none or they are saved already.
  std::optional<Saving> begin_save(std::span<const int32_t> tokens, const Sequence& sequence);
  /// Its next page; `sequence` as for SequenceWriter::write_page. With the last one files of this model that are the
  /// beginning of it go; kTooLarge if it alone is larger than the store may be.
  SequenceWriter::Status save_page(Saving& saving, const Sequence& sequence);
  /// All of it at once. False if it is empty or too large.
  bool save(std::span<const int32_t> tokens, const Sequence& sequence);

  /// Tokens at the beginning of `tokens` that restore() would bring back.
  int64_t match_length(std::span<const int32_t> tokens);

  /// The longest stored beginning of `tokens` as a new sequence. Nothing if there is none or the pool lacks room. A
  /// damaged file is removed and reported by Error{kModel}; the pool is as before and the next call does not meet it
  /// again.
  std::optional<Sequence> restore(std::span<const int32_t> tokens, PagePool& pool);

  /// Removes the least recently used files until the folder keeps its size; files of all models count.
  void evict();

  /// Bytes of all saved sequences in the folder, of every model.
  uint64_t used_bytes() const;
  const std::filesystem::path& folder() const { return folder_; }

 private:
  struct Entry {
    bool is_ours;  ///< readable and of our fingerprint
    DType dtype;
    std::vector<int32_t> tokens;
    int64_t least_tokens;  ///< that can be brought back
  };
  struct Hit {
    std::string name;
    int64_t n_tokens = 0;
  };

  void refresh();
  Hit find(std::span<const int32_t> tokens, std::optional<DType> preferred);
  std::string name_of(std::span<const int32_t> tokens, const CacheLayout& layout) const;

  std::filesystem::path folder_;
  uint64_t max_bytes_;
  std::string fingerprint_;
  std::map<std::string, Entry> entries_;  // by file name; content never changes under a name
};

}  // namespace fathom
