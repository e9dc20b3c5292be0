#include "cache/disk_store.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <limits>
#include <system_error>
#include <utility>

#include "cache/xxh64.h"
#include "core/error.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kSuffix = ".fkv";
constexpr size_t kHexDigits = 32;
// A temporary file this old belongs to a writer that died.
constexpr auto kAbandonedAfter = std::chrono::hours(1);

[[noreturn]] void fail(const fs::path& path, const char* doing, int reason) {
  throw Error(ErrorCode::kRuntime, path.string() + ": cannot " + doing + "; expected a folder of your own, got '" +
                                       std::strerror(reason) + "'; try another cache folder");
}

/// Whether the store gave a file this name: 32 hex digits and the suffix, followed by nothing or by a temporary mark.
enum class NameKind { kForeign, kSaved, kTemporary };

NameKind kind_of_name(const std::string& name) {
  if (name.size() < kHexDigits + kSuffix.size()) return NameKind::kForeign;
  const bool hex = std::all_of(name.begin(), name.begin() + kHexDigits,
                               [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); });
  if (!hex || name.compare(kHexDigits, kSuffix.size(), kSuffix) != 0) return NameKind::kForeign;
  const std::string rest = name.substr(kHexDigits + kSuffix.size());
  if (rest.empty()) return NameKind::kSaved;
  return rest.starts_with(".tmp-") ? NameKind::kTemporary : NameKind::kForeign;
}

struct SavedFile {
  fs::path path;
  std::string name;
  NameKind kind;
  uint64_t size_bytes;
  fs::file_time_type last_used;
};

/// The store's files in the folder. Files that vanish meanwhile are left out.
std::vector<SavedFile> list_files(const fs::path& folder) {
  std::vector<SavedFile> files;
  std::error_code error;
  fs::directory_iterator it(folder, error);
  if (error) fail(folder, "be read", error.value());
  for (; it != fs::directory_iterator(); it.increment(error)) {
    if (error) fail(folder, "be read", error.value());
    const std::string name = it->path().filename().string();
    const NameKind kind = kind_of_name(name);
    if (kind == NameKind::kForeign || !fs::is_regular_file(it->symlink_status(error)) || error) continue;
    std::error_code gone;
    const uint64_t size_bytes = it->file_size(gone);
    if (gone) continue;
    const fs::file_time_type last_used = it->last_write_time(gone);
    if (gone) continue;
    files.push_back({it->path(), name, kind, size_bytes, last_used});
  }
  return files;
}

/// Held while files are removed, so that two processes do not both make room for the same bytes.
class FolderLock {
 public:
  explicit FolderLock(const fs::path& folder) {
    const fs::path path = folder / ".lock";
    fd_ = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd_ == -1) fail(path, "be opened", errno);
    while (::flock(fd_, LOCK_EX) != 0) {
      if (errno == EINTR) continue;
      const int reason = errno;
      ::close(fd_);
      fail(path, "be locked", reason);
    }
  }
  ~FolderLock() { ::close(fd_); }
  FolderLock(const FolderLock&) = delete;
  FolderLock& operator=(const FolderLock&) = delete;

 private:
  int fd_;
};

int64_t common_length(std::span<const int32_t> a, std::span<const int32_t> b) {
  return std::mismatch(a.begin(), a.end(), b.begin(), b.end()).first - a.begin();
}

}  // namespace

DiskStore::DiskStore(fs::path folder, uint64_t max_bytes, std::string fingerprint)
    : folder_(std::move(folder)), max_bytes_(max_bytes), fingerprint_(std::move(fingerprint)) {
  std::error_code error;
  if (folder_.has_parent_path()) fs::create_directories(folder_.parent_path(), error);
  if (::mkdir(folder_.c_str(), 0700) != 0 && errno != EEXIST) fail(folder_, "be made", errno);
  struct stat info {};
  if (::stat(folder_.c_str(), &info) != 0) fail(folder_, "be looked at", errno);
  if (!S_ISDIR(info.st_mode)) fail(folder_, "be used", ENOTDIR);
  if (info.st_uid != ::geteuid()) fail(folder_, "be used: it belongs to another user", EPERM);
  if ((info.st_mode & 077) != 0 && ::chmod(folder_.c_str(), 0700) != 0) fail(folder_, "be made private", errno);
}

std::string DiskStore::name_of(std::span<const int32_t> tokens, const CacheLayout& layout) const {
  const std::string kind = fingerprint_ + '\n' + layout.describe() + '\n';
  std::string name;
  for (const uint64_t seed : {uint64_t{0}, uint64_t{1}}) {
    const uint64_t hash = xxh64(tokens.data(), tokens.size_bytes(), xxh64(kind.data(), kind.size(), seed));
    for (int shift = 60; shift >= 0; shift -= 4) name += "0123456789abcdef"[(hash >> shift) & 15];
  }
  return name + std::string(kSuffix);
}

/// Brings entries_ up to what the folder holds. Only files not seen before are opened.
void DiskStore::refresh() {
  std::map<std::string, Entry> now;
  for (const SavedFile& file : list_files(folder_)) {
    if (file.kind != NameKind::kSaved) continue;
    if (const auto known = entries_.find(file.name); known != entries_.end()) {
      now.insert(entries_.extract(known));
      continue;
    }
    Entry entry{false, DType::kF32, {}, 1};
    try {
      const SequenceFile saved(file.path);
      if (saved.fingerprint() == fingerprint_)
        entry = {true, saved.layout().dtype, saved.tokens(), saved.least_tokens()};
    } catch (const Error&) {
      // Gone meanwhile, or damaged: not to be found, and never used again, hence the first to be evicted.
    }
    now.emplace(file.name, std::move(entry));
  }
  entries_ = std::move(now);
}

DiskStore::Hit DiskStore::find(std::span<const int32_t> tokens, std::optional<DType> preferred) {
  refresh();
  Hit best;
  bool best_preferred = false;
  for (const auto& [name, entry] : entries_) {
    if (!entry.is_ours) continue;
    const int64_t n = common_length(entry.tokens, tokens);
    if (n < entry.least_tokens) continue;
    const bool is_preferred = entry.dtype == preferred;
    if (n > best.n_tokens || (n > 0 && n == best.n_tokens && is_preferred && !best_preferred)) {
      best = {name, n};
      best_preferred = is_preferred;
    }
  }
  return best;
}

std::optional<DiskStore::Saving> DiskStore::begin_save(std::span<const int32_t> tokens, const Sequence& sequence) {
  if (tokens.empty()) return std::nullopt;
  refresh();
  Saving saving;
  saving.name_ = name_of(tokens, sequence.pool().layout());
  if (const auto known = entries_.find(saving.name_); known != entries_.end() && known->second.is_ours) {
    ::utimensat(AT_FDCWD, (folder_ / saving.name_).c_str(), nullptr, 0);
    return std::nullopt;
  }
  saving.tokens_.assign(tokens.begin(), tokens.end());
  saving.writer_ = std::make_unique<SequenceWriter>(folder_ / saving.name_, fingerprint_, tokens, sequence, max_bytes_);
  return saving;
}

SequenceWriter::Status DiskStore::save_page(Saving& saving, const Sequence& sequence) {
  const SequenceWriter::Status status = saving.writer_->write_page(sequence);
  if (status != SequenceWriter::Status::kSaved) return status;
  refresh();  // others may have saved meanwhile
  const CacheLayout& layout = sequence.pool().layout();
  for (const auto& [other, entry] : entries_) {
    const auto n = static_cast<int64_t>(entry.tokens.size());
    if (other == saving.name_ || !entry.is_ours || entry.dtype != layout.dtype ||
        common_length(entry.tokens, saving.tokens_) != n)
      continue;
    ::unlink((folder_ / other).c_str());
  }
  evict();
  return status;
}

bool DiskStore::save(std::span<const int32_t> tokens, const Sequence& sequence) {
  if (tokens.empty()) return false;
  std::optional<Saving> saving = begin_save(tokens, sequence);
  auto status = saving ? SequenceWriter::Status::kMore : SequenceWriter::Status::kSaved;
  while (status == SequenceWriter::Status::kMore) status = save_page(*saving, sequence);
  return status == SequenceWriter::Status::kSaved;
}

int64_t DiskStore::match_length(std::span<const int32_t> tokens) { return find(tokens, std::nullopt).n_tokens; }

std::optional<Sequence> DiskStore::restore(std::span<const int32_t> tokens, PagePool& pool) {
  const Hit hit = find(tokens, pool.layout().dtype);
  if (hit.n_tokens == 0) return std::nullopt;
  const fs::path path = folder_ / hit.name;
  try {
    const SequenceFile file(path);
    file.check_fits(fingerprint_, pool.layout(), std::numeric_limits<int64_t>::max(),
                    std::numeric_limits<int64_t>::max());
    std::optional<Sequence> sequence = file.read(pool, common_length(file.tokens(), tokens));
    if (sequence) ::utimensat(AT_FDCWD, path.c_str(), nullptr, 0);
    return sequence;
  } catch (const Error& e) {
    std::error_code error;
    if (!fs::exists(path, error)) return std::nullopt;  // another process made room
    if (e.code() != ErrorCode::kModel) throw;
    ::unlink(path.c_str());
    entries_.erase(hit.name);
    throw;
  }
}

void DiskStore::evict() {
  const FolderLock lock(folder_);
  std::vector<SavedFile> files = list_files(folder_);
  std::sort(files.begin(), files.end(),
            [](const SavedFile& a, const SavedFile& b) { return a.last_used < b.last_used; });
  const auto abandoned = fs::file_time_type::clock::now() - kAbandonedAfter;
  uint64_t total = 0;
  for (const SavedFile& file : files) {
    if (file.kind == NameKind::kSaved) total += file.size_bytes;
    if (file.kind == NameKind::kTemporary && file.last_used < abandoned) ::unlink(file.path.c_str());
  }
  for (const SavedFile& file : files) {
    if (total <= max_bytes_) break;
    if (file.kind != NameKind::kSaved || ::unlink(file.path.c_str()) != 0) continue;
    entries_.erase(file.name);
    total -= file.size_bytes;
  }
}

uint64_t DiskStore::used_bytes() const {
  uint64_t total = 0;
  for (const SavedFile& file : list_files(folder_)) {
    if (file.kind == NameKind::kSaved) total += file.size_bytes;
  }
  return total;
}

}  // namespace fathom
