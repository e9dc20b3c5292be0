#include "engine/text_cache.h"

#include <algorithm>

#include "core/error.h"
#include "core/host_memory.h"

namespace fathom {
namespace {

/// Texts that wait to be saved; older ones are dropped.
constexpr size_t kMaxUnsaved = 32;
/// Tokens that a file must spare over memory to be read.
constexpr int64_t kMinDiskGain = kPageTokens;

/// Of recent rows at ends of texts (V4: 22 MiB a page, two to four pages an end): so much, or this part of what memory
/// is free.
constexpr uint64_t kMostRecentBytes = uint64_t{2} << 30;
constexpr uint64_t kRecentShare = 8;
constexpr int64_t kLeastRecentParts = 16;

int64_t most_recent_parts(const PagePool& pool) {
  const CacheLayout& layout = pool.layout();
  if (!layout.has_recent()) return 0;
  const std::optional<uint64_t> on_device = pool.device_free_bytes();
  const uint64_t available = on_device ? *on_device : available_memory_bytes().value_or(UINT64_MAX);
  return std::max(kLeastRecentParts, static_cast<int64_t>(std::min(kMostRecentBytes, available / kRecentShare) /
                                                          layout.recent_page_bytes()));
}

bool begins_with(std::span<const int32_t> text, std::span<const int32_t> beginning) {
  return text.size() >= beginning.size() && std::equal(beginning.begin(), beginning.end(), text.begin());
}

}  // namespace

TextCache::TextCache(Engine& engine, int64_t max_pages, const std::optional<DiskCacheOptions>& disk)
    : pool_(engine.pool()), tree_(pool_, max_pages, most_recent_parts(pool_)) {
  if (disk) disk_.emplace(disk->folder, disk->max_bytes, engine.cache_fingerprint());
}

Sequence TextCache::find(std::span<const int32_t> keys) {
  if (disk_) {
    try {
      const int64_t on_disk = disk_->match_length(keys);
      if (on_disk >= tree_.match_length(keys) + kMinDiskGain) {
        const int64_t lacking = (on_disk + kPageTokens - 1) / kPageTokens - pool_.free_pages();
        if (lacking > 0) tree_.evict(lacking);
        if (const std::optional<Sequence> restored = disk_->restore(keys, pool_)) {
          ++disk_hits_;
          tree_.insert(keys.first(static_cast<size_t>(restored->length())), *restored);
        }
      }
    } catch (const Error& e) {
      note_problem(e.what());
    }
  }
  return tree_.match(keys);
}

void TextCache::note_problem(const std::string& what) {
  ++disk_problems_;
  disk_problem_ = what;
}

void TextCache::keep_for_long(std::span<const int32_t> keys, const Sequence& sequence) {
  tree_.insert(keys, sequence);
  if (!disk_ || static_cast<int64_t>(keys.size()) < kMinSavedTokens) return;
  std::erase_if(unsaved_, [&](const std::vector<int32_t>& other) { return begins_with(keys, other); });
  unsaved_.emplace_back(keys.begin(), keys.end());
  if (unsaved_.size() > kMaxUnsaved) unsaved_.pop_front();
}

bool TextCache::save_page() {
  try {
    while (!saving_) {
      if (unsaved_.empty()) return false;
      const std::vector<int32_t> keys = std::move(unsaved_.back());
      unsaved_.pop_back();
      const Sequence sequence = tree_.match(keys);
      if (sequence.length() >= kMinSavedTokens)
        saving_ = disk_->begin_save(std::span(keys).first(static_cast<size_t>(sequence.length())), sequence);
    }
    // Looked up again for each page: what is being saved holds no page, so that none is lacked by a request.
    const std::vector<int32_t>& keys = saving_->tokens();
    const Sequence sequence = tree_.match(keys);
    const bool is_there = sequence.length() == std::ssize(keys) && sequence.first_recent() == saving_->first_recent();
    if (!is_there || disk_->save_page(*saving_, sequence) != SequenceWriter::Status::kMore) saving_.reset();
  } catch (const Error& e) {
    note_problem(e.what());
    saving_.reset();
  }
  return true;
}

int64_t TextCache::idle_pages() const {
  const std::vector<int32_t> held = tree_.held_pages();
  return std::count_if(held.begin(), held.end(), [&](int32_t page_id) { return pool_.ref_count(page_id) == 1; });
}

}  // namespace fathom
