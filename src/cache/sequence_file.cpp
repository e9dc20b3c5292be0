#include "cache/sequence_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zstd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstddef>
#include <cstring>

#include "cache/xxh64.h"
#include "core/error.h"
#include "core/quant/dequantize.h"
#include "core/quant/fp8.h"
#include "core/quant/quantize.h"

namespace fathom {
namespace {

static_assert(std::endian::native == std::endian::little, "the file is little endian");

constexpr char kMagic[8] = {'F', 'A', 'T', 'H', 'O', 'M', 'K', 'V'};
constexpr int kClosed = -1;
// On bf16 rows of normal values, one thread: level 1 leaves 0.77 of the bytes at 590 MB/s, level 3 0.73 at 300 MB/s.
constexpr int kCompressionLevel = 1;
constexpr uint32_t kMaxLayers = 65536;
constexpr int64_t kMaxRowElements = int64_t{1} << 24;
constexpr uint32_t kMaxRecentTokens = uint32_t{1} << 30;

struct FixedHeader {
  char magic[8];
  uint32_t version;
  uint32_t dtype;
  uint64_t file_bytes;
  uint32_t fingerprint_bytes;
  uint32_t n_layers;
  uint64_t n_tokens;
};
static_assert(sizeof(FixedHeader) == 40);

/// Follows in files of kRecentRowsVersion.
struct RecentHeader {
  uint32_t n_recent;
  uint32_t recent_tokens;
  uint64_t first_recent;
};
static_assert(sizeof(RecentHeader) == 16);

struct PageHeader {
  uint64_t checksum;
  uint64_t data_bytes;
};
static_assert(sizeof(PageHeader) == 16);

/// One kind of a page's rows: of a layer, or recent ones.
struct RowKind {
  bool is_recent;
  int idx;
  DType dtype;
  int64_t elements;
};

/// All kinds in the order of the file.
std::vector<RowKind> row_kinds(const CacheLayout& layout, bool with_recent) {
  std::vector<RowKind> kinds;
  for (int i = 0; i < layout.n_layers; ++i)
    kinds.push_back({false, i, layout.dtype, layout.row_elements[static_cast<size_t>(i)]});
  for (int i = 0; i < static_cast<int>(layout.recent.size()) && with_recent; ++i) {
    const TokenRows& rows = layout.recent[static_cast<size_t>(i)];
    kinds.push_back({true, i, rows.dtype, rows.elements});
  }
  return kinds;
}

size_t row_count(const CacheLayout& layout, const RowKind& kind, size_t n_tokens) {
  return kind.is_recent ? n_tokens : static_cast<size_t>(layout.n_rows(kind.idx, static_cast<int64_t>(n_tokens)));
}

/// Bytes per element of types that are split into planes; 1 for those that are stored as they are.
size_t plane_count(DType dtype) {
  const DTypeInfo& info = dtype_info(dtype);
  return info.block_elements == 1 ? static_cast<size_t>(info.block_bytes) : 1;
}

void split_planes(const std::byte* elements, std::byte* planes, size_t size_bytes, size_t n_planes) {
  const size_t n = size_bytes / n_planes;
  for (size_t k = 0; k < n_planes; ++k) {
    for (size_t i = 0; i < n; ++i) planes[k * n + i] = elements[i * n_planes + k];
  }
}

void join_planes(const std::byte* planes, std::byte* elements, size_t size_bytes, size_t n_planes) {
  const size_t n = size_bytes / n_planes;
  for (size_t k = 0; k < n_planes; ++k) {
    for (size_t i = 0; i < n; ++i) elements[i * n_planes + k] = planes[k * n + i];
  }
}

void encode_row(DType dtype, const float* src, void* dst, int64_t n) {
  if (dtype == DType::kF8_E4M3) {
    auto* bytes = static_cast<uint8_t*>(dst);
    for (int64_t i = 0; i < n; ++i) bytes[i] = f32_to_f8_e4m3(src[i]);
  } else {
    quantize_row(dtype, src, dst, n, nullptr);
  }
}

template <typename T> void append(std::vector<std::byte>& out, std::span<const T> values) {
  const auto bytes = std::as_bytes(values);
  out.insert(out.end(), bytes.begin(), bytes.end());
}

/// For messages: a file may hold anything under this name.
std::string shown(std::string_view text) {
  constexpr size_t kMost = 200;
  std::string out = "'";
  for (const char c : text.substr(0, kMost)) out += c >= ' ' && c <= '~' ? c : '?';
  return out + (text.size() > kMost ? "...'" : "'");
}

int64_t tokens_in_page(int64_t n_tokens, int64_t page) {
  return std::min<int64_t>(kPageTokens, n_tokens - page * kPageTokens);
}

}  // namespace

struct SequenceWriter::Compressor {
  explicit Compressor(const CacheLayout& layout)
      : plain(layout.page_bytes() + layout.recent_page_bytes()), packed(ZSTD_compressBound(plain.size())) {}

  const std::unique_ptr<ZSTD_CCtx, decltype(&ZSTD_freeCCtx)> context{ZSTD_createCCtx(), &ZSTD_freeCCtx};
  std::vector<std::byte> plain, packed;  ///< a page's rows before and after
  std::vector<std::byte> fetched;        ///< of a device
};

SequenceWriter::SequenceWriter(const std::filesystem::path& path, std::string_view fingerprint,
                               std::span<const int32_t> tokens, const Sequence& sequence, uint64_t max_file_bytes)
    : file_(path, 0600),
      max_file_bytes_(max_file_bytes),
      n_tokens_(static_cast<int64_t>(tokens.size())),
      first_recent_(sequence.first_recent()),
      compressor_(std::make_unique<Compressor>(sequence.pool().layout())) {
  FATHOM_CHECK(n_tokens_ <= sequence.length(), "more token ids than cached tokens");
  FATHOM_CHECK(sequence.resumable(n_tokens_) == n_tokens_, "a text is saved that cannot go on");
  FATHOM_CHECK(fingerprint.size() <= kMaxFingerprintBytes, "a fingerprint of more than 4096 bytes");
  const CacheLayout& layout = sequence.pool().layout();

  FixedHeader fixed{};
  std::memcpy(fixed.magic, kMagic, sizeof(kMagic));
  const bool has_kinds = layout.has_recent() || !layout.tokens_per_row.empty();
  fixed.version = has_kinds ? kRecentRowsVersion : kSequenceFileVersion;
  fixed.dtype = static_cast<uint32_t>(layout.dtype);
  fixed.fingerprint_bytes = static_cast<uint32_t>(fingerprint.size());
  fixed.n_layers = static_cast<uint32_t>(layout.n_layers);
  fixed.n_tokens = static_cast<uint64_t>(n_tokens_);
  append(header_, std::span<const FixedHeader>(&fixed, 1));
  if (has_kinds) {
    const RecentHeader recent{static_cast<uint32_t>(layout.recent.size()), static_cast<uint32_t>(layout.recent_tokens),
                              static_cast<uint64_t>(first_recent_)};
    append(header_, std::span<const RecentHeader>(&recent, 1));
  }
  append(header_, std::span(fingerprint));
  append(header_, std::span<const int64_t>(layout.row_elements));
  if (has_kinds) {
    std::vector<int64_t> kinds = layout.tokens_per_row;
    kinds.resize(static_cast<size_t>(layout.n_layers), 1);
    for (const TokenRows& rows : layout.recent) {
      kinds.push_back(rows.elements);
      kinds.push_back(static_cast<int64_t>(rows.dtype));
    }
    append(header_, std::span<const int64_t>(kinds));
  }
  append(header_, tokens);
  file_.write(header_.data(), header_.size());
  const uint64_t no_checksum_yet = 0;
  file_.write(&no_checksum_yet, sizeof(no_checksum_yet));
}

SequenceWriter::~SequenceWriter() = default;

SequenceWriter::Status SequenceWriter::write_page(const Sequence& sequence) {
  const PagePool& pool = sequence.pool();
  const CacheLayout& layout = pool.layout();
  FATHOM_CHECK(sequence.length() >= n_tokens_ && sequence.first_recent() == first_recent_, "another sequence's pages");
  if (next_page_ * kPageTokens < n_tokens_) {
    auto& [context, plain, packed, fetched] = *compressor_;
    const auto in_page = static_cast<size_t>(tokens_in_page(n_tokens_, next_page_));
    const int32_t page_id = sequence.pages()[static_cast<size_t>(next_page_)];
    size_t filled = 0;
    for (const RowKind& kind : row_kinds(layout, next_page_ >= first_recent_)) {
      const size_t size_bytes = row_count(layout, kind, in_page) * row_bytes(kind.dtype, kind.elements);
      const std::byte* rows = kind.is_recent ? pool.read_recent(kind.idx, page_id, static_cast<int>(in_page), fetched)
                                             : pool.read_rows(kind.idx, page_id, static_cast<int>(in_page), fetched);
      split_planes(rows, plain.data() + filled, size_bytes, plane_count(kind.dtype));
      filled += size_bytes;
    }
    const size_t packed_bytes =
        ZSTD_compressCCtx(context.get(), packed.data(), packed.size(), plain.data(), filled, kCompressionLevel);
    FATHOM_CHECK(!ZSTD_isError(packed_bytes), ZSTD_getErrorName(packed_bytes));
    const PageHeader page_header{xxh64(packed.data(), packed_bytes), packed_bytes};
    file_.write(&page_header, sizeof(page_header));
    file_.write(packed.data(), packed_bytes);
    ++next_page_;
  }
  if (file_.written_bytes() > max_file_bytes_) return Status::kTooLarge;
  if (next_page_ * kPageTokens < n_tokens_) return Status::kMore;

  const uint64_t file_bytes = file_.written_bytes();
  std::memcpy(header_.data() + offsetof(FixedHeader, file_bytes), &file_bytes, sizeof(file_bytes));
  const uint64_t checksum = xxh64(header_.data(), header_.size());
  file_.write_at(0, header_.data(), sizeof(FixedHeader));
  file_.write_at(header_.size(), &checksum, sizeof(checksum));
  file_.commit();
  return Status::kSaved;
}

SequenceFile::SequenceFile(std::filesystem::path path) : path_(std::move(path)) {
  // Without O_NONBLOCK opening a pipe would wait for a writer for ever.
  fd_ = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd_ == kClosed) refuse("cannot be opened", "a saved session", std::strerror(errno), "another path");
  try {
    read_header();
  } catch (...) {
    ::close(fd_);
    throw;
  }
}

SequenceFile::~SequenceFile() { ::close(fd_); }

void SequenceFile::refuse(const std::string& what, const std::string& expected, const std::string& got,
                          const std::string& advice) const {
  throw Error(ErrorCode::kModel,
              path_.string() + ": " + what + "; expected " + expected + ", got " + got + "; try " + advice);
}

void SequenceFile::read_at(uint64_t offset, void* data, size_t size_bytes) const {
  auto* bytes = static_cast<std::byte*>(data);
  while (size_bytes > 0) {
    const ssize_t n = ::pread(fd_, bytes, std::min<size_t>(size_bytes, size_t{1} << 30), static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) {
      refuse("cannot be read at byte " + std::to_string(offset), std::to_string(size_bytes) + " more bytes",
             n == 0 ? "the end of the file" : std::strerror(errno), "saving the session again");
    }
    bytes += n;
    size_bytes -= static_cast<size_t>(n);
    offset += static_cast<uint64_t>(n);
  }
}

void SequenceFile::read_header() {
  const std::string again = "saving the session again";
  struct stat info {};
  if (::fstat(fd_, &info) != 0 || !S_ISREG(info.st_mode))
    refuse("is not a file", "a saved session", "something else", "another path");
  file_bytes_ = static_cast<uint64_t>(info.st_size);
  FixedHeader fixed{};
  if (file_bytes_ < sizeof(fixed) + sizeof(uint64_t)) {
    refuse("is too short for a saved session", "at least 48 bytes", std::to_string(file_bytes_), again);
  }
  read_at(0, &fixed, sizeof(fixed));
  if (std::memcmp(fixed.magic, kMagic, sizeof(kMagic)) != 0) {
    refuse("is not a saved session", "FATHOMKV at byte 0", "other bytes", "another path");
  }
  if (fixed.version != kSequenceFileVersion && fixed.version != kRecentRowsVersion) {
    refuse("has another format version",
           std::to_string(kSequenceFileVersion) + " or " + std::to_string(kRecentRowsVersion),
           std::to_string(fixed.version), again);
  }
  const bool has_kinds = fixed.version == kRecentRowsVersion;
  if (fixed.file_bytes != file_bytes_) {
    refuse("is truncated or damaged", std::to_string(fixed.file_bytes) + " bytes", std::to_string(file_bytes_), again);
  }
  if (fixed.fingerprint_bytes > kMaxFingerprintBytes || (fixed.n_layers == 0 && !has_kinds) ||
      fixed.n_layers > kMaxLayers || fixed.n_tokens > file_bytes_ / sizeof(int32_t)) {
    refuse("is damaged at byte 24", "sizes that fit the file",
           std::to_string(fixed.fingerprint_bytes) + " fingerprint bytes, " + std::to_string(fixed.n_layers) +
               " layers, " + std::to_string(fixed.n_tokens) + " tokens",
           again);
  }
  RecentHeader recent{};
  if (has_kinds && file_bytes_ >= sizeof(fixed) + sizeof(recent)) read_at(sizeof(fixed), &recent, sizeof(recent));
  if (recent.n_recent > kMaxLayers || recent.recent_tokens > kMaxRecentTokens ||
      recent.first_recent > fixed.n_tokens / kPageTokens + 1) {
    refuse("is damaged at byte 40", "recent rows that fit the file",
           std::to_string(recent.n_recent) + " kinds for " + std::to_string(recent.recent_tokens) +
               " tokens from page " + std::to_string(recent.first_recent),
           again);
  }
  const uint64_t kinds = has_kinds ? uint64_t{fixed.n_layers} + 2 * uint64_t{recent.n_recent} : 0;
  const uint64_t header_bytes = sizeof(fixed) + (has_kinds ? sizeof(recent) : 0) + fixed.fingerprint_bytes +
                                sizeof(int64_t) * (fixed.n_layers + kinds) + sizeof(int32_t) * fixed.n_tokens;
  if (header_bytes > file_bytes_ - sizeof(uint64_t)) {
    refuse("is damaged at byte 24", "a header within " + std::to_string(file_bytes_) + " bytes",
           std::to_string(header_bytes), again);
  }
  std::vector<std::byte> header(header_bytes);
  uint64_t checksum = 0;
  read_at(0, header.data(), header.size());
  read_at(header_bytes, &checksum, sizeof(checksum));
  if (xxh64(header.data(), header.size()) != checksum) {
    refuse("is damaged in its first " + std::to_string(header_bytes) + " bytes", "the stored checksum", "another",
           again);
  }
  const std::byte* p = header.data() + sizeof(fixed) + (has_kinds ? sizeof(recent) : 0);
  fingerprint_.assign(reinterpret_cast<const char*>(p), fixed.fingerprint_bytes);
  p += fixed.fingerprint_bytes;
  layout_.n_layers = static_cast<int>(fixed.n_layers);
  const auto take_numbers = [&p](size_t n) {
    std::vector<int64_t> numbers(n);
    if (n > 0) std::memcpy(numbers.data(), p, sizeof(int64_t) * n);
    p += sizeof(int64_t) * n;
    return numbers;
  };
  layout_.row_elements = take_numbers(fixed.n_layers);
  if (has_kinds) layout_.tokens_per_row = take_numbers(fixed.n_layers);
  const std::vector<int64_t> recent_rows = take_numbers(2 * recent.n_recent);
  layout_.recent_tokens = recent.recent_tokens;
  first_recent_ = static_cast<int64_t>(recent.first_recent);
  tokens_.resize(fixed.n_tokens);
  if (!tokens_.empty()) std::memcpy(tokens_.data(), p, sizeof(int32_t) * tokens_.size());
  pages_offset_ = header_bytes + sizeof(uint64_t);

  constexpr DType kTypes[] = {DType::kF32, DType::kF16, DType::kBF16, DType::kQ8_0, DType::kF8_E4M3};
  const auto type_of = [&](int64_t number) {
    const auto* type = std::find_if(std::begin(kTypes), std::end(kTypes),
                                    [number](DType t) { return static_cast<int64_t>(t) == number; });
    if (type == std::end(kTypes))
      refuse("holds rows of an unknown type", "a cache type", std::to_string(number), again);
    return *type;
  };
  const auto check_row = [&](int64_t n, DType dtype) {
    if (n <= 0 || n > kMaxRowElements || n % dtype_info(dtype).block_elements != 0) {
      refuse("holds impossible rows", "1 to 2^24 elements in whole blocks", std::to_string(n), again);
    }
  };
  layout_.dtype = type_of(fixed.dtype);
  for (const int64_t n : layout_.row_elements) check_row(n, layout_.dtype);
  for (const int64_t n : layout_.tokens_per_row) {
    if (n <= 0 || (kPageTokens % n != 0 && n % kPageTokens != 0))
      refuse("holds impossible rows", "rows that divide a page or are whole pages", std::to_string(n), again);
  }
  for (size_t i = 0; i < recent_rows.size(); i += 2) {
    layout_.recent.push_back({recent_rows[i], type_of(recent_rows[i + 1])});
    check_row(recent_rows[i], layout_.recent.back().dtype);
  }
}

int64_t SequenceFile::least_tokens(const CacheLayout& layout, int64_t first_recent) {
  return first_recent == 0 ? 1 : first_recent * kPageTokens + layout.recent_tokens;
}

void SequenceFile::check_fits(std::string_view fingerprint, const CacheLayout& layout, int64_t max_tokens,
                              int64_t vocab_size) const {
  if (fingerprint_ != fingerprint) {
    refuse("was saved with another model", shown(fingerprint), shown(fingerprint_), "the model it was saved with");
  }
  const auto same_elements = [](const TokenRows& a, const TokenRows& b) { return a.elements == b.elements; };
  const auto tokens_per_row = [](const CacheLayout& l) {
    std::vector<int64_t> n = l.tokens_per_row;
    n.resize(l.row_elements.size(), 1);
    return n;
  };
  if (layout_.row_elements != layout.row_elements || tokens_per_row(layout_) != tokens_per_row(layout) ||
      layout_.recent_tokens != layout.recent_tokens ||
      !std::equal(layout_.recent.begin(), layout_.recent.end(), layout.recent.begin(), layout.recent.end(),
                  same_elements)) {
    refuse("was saved with other cache rows", layout.describe(), layout_.describe(), "the model it was saved with");
  }
  if (static_cast<int64_t>(tokens_.size()) > max_tokens) {
    refuse("is longer than the context", "at most " + std::to_string(max_tokens) + " tokens",
           std::to_string(tokens_.size()), "a larger --ctx");
  }
  for (const int32_t id : tokens_) {
    if (id >= 0 && id < vocab_size) continue;
    refuse("holds an unknown token", "ids from 0 to " + std::to_string(vocab_size - 1), std::to_string(id),
           "the model it was saved with");
  }
}

std::optional<Sequence> SequenceFile::read(PagePool& pool, int64_t n_tokens) const {
  const CacheLayout& to = pool.layout();
  FATHOM_CHECK(layout_.row_elements == to.row_elements && layout_.recent.size() == to.recent.size(),
               "read() without check_fits()");
  FATHOM_CHECK(n_tokens >= 0 && n_tokens <= static_cast<int64_t>(tokens_.size()),
               "the file does not hold " + std::to_string(n_tokens) + " tokens");
  FATHOM_CHECK(n_tokens == 0 || n_tokens >= least_tokens(), "the file lacks recent rows of that beginning");
  const std::string again = "saving the session again";
  Sequence sequence(pool);
  if (sequence.pages_needed(n_tokens) > pool.free_pages()) return std::nullopt;

  const std::unique_ptr<ZSTD_DCtx, decltype(&ZSTD_freeDCtx)> context(ZSTD_createDCtx(), &ZSTD_freeDCtx);
  const std::vector<RowKind> to_kinds = row_kinds(to, true);
  std::vector<std::byte> packed, converted, rows, plain(layout_.page_bytes() + layout_.recent_page_bytes());
  std::vector<float> values;
  uint64_t offset = pages_offset_;
  for (int64_t page = 0; page * kPageTokens < n_tokens; ++page) {
    const std::string where = "is damaged at byte " + std::to_string(offset);
    const auto stored = static_cast<size_t>(tokens_in_page(static_cast<int64_t>(tokens_.size()), page));
    const auto wanted = static_cast<size_t>(tokens_in_page(n_tokens, page));
    const bool has_recent = layout_.has_recent() && page >= first_recent_;
    const size_t plain_bytes =
        layout_.tokens_bytes(static_cast<int64_t>(stored)) + (has_recent ? stored * layout_.recent_token_bytes() : 0);
    PageHeader header{};
    read_at(offset, &header, sizeof(header));
    offset += sizeof(header);
    if (header.data_bytes > ZSTD_compressBound(plain_bytes) || header.data_bytes > file_bytes_ - offset) {
      refuse(where, "a page of at most " + std::to_string(ZSTD_compressBound(plain_bytes)) + " bytes within the file",
             std::to_string(header.data_bytes), again);
    }
    packed.resize(header.data_bytes);
    read_at(offset, packed.data(), packed.size());
    offset += packed.size();
    if (xxh64(packed.data(), packed.size()) != header.checksum) refuse(where, "the stored checksum", "another", again);
    const size_t n = ZSTD_decompressDCtx(context.get(), plain.data(), plain_bytes, packed.data(), packed.size());
    if (ZSTD_isError(n) || n != plain_bytes) {
      refuse(where, std::to_string(plain_bytes) + " bytes of rows",
             ZSTD_isError(n) ? ZSTD_getErrorName(n) : std::to_string(n), again);
    }

    // Page by page: recent rows of a whole text would take far more memory than its last ones.
    FATHOM_CHECK(sequence.reserve(static_cast<int64_t>(wanted)), "pages are free");
    const std::byte* planes = plain.data();
    const int32_t page_id = sequence.pages()[static_cast<size_t>(page)];
    const auto put = [&](const RowKind& kind, const std::byte* from) {
      if (kind.is_recent) {
        pool.write_recent(kind.idx, page_id, static_cast<int>(wanted), from);
      } else {
        pool.write_rows(kind.idx, page_id, static_cast<int>(wanted), from);
      }
    };
    const std::vector<RowKind> kinds = row_kinds(layout_, has_recent);
    for (size_t k = 0; k < kinds.size(); ++k) {
      const RowKind &from_kind = kinds[k], &to_kind = to_kinds[k];
      const size_t from_row_bytes = row_bytes(from_kind.dtype, from_kind.elements),
                   to_row_bytes = row_bytes(to_kind.dtype, to_kind.elements),
                   stored_bytes = row_count(layout_, from_kind, stored) * from_row_bytes,
                   n_wanted = row_count(layout_, from_kind, wanted);
      rows.resize(std::max(rows.size(), stored_bytes));
      join_planes(planes, rows.data(), stored_bytes, plane_count(from_kind.dtype));
      planes += stored_bytes;
      if (to_kind.dtype == from_kind.dtype) {
        put(to_kind, rows.data());
        continue;
      }
      converted.resize(n_wanted * to_row_bytes);
      values.resize(std::max(values.size(), static_cast<size_t>(to_kind.elements)));
      for (size_t r = 0; r < n_wanted; ++r) {
        dequantize_row(from_kind.dtype, rows.data() + r * from_row_bytes, values.data(), to_kind.elements);
        encode_row(to_kind.dtype, values.data(), converted.data() + r * to_row_bytes, to_kind.elements);
      }
      put(to_kind, converted.data());
    }
    sequence.advance(static_cast<int64_t>(wanted));
  }
  if (n_tokens == static_cast<int64_t>(tokens_.size()) && offset != file_bytes_) {
    refuse("is damaged", "its end at byte " + std::to_string(offset), std::to_string(file_bytes_), again);
  }
  return sequence;
}

}  // namespace fathom
