// A sequence saved at once, as tests want it.
#pragma once

#include <filesystem>
#include <limits>
#include <span>
#include <string_view>

#include "cache/sequence_file.h"

namespace fathom::testing {

/// False, and nothing is left behind, if the file would be larger than max_file_bytes.
inline bool save_sequence(const std::filesystem::path& path, std::string_view fingerprint,
                          std::span<const int32_t> tokens, const Sequence& sequence,
                          uint64_t max_file_bytes = std::numeric_limits<uint64_t>::max()) {
  SequenceWriter writer(path, fingerprint, tokens, sequence, max_file_bytes);
  auto status = SequenceWriter::Status::kMore;
  while (status == SequenceWriter::Status::kMore) status = writer.write_page(sequence);
  return status == SequenceWriter::Status::kSaved;
}

}  // namespace fathom::testing
