// A file that appears whole or not at all: written beside its place, flushed to the disk, renamed.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <filesystem>

namespace fathom {

/// Collects bytes in a temporary file in the folder of `path`; commit() puts it in place of whatever stood there.
/// Until then readers see the old file; after a crash at any moment they see the old or the new one. Destroyed without
/// a commit, the temporary file is removed. Temporary names are the path plus ".tmp-PID-N". One thread at a time.
class AtomicFile {
 public:
  /// Throws Error{kRuntime} naming the path if the temporary file cannot be made. The folder must exist.
  explicit AtomicFile(std::filesystem::path path, mode_t mode = 0644);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  /// Appends. Throws Error{kRuntime} with the system's reason (disk full, quota).
  void write(const void* data, size_t size_bytes);
  /// Overwrites bytes already written, for headers whose content is known last (checked: stays within written_bytes()).
  void write_at(uint64_t offset_bytes, const void* data, size_t size_bytes);
  uint64_t written_bytes() const { return written_bytes_; }

  /// fsync, rename, fsync of the folder. Throws Error{kRuntime}; the old file then still stands. At most once.
  void commit();

 private:
  [[noreturn]] void fail(const char* doing) const;

  std::filesystem::path path_;
  std::filesystem::path temporary_;
  int fd_;
  uint64_t written_bytes_ = 0, sent_bytes_ = 0;
};

}  // namespace fathom
