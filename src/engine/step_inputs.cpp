#include "engine/step_inputs.h"

#include <algorithm>
#include <bit>

namespace fathom {
namespace {

constexpr size_t kAlign = 64 / sizeof(int32_t);
constexpr int64_t kLeastTableWidth = 8;  // pages: 512 tokens

size_t padded(size_t n) { return (n + kAlign - 1) / kAlign * kAlign; }

}  // namespace

StepInputs::StepInputs(Backend& backend, int64_t most_tokens, int64_t most_pages) : backend_(backend) {
  if (backend.shares_host_memory()) return;
  const size_t ints =
      7 * padded(static_cast<size_t>(most_tokens)) + padded(std::bit_ceil(static_cast<size_t>(most_pages)) * 16);
  device_ = backend.allocate(ints * sizeof(int32_t), "the integers of a step");
}

void StepInputs::clear() {
  for (std::vector<int32_t>* list : {&ids, &positions, &slots, &sequence_of, &expanded, &output_rows, &hidden_rows})
    list->clear();
  selects = false;
}

void StepInputs::set_page_table(std::span<const std::span<const int32_t>> pages) {
  size_t width = 0;
  for (const std::span<const int32_t> row : pages) width = std::max(width, row.size());
  if (device_) width = std::bit_ceil(std::max(width, static_cast<size_t>(kLeastTableWidth)));
  page_table.assign(pages.size() * width, -1);
  for (size_t s = 0; s < pages.size(); ++s)
    std::copy(pages[s].begin(), pages[s].end(), page_table.begin() + static_cast<ptrdiff_t>(s * width));
}

StepShape StepInputs::shape() const {
  const auto n_sequences = static_cast<int64_t>(expanded.size());
  return {static_cast<int64_t>(ids.size()),
          n_sequences,
          static_cast<int64_t>(output_rows.size()),
          static_cast<int64_t>(page_table.size()) / n_sequences,
          selects,
          keeps_hidden};
}

deepseek::Step StepInputs::send() {
  const StepShape s = shape();
  std::vector<int32_t>* const lists[] = {&ids,      &positions,   &slots,      &sequence_of,
                                         &expanded, &output_rows, &page_table, &hidden_rows};
  int32_t* at[std::size(lists)];
  if (device_) {
    size_t n = 0;
    for (const std::vector<int32_t>* list : lists) n += padded(list->size());
    if (device_->size_bytes() < n * sizeof(int32_t)) {
      device_.reset();
      device_ = backend_.allocate(2 * n * sizeof(int32_t), "the integers of a step");
      ++generation_;
    }
    block_.resize(n);
    size_t offset = 0;
    for (size_t i = 0; i < std::size(lists); ++i) {
      std::copy(lists[i]->begin(), lists[i]->end(), block_.begin() + static_cast<ptrdiff_t>(offset));
      at[i] = reinterpret_cast<int32_t*>(device_->data()) + offset;
      offset += padded(lists[i]->size());
    }
    backend_.upload(device_->data(), reinterpret_cast<const std::byte*>(block_.data()), n * sizeof(int32_t));
  } else {
    for (size_t i = 0; i < std::size(lists); ++i) at[i] = lists[i]->data();
  }
  auto ints = [&](size_t i) { return Tensor(DType::kI32, {static_cast<int64_t>(lists[i]->size())}, at[i]); };
  sent_hidden_rows_ = hidden_rows.empty() ? Tensor() : ints(7);
  deepseek::Step step;
  step.token_ids = ints(0);
  step.where = {ints(1), ints(2), ints(3), Tensor(DType::kI32, {s.n_sequences, s.table_width}, at[6]), ints(4)};
  if (s.n_outputs > 0) step.output_rows = ints(5);
  step.selects = selects;
  return step;
}

}  // namespace fathom
