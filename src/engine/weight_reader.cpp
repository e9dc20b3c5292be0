#include "engine/weight_reader.h"

#include <algorithm>
#include <string_view>

#include "core/host_memory.h"

namespace fathom {
namespace {

/// Requests that a disk has before it at a time, and their size. One thread with 4 MiB at a time reads as fast as a
/// virtual disk goes; NVMe drives want several.
constexpr int kReaders = 4;
constexpr uint64_t kPieceBytes = uint64_t{4} << 20;
/// Of the memory, kept for everything else: cache pages, activations, other programs.
constexpr uint64_t kReserveShare = 16;
/// Files of which so much is in memory are left to page faults.
constexpr double kResident = 0.999;

bool is_expert(std::string_view name) { return name.find("_exps.") != std::string_view::npos; }

}  // namespace

ReadingPlan plan_reading(const GgufModel& model, std::optional<uint64_t> available_bytes) {
  ReadingPlan plan;
  const uint64_t available = available_bytes.value_or(UINT64_MAX);
  plan.streams_experts = model.size_bytes() > available - available / kReserveShare;
  for (const GgufFile& shard : model.files()) {
    const MappedFile& file = *shard.file;
    if (file.resident_fraction(0, file.size_bytes()) >= kResident) continue;
    for (const GgufTensorInfo& tensor : shard.tensors) {
      if (plan.streams_experts && is_expert(tensor.name)) continue;
      plan.ranges.emplace_back(file.data() + tensor.offset_bytes, tensor.size_bytes);
      plan.size_bytes += tensor.size_bytes;
    }
  }
  return plan;
}

WeightReader::WeightReader(ReadingPlan plan) : plan_(std::move(plan)) {
  uint64_t start = 0;
  for (const auto& range : plan_.ranges) {
    starts_.push_back(start);
    start += range.size();
  }
  if (plan_.size_bytes == 0) return;
  for (int i = 0; i < kReaders; ++i) threads_.emplace_back([this](std::stop_token stop) { read(stop); });
}

void WeightReader::read(std::stop_token stop) {
  while (!stop.stop_requested()) {
    const uint64_t begin = next_.fetch_add(kPieceBytes);
    if (begin >= plan_.size_bytes) return;
    const uint64_t end = std::min(begin + kPieceBytes, plan_.size_bytes);
    auto at = static_cast<size_t>(std::upper_bound(starts_.begin(), starts_.end(), begin) - starts_.begin()) - 1;
    for (; at < plan_.ranges.size() && starts_[at] < end; ++at) {
      const uint64_t from = std::max(begin, starts_[at]) - starts_[at];
      const uint64_t to = std::min<uint64_t>(end - starts_[at], plan_.ranges[at].size());
      const std::byte* data = plan_.ranges[at].data();
      if (!read_now(data + from, to - from)) return;
    }
  }
}

void WeightReader::finish() {
  for (std::jthread& thread : threads_) {
    if (thread.joinable()) thread.join();
  }
}

}  // namespace fathom
