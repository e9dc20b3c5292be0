// Where a writer's bytes go: a file that is thrown away unless it gets finished, or one that a later process may go on
// with.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

namespace fathom {

/// Collects bytes for `path`; commit() puts them in place, flushed to the disk. One thread at a time.
/// Refusals of the disk are Error{kRuntime} with the system's reason.
class OutputFile {
 public:
  virtual ~OutputFile() = default;
  virtual void write(const void* data, size_t size_bytes) = 0;  ///< appends
  virtual uint64_t written_bytes() const = 0;
  virtual void flush() = 0;   ///< what was written survives a power cut
  virtual void commit() = 0;  ///< at most once
};

/// Nothing remains unless it is committed (AtomicFile).
std::unique_ptr<OutputFile> open_whole_file(const std::string& path);

/// Throws Error{kUsage} naming `option` for no path, "-" and what a file must not replace (a folder, a device),
/// Error{kRuntime} for a folder that is missing or may not be written: known before long work, not after it.
void check_output_path(const std::string& path, const std::string& option);

/// "PATH.part".
std::string part_path(const std::string& path);

/// Bytes are kept in part_path, locked against other processes (Error{kRuntime} if one holds it). `keep_bytes` of
/// what is there already are kept; fewer than that, and nothing is returned.
std::unique_ptr<OutputFile> open_part_file(const std::string& path, uint64_t keep_bytes);

}  // namespace fathom
