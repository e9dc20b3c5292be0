#include "io/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <mutex>
#include <utility>

#include "core/error.h"
#include "core/printable.h"

namespace fathom {

// The handler walks these without locks, so an entry is never freed, only marked empty (begin 0) and taken again.
class MappedRange {
 public:
  std::atomic<uintptr_t> begin{0};
  std::atomic<uintptr_t> end{0};
  std::atomic<int> fd{-1};
  std::atomic<bool> truncated{false};
  bool taken = false;  // under registry_mutex
  MappedRange* next = nullptr;
};

namespace {

std::mutex registry_mutex;
std::atomic<MappedRange*> registry_head{nullptr};
struct sigaction previous_handler;
uintptr_t page_bytes = 0;  // set before the handler is installed: sysconf is not for signal handlers

MappedRange* add_range(const std::byte* data, size_t size_bytes, int fd) {
  const std::lock_guard lock(registry_mutex);
  MappedRange* range = registry_head.load();
  while (range != nullptr && range->taken) range = range->next;
  if (range == nullptr) {
    range = new MappedRange;
    range->next = registry_head.load();
    registry_head.store(range);
  }
  range->taken = true;
  range->truncated = false;
  range->fd = fd;
  range->end = reinterpret_cast<uintptr_t>(data) + size_bytes;
  range->begin = reinterpret_cast<uintptr_t>(data);  // last: from here on the handler sees it
  return range;
}

void remove_range(MappedRange* range) {
  const std::lock_guard lock(registry_mutex);
  range->begin = 0;
  range->end = 0;
  range->fd = -1;
  range->taken = false;
}

// Puts zeros where the file's bytes are gone. All calls here are plain system calls, safe in a signal handler.
bool replace_with_zeros(uintptr_t address) {
  for (MappedRange* range = registry_head.load(); range != nullptr; range = range->next) {
    const uintptr_t begin = range->begin;
    const uintptr_t end = range->end;
    if (begin == 0 || address < begin || address >= end) continue;
    const uintptr_t page = address & ~(page_bytes - 1);
    uintptr_t n_bytes = page_bytes;
    struct stat status;
    // Cut short: replace the whole tail, or every page of it would come here. Otherwise one page could not be read.
    if (::fstat(range->fd, &status) == 0 && static_cast<uintptr_t>(status.st_size) <= page - begin)
      n_bytes = end - page;
    if (::mmap(reinterpret_cast<void*>(page), n_bytes, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) ==
        MAP_FAILED)
      return false;
    range->truncated = true;
    return true;
  }
  return false;
}

void on_bus_error(int signal, siginfo_t* info, void* context) {
  const int saved_errno = errno;
  if (replace_with_zeros(reinterpret_cast<uintptr_t>(info->si_addr))) {
    errno = saved_errno;
    return;
  }
  errno = saved_errno;
  if ((previous_handler.sa_flags & SA_SIGINFO) != 0 && previous_handler.sa_sigaction != nullptr) {
    previous_handler.sa_sigaction(signal, info, context);
  } else if (previous_handler.sa_handler != SIG_DFL && previous_handler.sa_handler != SIG_IGN) {
    previous_handler.sa_handler(signal);
  } else {
    ::sigaction(SIGBUS, &previous_handler, nullptr);  // the access is repeated and meets the default action
  }
}

[[noreturn]] void refuse(const std::string& path, const std::string& what, const std::string& hint) {
  throw Error(ErrorCode::kModel, printable(path, 400) + ": " + what + "; " + hint);
}

const char* kind_of_file(mode_t mode) {
  if (S_ISDIR(mode)) return "a folder";
  if (S_ISFIFO(mode)) return "a FIFO";
  if (S_ISCHR(mode)) return "a character device";
  if (S_ISBLK(mode)) return "a block device";
  if (S_ISSOCK(mode)) return "a socket";
  return "something else";
}

[[noreturn]] void refuse_open(const std::string& path, int error) {
  const std::string expected =
      "expected a readable regular file, got '" + std::string(std::strerror(error)) + "'; try ";
  if (error == ELOOP) refuse(path, "cannot open, too many symbolic links", expected + "the path of the file itself");
  if (error == EACCES || error == EPERM)
    refuse(path, "cannot open, not readable by this user", expected + "chmod or another user");
  refuse(path, error == ENOENT ? "no such file" : "cannot open", expected + "another path");
}

}  // namespace

std::shared_ptr<MappedFile> MappedFile::open(const std::string& path) {
  if (path.find('\0') != std::string::npos)
    refuse(path, "not a path", "expected no zero bytes in it, got one; try another path");
  // O_NONBLOCK: opening a FIFO or a device must come back at once; on regular files it does nothing.
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
  if (fd < 0) refuse_open(path, errno);
  struct stat status;
  if (::fstat(fd, &status) != 0) {
    const int error = errno;
    ::close(fd);
    refuse_open(path, error);
  }
  if (!S_ISREG(status.st_mode)) {
    ::close(fd);
    refuse(
        path, "not a regular file",
        std::string("expected a regular file, got ") + kind_of_file(status.st_mode) + "; try the path of a model file");
  }
  const auto size = static_cast<size_t>(status.st_size);
  void* data = nullptr;
  if (size > 0) {
    data = ::mmap(nullptr, size, PROT_READ, MAP_SHARED, fd, 0);
    if (data == MAP_FAILED) {
      const int error = errno;
      ::close(fd);
      refuse(path, "cannot map " + std::to_string(size) + " bytes into memory",
             "expected room in the address space, got '" + std::string(std::strerror(error)) +
                 "'; try ulimit -v unlimited");
    }
  }
  return std::shared_ptr<MappedFile>(new MappedFile(path, fd, static_cast<std::byte*>(data), size));
}

MappedFile::MappedFile(std::string path, int fd, std::byte* data, size_t size_bytes)
    : Buffer(data, size_bytes), path_(std::move(path)), fd_(fd) {
  if (size_bytes > 0) range_ = add_range(data, size_bytes, fd);
}

MappedFile::~MappedFile() {
  if (range_ != nullptr) {
    remove_range(range_);
    ::munmap(data_, size_bytes_);
  }
  ::close(fd_);
}

void MappedFile::advise(Access access, uint64_t offset, uint64_t n_bytes) const {
  FATHOM_CHECK(offset <= size_bytes_ && n_bytes <= size_bytes_ - offset, "advice for bytes outside " + path_);
  if (n_bytes == 0) return;
  const uint64_t begin = offset & ~static_cast<uint64_t>(::sysconf(_SC_PAGESIZE) - 1);
  ::madvise(data_ + begin, offset + n_bytes - begin, access == Access::kHugePages ? MADV_HUGEPAGE : MADV_DONTNEED);
}

double MappedFile::resident_fraction(uint64_t offset, uint64_t n_bytes, int n_samples) const {
  FATHOM_CHECK(offset <= size_bytes_ && n_bytes <= size_bytes_ - offset, "a question about bytes outside " + path_);
  if (n_bytes == 0 || n_samples <= 0) return 1.0;
  const auto page = static_cast<uint64_t>(::sysconf(_SC_PAGESIZE));
  const uint64_t first_page = offset / page;
  const uint64_t n_pages = (offset + n_bytes - 1) / page - first_page + 1;
  const uint64_t n = std::min(n_pages, static_cast<uint64_t>(n_samples));
  uint64_t n_resident = 0;
  for (uint64_t i = 0; i < n; ++i) {
    unsigned char present = 0;
    const uint64_t at = (first_page + static_cast<uint64_t>(static_cast<double>(i) * static_cast<double>(n_pages) /
                                                            static_cast<double>(n))) *
                        page;
    if (::mincore(data_ + at, 1, &present) == 0 && (present & 1) != 0) ++n_resident;
  }
  return static_cast<double>(n_resident) / static_cast<double>(n);
}

bool MappedFile::was_truncated() const { return range_ != nullptr && range_->truncated; }

void MappedFile::check_intact() const {
  struct stat status;
  const bool known = ::fstat(fd_, &status) == 0;
  if (known && static_cast<uint64_t>(status.st_size) < size_bytes_) {
    refuse(path_, "the file became smaller while it was in use",
           "expected " + std::to_string(size_bytes_) + " bytes, got " + std::to_string(status.st_size) +
               "; try to restore the file and load it again");
  }
  if (was_truncated()) {
    refuse(path_, "part of the file could not be read while it was in use",
           "expected its bytes, got an error of the disk or a cut; try to load it again");
  }
}

void install_mapped_file_guard() {
  static std::once_flag once;
  std::call_once(once, [] {
    page_bytes = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
    struct sigaction action = {};
    action.sa_sigaction = on_bus_error;
    action.sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK;
    sigemptyset(&action.sa_mask);
    ::sigaction(SIGBUS, &action, &previous_handler);
  });
}

}  // namespace fathom
