// A file seen as memory: read-only, checked to be a regular file, and guarded against being cut short while it is
// mapped.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "core/buffer.h"

namespace fathom {

class MappedRange;  // a mapping as the SIGBUS handler sees it

/// Read-only mapping of a whole file. Writing through data() is a segmentation fault. Const use from many threads is
/// fine.
///
/// A file replaced by rename leaves the mapping as it was. A file cut short in place does not: touching pages behind
/// the new end raises SIGBUS. With install_mapped_file_guard() such pages read as zeros instead and was_truncated()
/// turns true for good; whoever computed from the mapping calls check_intact() afterwards and drops what it computed.
class MappedFile final : public Buffer {
 public:
  /// Maps `path`. Symbolic links are followed. Throws Error{kModel} naming the path where there is no such file, it
  /// cannot be read, or it is not a regular file (folder, FIFO, device, socket, loop of links); never blocks on one.
  static std::shared_ptr<MappedFile> open(const std::string& path);
  ~MappedFile() override;

  BufferKind kind() const override { return BufferKind::kMappedFile; }
  const std::string& path() const { return path_; }

  /// How the bytes [offset, offset + n) will be read. Hints: the system may ignore them.
  enum class Access {
    kHugePages,  ///< what is not yet in memory comes in 2 MiB pages (xfs, ext4 from Linux 6.16, tmpfs)
    kDontNeed,   ///< the pages may leave memory
  };
  void advise(Access access) const { advise(access, 0, size_bytes()); }
  void advise(Access access, uint64_t offset, uint64_t n_bytes) const;

  /// Estimated part (0..1) of [offset, offset + n) that is in memory now, from at most n_samples pages spread evenly.
  /// Linux answers 1 for files that this user neither owns nor may write.
  double resident_fraction(uint64_t offset, uint64_t n_bytes, int n_samples = 256) const;

  /// True once a page of the mapping could not be read and was replaced by zeros (only with the guard installed).
  bool was_truncated() const;
  /// Throws Error{kModel} if was_truncated() or the file is now smaller than the mapping. One fstat: cheap, call it
  /// after every forward pass over the mapping.
  void check_intact() const;

 private:
  MappedFile(std::string path, int fd, std::byte* data, size_t size_bytes);

  std::string path_;
  int fd_;
  MappedRange* range_ = nullptr;  ///< lives for ever, reused; null for an empty file
};

/// Installs the SIGBUS handler described at MappedFile, once per process; later calls do nothing. Faults outside every
/// mapped file go to the handler that was there before (by default they end the process). Call it from main before
/// opening models.
void install_mapped_file_guard();

}  // namespace fathom
