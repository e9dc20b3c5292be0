#include "core/atomic_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <string>

#include "core/error.h"
#include "core/file_io.h"

namespace fathom {
namespace {

constexpr int kClosed = -1;
/// Written bytes start on their way to the disk in pieces of this size: otherwise all of them wait for commit(), which
/// would keep a server's answers waiting for seconds behind a long text that is saved.
constexpr uint64_t kWritebackBytes = uint64_t{8} << 20;

std::filesystem::path temporary_name(const std::filesystem::path& path) {
  static std::atomic<uint64_t> counter{0};
  std::filesystem::path name = path;
  name += ".tmp-" + std::to_string(::getpid()) + "-" + std::to_string(counter++);
  return name;
}

}  // namespace

AtomicFile::AtomicFile(std::filesystem::path path, mode_t mode)
    : path_(std::move(path)), temporary_(temporary_name(path_)) {
  std::error_code ignored;
  const std::filesystem::file_status there = std::filesystem::status(path_, ignored);
  if (std::filesystem::exists(there) && !std::filesystem::is_regular_file(there)) {
    throw Error(ErrorCode::kRuntime, path_.string() +
                                         ": no regular file, and not to be replaced by one; expected the path of a "
                                         "file, got a folder or a device; try another path");
  }
  // A leftover of a dead process that had our pid is nobody's: replace it.
  ::unlink(temporary_.c_str());
  fd_ = ::open(temporary_.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, mode);
  if (fd_ == kClosed) fail("create a temporary file beside it");
}

AtomicFile::~AtomicFile() {
  if (fd_ == kClosed) return;
  ::close(fd_);
  ::unlink(temporary_.c_str());
}

void AtomicFile::fail(const char* doing) const {
  const int reason = errno;
  throw Error(ErrorCode::kRuntime, path_.string() + ": cannot " + doing +
                                       "; expected a writable folder with room, got '" + std::strerror(reason) +
                                       "'; try another place");
}

void AtomicFile::write(const void* data, size_t size_bytes) {
  FATHOM_CHECK(fd_ != kClosed, "write after commit");
  if (!write_whole(fd_, written_bytes_, data, size_bytes)) fail("write");
  written_bytes_ += size_bytes;
  if (written_bytes_ - sent_bytes_ < kWritebackBytes) return;
  ::sync_file_range(fd_, static_cast<off_t>(sent_bytes_), static_cast<off_t>(written_bytes_ - sent_bytes_),
                    SYNC_FILE_RANGE_WRITE);  // a hint: what it refuses, commit() reports
  sent_bytes_ = written_bytes_;
}

void AtomicFile::write_at(uint64_t offset_bytes, const void* data, size_t size_bytes) {
  FATHOM_CHECK(fd_ != kClosed, "write after commit");
  FATHOM_CHECK(offset_bytes <= written_bytes_ && size_bytes <= written_bytes_ - offset_bytes,
               "write_at reaches past what was written");
  if (!write_whole(fd_, offset_bytes, data, size_bytes)) fail("write");
}

void AtomicFile::commit() {
  FATHOM_CHECK(fd_ != kClosed, "a second commit");
  if (::fsync(fd_) != 0) fail("flush it to the disk");
  if (::rename(temporary_.c_str(), path_.c_str()) != 0) fail("put it in place");
  ::close(fd_);
  fd_ = kClosed;
  sync_folder_of(path_);
}

}  // namespace fathom
