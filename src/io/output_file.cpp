#include "io/output_file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "core/atomic_file.h"
#include "core/error.h"
#include "core/file_io.h"
#include "core/printable.h"

namespace fathom {
namespace {

class WholeFile final : public OutputFile {
 public:
  explicit WholeFile(const std::string& path) : file_(path) {}
  void write(const void* data, size_t size_bytes) override { file_.write(data, size_bytes); }
  uint64_t written_bytes() const override { return file_.written_bytes(); }
  void flush() override {}  // a process that dies leaves nothing to keep
  void commit() override { file_.commit(); }

 private:
  AtomicFile file_;
};

class PartFile final : public OutputFile {
 public:
  explicit PartFile(const std::string& path) : path_(path), part_(path + ".part") {
    fd_ = ::open(part_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0644);
    if (fd_ < 0) fail("create it");
    if (::flock(fd_, LOCK_EX | LOCK_NB) != 0) {
      ::close(fd_);
      throw Error(ErrorCode::kRuntime,
                  printable(part_, 400) +
                      ": another process is writing it; expected to be alone, got a lock; try again when it is done");
    }
  }
  ~PartFile() override {
    if (fd_ >= 0) ::close(fd_);
  }

  uint64_t size_on_disk() const {
    struct stat about {};
    if (::fstat(fd_, &about) != 0) fail("look at it");
    return static_cast<uint64_t>(about.st_size);
  }
  void keep(uint64_t n_bytes) {
    if (::ftruncate(fd_, static_cast<off_t>(n_bytes)) != 0) fail("cut it to a whole tensor");
    written_bytes_ = n_bytes;
  }

  void write(const void* data, size_t size_bytes) override {
    if (!write_whole(fd_, written_bytes_, data, size_bytes)) fail("write");
    written_bytes_ += size_bytes;
  }
  uint64_t written_bytes() const override { return written_bytes_; }
  void flush() override {
    if (::fdatasync(fd_) != 0) fail("flush it to the disk");
  }
  void commit() override {
    if (::fsync(fd_) != 0) fail("flush it to the disk");
    if (::rename(part_.c_str(), path_.c_str()) != 0) fail("put it in place");
    ::close(fd_);
    fd_ = -1;
    sync_folder_of(path_);
  }

 private:
  [[noreturn]] void fail(const char* doing) const {
    throw Error(ErrorCode::kRuntime, printable(part_, 400) + ": cannot " + doing +
                                         "; expected a writable folder with room, got '" + std::strerror(errno) +
                                         "'; try another place");
  }

  std::string path_, part_;
  int fd_ = -1;
  uint64_t written_bytes_ = 0;
};

}  // namespace

std::unique_ptr<OutputFile> open_whole_file(const std::string& path) { return std::make_unique<WholeFile>(path); }

std::unique_ptr<OutputFile> open_part_file(const std::string& path, uint64_t keep_bytes) {
  auto file = std::make_unique<PartFile>(path);
  if (file->size_on_disk() < keep_bytes) return nullptr;
  file->keep(keep_bytes);
  return file;
}

}  // namespace fathom
