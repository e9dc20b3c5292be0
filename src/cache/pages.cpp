#include "cache/pages.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <utility>

#include "core/error.h"

namespace fathom {
namespace {

int64_t pages_for(int64_t n_tokens) { return (n_tokens + kPageTokens - 1) / kPageTokens; }

void check_tokens(int64_t n_tokens) {
  FATHOM_CHECK(n_tokens >= 0 && n_tokens <= kPageTokens, "a page has no " + std::to_string(n_tokens) + " tokens");
}

/// The first page that a sequence of so many tokens holds the recent part of.
int64_t first_kept(const CacheLayout& layout, int64_t n_tokens) {
  return std::max<int64_t>(0, n_tokens - layout.recent_tokens - kRecentSlack) / kPageTokens;
}

}  // namespace

size_t CacheLayout::row_bytes(int layer_idx) const {
  return fathom::row_bytes(dtype, row_elements[static_cast<size_t>(layer_idx)]);
}

int64_t CacheLayout::n_rows(int layer_idx, int64_t n_tokens) const {
  if (tokens_per_row.empty()) return n_tokens;
  return n_tokens / std::min<int64_t>(tokens_per_row[static_cast<size_t>(layer_idx)], kPageTokens);
}

size_t CacheLayout::recent_row_bytes(int recent_idx) const {
  const TokenRows& rows = recent[static_cast<size_t>(recent_idx)];
  return fathom::row_bytes(rows.dtype, rows.elements);
}

size_t CacheLayout::tokens_bytes(int64_t n_tokens) const {
  size_t total = 0;
  for (int i = 0; i < n_layers; ++i) total += rows_bytes(i, n_tokens);
  return total;
}

size_t CacheLayout::recent_token_bytes() const {
  size_t total = 0;
  for (const TokenRows& rows : recent) total += fathom::row_bytes(rows.dtype, rows.elements);
  return total;
}

size_t CacheLayout::recent_bytes(int64_t n_tokens) const {
  if (!has_recent()) return 0;
  return static_cast<size_t>(pages_for(recent_tokens + kRecentSlack + n_tokens) + 1) * recent_page_bytes();
}

std::string CacheLayout::describe() const {
  std::string text;
  for (auto run = row_elements.begin(); run != row_elements.end();) {
    const auto end = std::find_if(run, row_elements.end(), [&](int64_t n) { return n != *run; });
    text += (text.empty() ? "" : " + ") + std::to_string(end - run) + (text.empty() ? " layers x " : " x ") +
            std::to_string(*run);
    run = end;
  }
  text += " " + std::string(dtype_name(dtype));
  if (!tokens_per_row.empty()) {
    text += ", tokens a row";
    for (const int64_t n : tokens_per_row) text += " " + std::to_string(n);
  }
  if (has_recent()) {
    text += ", of the last " + std::to_string(recent_tokens);
    for (const TokenRows& rows : recent)
      text += " " + std::to_string(rows.elements) + std::string(dtype_name(rows.dtype));
  }
  return text;
}

void validate(const CacheLayout& layout) {
  constexpr DType kTypes[] = {DType::kF32, DType::kF16, DType::kBF16, DType::kQ8_0, DType::kF8_E4M3};
  if (std::find(std::begin(kTypes), std::end(kTypes), layout.dtype) == std::end(kTypes)) {
    throw Error(ErrorCode::kUsage, "cache: type " + std::string(dtype_name(layout.dtype)) +
                                       " cannot hold latent pages; expected f32, f16, bf16, q8_0 or f8_e4m3; try bf16");
  }
  FATHOM_CHECK(layout.n_layers + std::ssize(layout.recent) > 0 &&
                   layout.row_elements.size() == static_cast<size_t>(layout.n_layers),
               "a cache layout needs a row size for each of its layers");
  FATHOM_CHECK(layout.has_recent() == (layout.recent_tokens > 0), "recent rows are those of some tokens");
  const auto check_row = [](int64_t n, DType dtype) {
    FATHOM_CHECK(n > 0, "a cache row needs elements");
    const int block = dtype_info(dtype).block_elements;
    if (n % block != 0) {
      throw Error(ErrorCode::kUsage, "cache: rows of " + std::to_string(n) + " elements do not fit type " +
                                         std::string(dtype_name(dtype)) + "; expected a multiple of " +
                                         std::to_string(block) + "; try bf16");
    }
  };
  for (const int64_t n : layout.row_elements) check_row(n, layout.dtype);
  for (const TokenRows& rows : layout.recent) check_row(rows.elements, rows.dtype);
  FATHOM_CHECK(layout.tokens_per_row.empty() || layout.tokens_per_row.size() == layout.row_elements.size(),
               "a cache layout says of every layer what a row stands for");
  for (const int64_t n : layout.tokens_per_row)
    FATHOM_CHECK(n > 0 && (kPageTokens % n == 0 || n % kPageTokens == 0), "rows divide a page or are whole pages");
}

PagePool::PagePool(CacheLayout layout, int64_t n_pages, Backend* backend)
    : layout_(std::move(layout)), backend_(backend) {
  validate(layout_);
  FATHOM_CHECK(n_pages >= 0, "a negative number of pages");
  if (n_pages > std::numeric_limits<int32_t>::max() / kPageTokens ||
      layout_.page_bytes() > std::numeric_limits<size_t>::max() / static_cast<size_t>(std::max<int64_t>(n_pages, 1))) {
    throw Error(ErrorCode::kNoMemory, "cache: " + std::to_string(n_pages) + " pages are too many; expected at most " +
                                          std::to_string(std::numeric_limits<int32_t>::max() / kPageTokens) +
                                          "; try a smaller context");
  }
  for (int i = 0; i < layout_.n_layers; ++i) {
    const size_t size_bytes = static_cast<size_t>(n_pages) * layout_.rows_bytes(i, kPageTokens);
    buffers_.push_back(backend_ != nullptr ? backend_->allocate(size_bytes, "the latent cache")
                                           : allocate_heap(size_bytes, "the latent cache"));
  }
  if (layout_.has_recent()) {
    const auto n = static_cast<size_t>(n_pages);
    const char* what = "recent rows of the cache";
    recent_ = backend_ != nullptr ? backend_->reserve_units(n, layout_.recent_page_bytes(), what)
                                  : std::make_unique<SparseMemory>(n, layout_.recent_page_bytes(), what);
    size_t offset = 0;
    for (int i = 0; i < static_cast<int>(layout_.recent.size()); ++i) {
      recent_offsets_.push_back(offset);
      offset += kPageTokens * layout_.recent_row_bytes(i);
    }
    recent_counts_.assign(static_cast<size_t>(n_pages), 0);
  }
  ref_counts_.assign(static_cast<size_t>(n_pages), 0);
  free_.resize(static_cast<size_t>(n_pages));
  for (size_t i = 0; i < free_.size(); ++i) free_[i] = static_cast<int32_t>(free_.size() - 1 - i);
}

void PagePool::check_page(int32_t page_id) const {
  FATHOM_CHECK(page_id >= 0 && page_id < n_pages(), "no page " + std::to_string(page_id));
}

Tensor PagePool::layer(int layer_idx) const {
  FATHOM_CHECK(layer_idx >= 0 && layer_idx < layout_.n_layers, "no layer " + std::to_string(layer_idx));
  const auto i = static_cast<size_t>(layer_idx);
  return Tensor(layout_.dtype, {n_pages(), layout_.n_rows(layer_idx, kPageTokens), layout_.row_elements[i]},
                buffers_[i]->data());
}

Tensor PagePool::recent(int recent_idx) const {
  const TokenRows& rows = layout_.recent.at(static_cast<size_t>(recent_idx));
  Tensor t(rows.dtype, {n_pages(), kPageTokens, rows.elements},
           recent_->data() + recent_offsets_[static_cast<size_t>(recent_idx)]);
  t.strides_bytes[0] = static_cast<int64_t>(recent_->stride_bytes());
  return t;
}

std::byte* PagePool::page_data(int layer_idx, int32_t page_id) const {
  FATHOM_CHECK(layer_idx >= 0 && layer_idx < layout_.n_layers, "no layer " + std::to_string(layer_idx));
  check_page(page_id);
  return buffers_[static_cast<size_t>(layer_idx)]->data() +
         static_cast<size_t>(page_id) * layout_.rows_bytes(layer_idx, kPageTokens);
}

std::byte* PagePool::recent_data(int recent_idx, int32_t page_id) const {
  check_page(page_id);
  return recent_->unit(static_cast<size_t>(page_id)) + recent_offsets_.at(static_cast<size_t>(recent_idx));
}

std::optional<int32_t> PagePool::allocate() {
  if (free_.empty()) return std::nullopt;
  const int32_t page_id = free_.back();
  free_.pop_back();
  ref_counts_[static_cast<size_t>(page_id)] = 1;
  return page_id;
}

void PagePool::retain(int32_t page_id) {
  check_page(page_id);
  int32_t& count = ref_counts_[static_cast<size_t>(page_id)];
  FATHOM_CHECK(count > 0, "page " + std::to_string(page_id) + " is free and cannot be shared");
  ++count;
}

void PagePool::release(int32_t page_id) {
  check_page(page_id);
  int32_t& count = ref_counts_[static_cast<size_t>(page_id)];
  FATHOM_CHECK(count > 0, "page " + std::to_string(page_id) + " is freed twice");
  if (--count > 0) return;
  FATHOM_CHECK(!has_recent(page_id), "page " + std::to_string(page_id) + " is freed before its recent part");
  free_.push_back(page_id);
}

bool PagePool::has_recent(int32_t page_id) const {
  check_page(page_id);
  return !recent_counts_.empty() && recent_counts_[static_cast<size_t>(page_id)] > 0;
}

void PagePool::retain_recent(int32_t page_id) {
  check_page(page_id);
  FATHOM_CHECK(recent_ != nullptr && ref_counts_[static_cast<size_t>(page_id)] > 0,
               "page " + std::to_string(page_id) + " has no recent part");
  if (recent_counts_[static_cast<size_t>(page_id)] == 0) {
    recent_->take(static_cast<size_t>(page_id));
    ++n_recent_pages_;
  }
  ++recent_counts_[static_cast<size_t>(page_id)];
}

void PagePool::prepare_recent(int64_t n_pages) {
  if (recent_) recent_->prepare(static_cast<size_t>(n_pages));
}

std::optional<uint64_t> PagePool::device_free_bytes() const {
  return backend_ != nullptr ? backend_->free_bytes() : std::nullopt;
}

void PagePool::release_recent(int32_t page_id) {
  FATHOM_CHECK(has_recent(page_id), "page " + std::to_string(page_id) + " has lost its recent part already");
  if (--recent_counts_[static_cast<size_t>(page_id)] > 0) return;
  --n_recent_pages_;
  recent_->discard(static_cast<size_t>(page_id));
}

int32_t PagePool::ref_count(int32_t page_id) const {
  check_page(page_id);
  return ref_counts_[static_cast<size_t>(page_id)];
}

void PagePool::copy_rows(int32_t from_page, int32_t to_page, int n_tokens) {
  check_tokens(n_tokens);
  const auto copy = [&](std::byte* to, const std::byte* from, size_t size_bytes) {
    if (backend_ != nullptr) {
      backend_->copy(to, from, size_bytes);
    } else {
      std::memcpy(to, from, size_bytes);
    }
  };
  for (int i = 0; i < static_cast<int>(layout_.recent.size()) && has_recent(from_page); ++i)
    copy(recent_data(i, to_page), recent_data(i, from_page),
         static_cast<size_t>(n_tokens) * layout_.recent_row_bytes(i));
  for (int i = 0; i < layout_.n_layers; ++i)
    copy(page_data(i, to_page), page_data(i, from_page), layout_.rows_bytes(i, n_tokens));
}

const std::byte* PagePool::read_rows(int layer_idx, int32_t page_id, int n_tokens,
                                     std::vector<std::byte>& scratch) const {
  check_tokens(n_tokens);
  return fetch(page_data(layer_idx, page_id), layout_.rows_bytes(layer_idx, n_tokens), scratch);
}

const std::byte* PagePool::read_recent(int recent_idx, int32_t page_id, int n_tokens,
                                       std::vector<std::byte>& scratch) const {
  check_tokens(n_tokens);
  return fetch(recent_data(recent_idx, page_id), static_cast<size_t>(n_tokens) * layout_.recent_row_bytes(recent_idx),
               scratch);
}

const std::byte* PagePool::fetch(const std::byte* rows, size_t size_bytes, std::vector<std::byte>& scratch) const {
  if (backend_ == nullptr || backend_->shares_host_memory()) return rows;
  scratch.resize(size_bytes);
  backend_->download(scratch.data(), rows, size_bytes);
  return scratch.data();
}

void PagePool::write_rows(int layer_idx, int32_t page_id, int n_tokens, const std::byte* rows) {
  check_tokens(n_tokens);
  put(page_data(layer_idx, page_id), rows, layout_.rows_bytes(layer_idx, n_tokens));
}

void PagePool::write_recent(int recent_idx, int32_t page_id, int n_tokens, const std::byte* rows) {
  check_tokens(n_tokens);
  put(recent_data(recent_idx, page_id), rows, static_cast<size_t>(n_tokens) * layout_.recent_row_bytes(recent_idx));
}

void PagePool::put(std::byte* to, const std::byte* rows, size_t size_bytes) {
  if (backend_ != nullptr) {
    backend_->upload(to, rows, size_bytes);
  } else {
    std::memcpy(to, rows, size_bytes);
  }
}

std::optional<std::string> PagePool::check_recent(std::span<const Sequence* const> live,
                                                  std::span<const int32_t> held_recent) const {
  if (!recent_) return std::nullopt;
  std::vector<int32_t> holders(ref_counts_.size(), 0);
  for (const Sequence* sequence : live) {
    if (!resumable_at(layout_, sequence->length(), sequence->first_recent()))
      return "a sequence of " + std::to_string(sequence->length()) + " tokens lacks recent parts";
    for (size_t i = static_cast<size_t>(sequence->first_recent()); i < sequence->pages().size(); ++i)
      ++holders[static_cast<size_t>(sequence->pages()[i])];
  }
  for (const int32_t page_id : held_recent) ++holders[static_cast<size_t>(page_id)];
  for (size_t i = 0; i < holders.size(); ++i) {
    if (recent_counts_[i] != holders[i]) {
      return "the recent part of page " + std::to_string(i) + " counts " + std::to_string(recent_counts_[i]) +
             " holders, but has " + std::to_string(holders[i]);
    }
  }
  return std::nullopt;
}

std::optional<std::string> PagePool::check_integrity(std::span<const Sequence* const> live,
                                                     std::span<const int32_t> held,
                                                     std::span<const int32_t> held_recent) const {
  std::vector<int32_t> holders(ref_counts_.size(), 0);
  auto hold = [&](int32_t page_id) {
    if (page_id < 0 || page_id >= n_pages()) return false;
    ++holders[static_cast<size_t>(page_id)];
    return true;
  };
  for (size_t s = 0; s < live.size(); ++s) {
    const std::string name = "sequence " + std::to_string(s);
    if (&live[s]->pool() != this) return name + " belongs to another pool";
    const std::span<const int32_t> pages = live[s]->pages();
    if (static_cast<int64_t>(pages.size()) < pages_for(live[s]->length())) {
      return name + " of " + std::to_string(live[s]->length()) + " tokens has " + std::to_string(pages.size()) +
             " pages";
    }
    for (size_t i = 0; i < pages.size(); ++i) {
      if (!hold(pages[i])) return name + " holds page " + std::to_string(pages[i]) + ", which does not exist";
      if (std::find(pages.begin(), pages.begin() + static_cast<int64_t>(i), pages[i]) !=
          pages.begin() + static_cast<int64_t>(i)) {
        return name + " holds page " + std::to_string(pages[i]) + " twice";
      }
    }
  }
  for (const int32_t page_id : held) {
    if (!hold(page_id)) return "page " + std::to_string(page_id) + " is held but does not exist";
  }
  std::vector<bool> is_free(ref_counts_.size(), false);
  for (const int32_t page_id : free_) {
    const auto i = static_cast<size_t>(page_id);
    if (page_id < 0 || page_id >= n_pages()) return "the free list names page " + std::to_string(page_id);
    if (is_free[i]) return "page " + std::to_string(page_id) + " is on the free list twice";
    is_free[i] = true;
  }
  for (size_t i = 0; i < holders.size(); ++i) {
    const std::string name = "page " + std::to_string(i);
    if (ref_counts_[i] != holders[i]) {
      return name + " counts " + std::to_string(ref_counts_[i]) + " holders, but has " + std::to_string(holders[i]);
    }
    if (is_free[i] != (holders[i] == 0)) {
      return name +
             (is_free[i] ? " is on the free list, but has holders" : " has no holder, but is not on the free list");
    }
  }
  return check_recent(live, held_recent);
}

Sequence::Sequence(PagePool& pool, std::span<const int32_t> pages, int64_t n_tokens) : pool_(&pool), length_(n_tokens) {
  FATHOM_CHECK(n_tokens >= 0 && static_cast<int64_t>(pages.size()) == pages_for(n_tokens),
               std::to_string(n_tokens) + " tokens do not fill " + std::to_string(pages.size()) + " pages");
  pages_.assign(pages.begin(), pages.end());
  for (const int32_t page_id : pages_) pool_->retain(page_id);
  if (!pool_->layout().has_recent()) return;
  first_recent_ = std::ssize(pages_);
  const int64_t first = first_kept(pool_->layout(), n_tokens);
  while (first_recent_ > first && pool_->has_recent(pages_[static_cast<size_t>(first_recent_ - 1)]))
    pool_->retain_recent(pages_[static_cast<size_t>(--first_recent_)]);
  FATHOM_CHECK(resumable_at(pool_->layout(), n_tokens, first_recent_), "recent parts are missing");
}

Sequence::Sequence(Sequence&& other) noexcept
    : pool_(other.pool_),
      pages_(std::move(other.pages_)),
      length_(std::exchange(other.length_, 0)),
      first_recent_(std::exchange(other.first_recent_, 0)) {
  other.pages_.clear();
}

Sequence& Sequence::operator=(Sequence&& other) noexcept {
  if (this == &other) return *this;
  clear();
  pool_ = other.pool_;
  pages_ = std::move(other.pages_);
  other.pages_.clear();
  length_ = std::exchange(other.length_, 0);
  first_recent_ = std::exchange(other.first_recent_, 0);
  return *this;
}

int64_t Sequence::pages_needed(int64_t n_tokens) const {
  FATHOM_CHECK(n_tokens >= 0, "a negative number of tokens");
  if (n_tokens == 0) return 0;
  // Any pool is smaller than this; the sum below cannot overflow.
  if (n_tokens > std::numeric_limits<int32_t>::max()) return std::numeric_limits<int32_t>::max();
  const auto n_held = static_cast<int64_t>(pages_.size());
  const int64_t added = std::max<int64_t>(0, pages_for(length_ + n_tokens) - n_held);
  // Pages past the last one written are never shared: fork() and Sequence(pages) hand out written pages only.
  const int64_t last = length_ / kPageTokens;
  const bool copies = length_ % kPageTokens != 0 && pool_->ref_count(pages_[static_cast<size_t>(last)]) > 1;
  return added + (copies ? 1 : 0);
}

bool Sequence::reserve(int64_t n_tokens) {
  if (pages_needed(n_tokens) > pool_->free_pages()) return false;
  if (n_tokens == 0) return true;
  const bool has_recent = pool_->layout().has_recent();
  pool_->prepare_recent(pages_needed(n_tokens));
  if (length_ % kPageTokens != 0) {
    int32_t& last = pages_[static_cast<size_t>(length_ / kPageTokens)];
    if (pool_->ref_count(last) > 1) {
      const int32_t copy = *pool_->allocate();
      if (has_recent) pool_->retain_recent(copy);
      pool_->copy_rows(last, copy, static_cast<int>(length_ % kPageTokens));
      if (has_recent) pool_->release_recent(last);
      pool_->release(last);
      last = copy;
    }
  }
  while (static_cast<int64_t>(pages_.size()) < pages_for(length_ + n_tokens)) {
    pages_.push_back(*pool_->allocate());
    if (has_recent) pool_->retain_recent(pages_.back());
  }
  return true;
}

int32_t Sequence::slot(int64_t pos) const {
  const int64_t i = pos / kPageTokens;
  FATHOM_CHECK(pos >= 0 && i < static_cast<int64_t>(pages_.size()), "position " + std::to_string(pos) + " has no page");
  return pages_[static_cast<size_t>(i)] * kPageTokens + static_cast<int32_t>(pos % kPageTokens);
}

std::vector<int32_t> Sequence::slots(int64_t first_pos, int64_t n) const {
  FATHOM_CHECK(first_pos >= 0 && n >= 0 && first_pos + n <= static_cast<int64_t>(pages_.size()) * kPageTokens,
               "positions " + std::to_string(first_pos) + " + " + std::to_string(n) + " reach past the reserved " +
                   std::to_string(pages_.size()) + " pages");
  const int64_t end = first_pos + n;
  if (end > length_) {
    const int64_t first_written = std::max(first_pos, length_);
    for (int64_t i = first_written / kPageTokens; i < pages_for(end); ++i) {
      FATHOM_CHECK(pool_->ref_count(pages_[static_cast<size_t>(i)]) == 1,
                   "page " + std::to_string(pages_[static_cast<size_t>(i)]) + " is shared and must not be written");
    }
  }
  std::vector<int32_t> rows;
  rows.reserve(static_cast<size_t>(n));
  for (int64_t pos = first_pos; pos < end; ++pos) rows.push_back(slot(pos));
  return rows;
}

void Sequence::advance(int64_t n_tokens) {
  FATHOM_CHECK(n_tokens >= 0 && n_tokens <= static_cast<int64_t>(pages_.size()) * kPageTokens - length_,
               std::to_string(n_tokens) + " tokens were not reserved");
  length_ += n_tokens;
  if (!pool_->layout().has_recent()) return;
  for (const int64_t first = first_kept(pool_->layout(), length_); first_recent_ < first; ++first_recent_)
    pool_->release_recent(pages_[static_cast<size_t>(first_recent_)]);
}

int64_t Sequence::resumable(int64_t n_tokens) const {
  return resumable_at(pool_->layout(), n_tokens, first_recent_) ? n_tokens : 0;
}

bool resumable_at(const CacheLayout& layout, int64_t n_tokens, int64_t first_recent) {
  return n_tokens == 0 || !layout.has_recent() ||
         first_recent <= std::max<int64_t>(0, n_tokens - layout.recent_tokens) / kPageTokens;
}

void Sequence::truncate(int64_t n_tokens) {
  FATHOM_CHECK(n_tokens >= 0 && n_tokens <= length_,
               "a sequence of " + std::to_string(length_) + " tokens cannot be cut to " + std::to_string(n_tokens));
  FATHOM_CHECK(resumable(n_tokens) == n_tokens, "a sequence is cut where its recent parts are gone");
  length_ = n_tokens;
  while (static_cast<int64_t>(pages_.size()) > pages_for(n_tokens)) {
    if (pool_->layout().has_recent() && std::ssize(pages_) > first_recent_) pool_->release_recent(pages_.back());
    pool_->release(pages_.back());
    pages_.pop_back();
  }
  if (n_tokens == 0) first_recent_ = 0;
}

Sequence Sequence::fork() const {
  return Sequence(*pool_, std::span(pages_).first(static_cast<size_t>(pages_for(length_))), length_);
}

}  // namespace fathom
