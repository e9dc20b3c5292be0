#include "cache/pages.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <utility>

#include "core/error.h"

namespace fathom {
namespace {

int64_t pages_for(int64_t n_tokens) { return (n_tokens + kPageTokens - 1) / kPageTokens; }

}  // namespace

size_t CacheLayout::row_bytes(int layer_idx) const {
  return fathom::row_bytes(dtype, row_elements[static_cast<size_t>(layer_idx)]);
}

size_t CacheLayout::token_bytes() const {
  size_t total = 0;
  for (const int64_t n : row_elements) total += fathom::row_bytes(dtype, n);
  return total;
}

std::string CacheLayout::describe() const {
  std::string text;
  for (auto run = row_elements.begin(); run != row_elements.end();) {
    const auto end = std::find_if(run, row_elements.end(), [&](int64_t n) { return n != *run; });
    text += (text.empty() ? "" : " + ") + std::to_string(end - run) + (text.empty() ? " layers x " : " x ") +
            std::to_string(*run);
    run = end;
  }
  return text + " " + std::string(dtype_name(dtype));
}

void validate(const CacheLayout& layout) {
  constexpr DType kTypes[] = {DType::kF32, DType::kF16, DType::kBF16, DType::kQ8_0, DType::kF8_E4M3};
  if (std::find(std::begin(kTypes), std::end(kTypes), layout.dtype) == std::end(kTypes)) {
    throw Error(ErrorCode::kUsage, "cache: type " + std::string(dtype_name(layout.dtype)) +
                                       " cannot hold latent pages; expected f32, f16, bf16, q8_0 or f8_e4m3; try bf16");
  }
  FATHOM_CHECK(layout.n_layers > 0 && layout.row_elements.size() == static_cast<size_t>(layout.n_layers),
               "a cache layout needs a row size for each of its layers");
  const int block = dtype_info(layout.dtype).block_elements;
  for (const int64_t n : layout.row_elements) {
    FATHOM_CHECK(n > 0, "a cache row needs elements");
    if (n % block != 0) {
      throw Error(ErrorCode::kUsage, "cache: rows of " + std::to_string(n) + " elements do not fit type " +
                                         std::string(dtype_name(layout.dtype)) + "; expected a multiple of " +
                                         std::to_string(block) + "; try bf16");
    }
  }
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
    const size_t size_bytes = static_cast<size_t>(n_pages) * kPageTokens * layout_.row_bytes(i);
    buffers_.push_back(backend_ != nullptr ? backend_->allocate(size_bytes, "the latent cache")
                                           : allocate_heap(size_bytes, "the latent cache"));
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
  return Tensor(layout_.dtype, {n_pages(), kPageTokens, layout_.row_elements[i]}, buffers_[i]->data());
}

std::byte* PagePool::page_data(int layer_idx, int32_t page_id) const {
  FATHOM_CHECK(layer_idx >= 0 && layer_idx < layout_.n_layers, "no layer " + std::to_string(layer_idx));
  check_page(page_id);
  return buffers_[static_cast<size_t>(layer_idx)]->data() +
         static_cast<size_t>(page_id) * kPageTokens * layout_.row_bytes(layer_idx);
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
  if (--count == 0) free_.push_back(page_id);
}

int32_t PagePool::ref_count(int32_t page_id) const {
  check_page(page_id);
  return ref_counts_[static_cast<size_t>(page_id)];
}

void PagePool::copy_rows(int32_t from_page, int32_t to_page, int n_rows) {
  FATHOM_CHECK(n_rows >= 0 && n_rows <= kPageTokens, "a page has no " + std::to_string(n_rows) + " rows");
  for (int i = 0; i < layout_.n_layers; ++i) {
    const size_t size_bytes = static_cast<size_t>(n_rows) * layout_.row_bytes(i);
    if (backend_ != nullptr) {
      backend_->copy(page_data(i, to_page), page_data(i, from_page), size_bytes);
    } else {
      std::memcpy(page_data(i, to_page), page_data(i, from_page), size_bytes);
    }
  }
}

const std::byte* PagePool::read_rows(int layer_idx, int32_t page_id, int n_rows,
                                     std::vector<std::byte>& scratch) const {
  FATHOM_CHECK(n_rows >= 0 && n_rows <= kPageTokens, "a page has no " + std::to_string(n_rows) + " rows");
  const std::byte* rows = page_data(layer_idx, page_id);
  if (backend_ == nullptr || backend_->shares_host_memory()) return rows;
  scratch.resize(static_cast<size_t>(n_rows) * layout_.row_bytes(layer_idx));
  backend_->download(scratch.data(), rows, scratch.size());
  return scratch.data();
}

void PagePool::write_rows(int layer_idx, int32_t page_id, int n_rows, const std::byte* rows) {
  FATHOM_CHECK(n_rows >= 0 && n_rows <= kPageTokens, "a page has no " + std::to_string(n_rows) + " rows");
  std::byte* to = page_data(layer_idx, page_id);
  const size_t size_bytes = static_cast<size_t>(n_rows) * layout_.row_bytes(layer_idx);
  if (backend_ != nullptr) {
    backend_->upload(to, rows, size_bytes);
  } else {
    std::memcpy(to, rows, size_bytes);
  }
}

std::optional<std::string> PagePool::check_integrity(std::span<const Sequence* const> live,
                                                     std::span<const int32_t> held) const {
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
  return std::nullopt;
}

Sequence::Sequence(PagePool& pool, std::span<const int32_t> pages, int64_t n_tokens) : pool_(&pool), length_(n_tokens) {
  FATHOM_CHECK(n_tokens >= 0 && static_cast<int64_t>(pages.size()) == pages_for(n_tokens),
               std::to_string(n_tokens) + " tokens do not fill " + std::to_string(pages.size()) + " pages");
  pages_.assign(pages.begin(), pages.end());
  for (const int32_t page_id : pages_) pool_->retain(page_id);
}

Sequence::Sequence(Sequence&& other) noexcept
    : pool_(other.pool_), pages_(std::move(other.pages_)), length_(std::exchange(other.length_, 0)) {
  other.pages_.clear();
}

Sequence& Sequence::operator=(Sequence&& other) noexcept {
  if (this == &other) return *this;
  clear();
  pool_ = other.pool_;
  pages_ = std::move(other.pages_);
  other.pages_.clear();
  length_ = std::exchange(other.length_, 0);
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
  if (length_ % kPageTokens != 0) {
    int32_t& last = pages_[static_cast<size_t>(length_ / kPageTokens)];
    if (pool_->ref_count(last) > 1) {
      const int32_t copy = *pool_->allocate();
      pool_->copy_rows(last, copy, static_cast<int>(length_ % kPageTokens));
      pool_->release(last);
      last = copy;
    }
  }
  while (static_cast<int64_t>(pages_.size()) < pages_for(length_ + n_tokens)) pages_.push_back(*pool_->allocate());
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
}

void Sequence::truncate(int64_t n_tokens) {
  FATHOM_CHECK(n_tokens >= 0 && n_tokens <= length_,
               "a sequence of " + std::to_string(length_) + " tokens cannot be cut to " + std::to_string(n_tokens));
  length_ = n_tokens;
  while (static_cast<int64_t>(pages_.size()) > pages_for(n_tokens)) {
    pool_->release(pages_.back());
    pages_.pop_back();
  }
}

Sequence Sequence::fork() const {
  return Sequence(*pool_, std::span(pages_).first(static_cast<size_t>(pages_for(length_))), length_);
}

}  // namespace fathom
