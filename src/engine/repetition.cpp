#include "engine/repetition.h"

#include <algorithm>

namespace fathom {
namespace {

/// Of the tokens before `end`. Found places are compared token by token, so that equal hashes do no harm.
uint64_t hash_before(std::span<const int32_t> text, size_t end) {
  uint64_t hash = 0;
  for (size_t i = end - RepetitionIndex::kLeastMatch; i < end; ++i)
    hash = (hash ^ static_cast<uint32_t>(text[i])) * 0x9e3779b97f4a7c15u;
  return hash ^ hash >> 32;
}

}  // namespace

RepetitionIndex::Found RepetitionIndex::find(std::span<const int32_t> text, size_t most) {
  if (text.size() <= kLeastMatch) return {};
  for (size_t end = std::max(n_indexed_, kLeastMatch); end < text.size(); ++end) ends_[hash_before(text, end)] = end;
  n_indexed_ = text.size();
  const auto place = ends_.find(hash_before(text, text.size()));
  if (place == ends_.end()) return {};
  const size_t end = place->second;
  size_t match = 0;
  while (match < std::min(end, kMostMatch) && text[end - 1 - match] == text[text.size() - 1 - match]) ++match;
  if (match < kLeastMatch) return {};
  return {text.subspan(end, std::min(most, text.size() - end)), match};
}

}  // namespace fathom
