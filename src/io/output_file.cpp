#include "io/output_file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>

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
  explicit PartFile(const std::string& path) : path_(path), part_(part_path(path)) {
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

void check_output_path(const std::string& path, const std::string& option) {
  if (path.empty() || path == "-")
    throw Error(ErrorCode::kUsage, option + ": nowhere to write; expected the path of a file, got " +
                                       (path.empty() ? "none" : "'-': the file cannot go to standard output"));
  const std::filesystem::path file(path);
  std::error_code ignored;
  if (std::filesystem::is_directory(file, ignored))
    throw Error(ErrorCode::kUsage,
                option + ": a folder; expected the path of a file, got " + in_quotes(path) + "; try a name in it");
  if (std::filesystem::exists(file, ignored) && !std::filesystem::is_regular_file(file, ignored))
    throw Error(ErrorCode::kUsage, option +
                                       ": a device or pipe, which a file would replace; expected the path of a file, "
                                       "got " +
                                       in_quotes(path));
  const std::string folder = file.has_parent_path() ? file.parent_path().string() : ".";
  if (::access(folder.c_str(), W_OK | X_OK) != 0)
    throw Error(ErrorCode::kRuntime, option + ": " + printable(path, 400) +
                                         ": cannot be created; expected a writable folder, got '" +
                                         std::strerror(errno) + "'; try another place");
}

std::string part_path(const std::string& path) { return path + ".part"; }

std::unique_ptr<OutputFile> open_whole_file(const std::string& path) { return std::make_unique<WholeFile>(path); }

std::unique_ptr<OutputFile> open_part_file(const std::string& path, uint64_t keep_bytes) {
  auto file = std::make_unique<PartFile>(path);
  if (file->size_on_disk() < keep_bytes) return nullptr;
  file->keep(keep_bytes);
  return file;
}

}  // namespace fathom
