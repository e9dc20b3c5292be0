#include "core/file_io.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <fstream>
#include <iterator>

namespace fathom {

bool write_whole(int fd, uint64_t offset_bytes, const void* data, size_t size_bytes) {
  constexpr size_t kMaxWriteBytes = size_t{1} << 30;  // Linux moves at most 2 GiB a call
  const auto* bytes = static_cast<const std::byte*>(data);
  while (size_bytes > 0) {
    const ssize_t n = ::pwrite(fd, bytes, std::min(size_bytes, kMaxWriteBytes), static_cast<off_t>(offset_bytes));
    if (n < 0) {
      if (errno == EINTR) continue;
      return false;
    }
    bytes += n;
    size_bytes -= static_cast<size_t>(n);
    offset_bytes += static_cast<uint64_t>(n);
  }
  return true;
}

void sync_folder_of(const std::filesystem::path& path) {
  const std::filesystem::path folder = path.has_parent_path() ? path.parent_path() : std::filesystem::path(".");
  const int fd = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd == -1) return;
  ::fsync(fd);
  ::close(fd);
}

std::optional<std::string> read_whole(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  if (!file.is_open() || file.bad()) return std::nullopt;
  return text;
}

std::optional<uint64_t> meminfo_bytes(std::string_view field) {
  std::ifstream file("/proc/meminfo");
  std::string key, unit;
  uint64_t kib = 0;
  while (file >> key >> kib && std::getline(file, unit)) {
    if (key.ends_with(':') && std::string_view(key).substr(0, key.size() - 1) == field) return kib * 1024;
  }
  return std::nullopt;
}

}  // namespace fathom
