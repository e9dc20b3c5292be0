// Texts that were evaluated before: in pages of the pool, and on disk.
#pragma once

#include <cstdint>
#include <deque>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "cache/disk_store.h"
#include "cache/prefix_tree.h"
#include "engine/engine.h"

namespace fathom {

struct DiskCacheOptions {
  std::filesystem::path folder;
  uint64_t max_bytes = uint64_t{8} << 30;
};

/// Texts of at least this many tokens are saved: shorter ones are evaluated again sooner than read and checked.
constexpr int64_t kMinSavedTokens = 256;

/// Keys are tokens with the form of their rows (attention_plan.h), so that a hit has the bits of a fresh evaluation.
/// One thread, the pool's. Trouble with the disk never stops an answer: it is kept for disk_problem().
class TextCache {
 public:
  /// Throws Error{kRuntime} if the disk folder cannot be used.
  TextCache(Engine& engine, int64_t max_pages, const std::optional<DiskCacheOptions>& disk);

  /// The longest known beginning of `keys`; looks on disk if that knows much more, making room in the pool.
  Sequence find(std::span<const int32_t> keys);
  /// In memory only.
  Sequence find_in_memory(std::span<const int32_t> keys) { return tree_.match(keys); }
  int64_t length_in_memory(std::span<const int32_t> keys) const { return tree_.match_length(keys); }
  /// The end of the last whole page that a remembered text has in common with `keys`, found or not: with recent rows
  /// (V4) a beginning is found only where a text was cut while it was evaluated.
  int64_t branch_in_memory(std::span<const int32_t> keys) const {
    return tree_.common_length(keys) / kPageTokens * kPageTokens;
  }

  /// Shares the pages of the sequence's first keys.size() rows.
  void keep(std::span<const int32_t> keys, const Sequence& sequence) { tree_.insert(keys, sequence); }
  /// The same in the midst of a prompt.
  void keep_beginning(std::span<const int32_t> keys, const Sequence& sequence) { tree_.insert(keys, sequence, false); }
  /// Keeps them, and on disk too when there is time: see save_page().
  void keep_for_long(std::span<const int32_t> keys, const Sequence& sequence);
  /// Writes a page of the text that is being saved, or else of the latest that waits to be. False if none does.
  bool save_page();

  /// Gives up the least recently used pages that no request holds. Returns how many.
  int64_t evict(int64_t n_pages) { return tree_.evict(n_pages); }
  /// Pages that no request holds: evict() could free nearly all of them.
  int64_t idle_pages() const;
  std::vector<int32_t> held_pages() const { return tree_.held_pages(); }
  std::optional<std::string> check_integrity() const { return tree_.check_integrity(); }

  uint64_t disk_hits() const { return disk_hits_; }
  uint64_t disk_problems() const { return disk_problems_; }
  const std::optional<std::string>& disk_problem() const { return disk_problem_; }

 private:
  void note_problem(const std::string& what);

  PagePool& pool_;
  PrefixTree tree_;
  std::optional<DiskStore> disk_;
  std::deque<std::vector<int32_t>> unsaved_;  // keys, latest last
  std::optional<DiskStore::Saving> saving_;
  uint64_t disk_hits_ = 0, disk_problems_ = 0;
  std::optional<std::string> disk_problem_;
};

}  // namespace fathom
