#include "io/gguf_writer.h"

#include <algorithm>
#include <bit>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <type_traits>

#include "core/atomic_file.h"
#include "core/error.h"
#include "core/plain_text.h"

namespace fathom {
namespace {

template <typename T> void append(std::string& out, T value) {
  char bytes[sizeof(T)];
  std::memcpy(bytes, &value, sizeof(T));
  out.append(bytes, sizeof(T));
}

void append_string(std::string& out, std::string_view text) {
  append(out, static_cast<uint64_t>(text.size()));
  out += text;
}

template <typename T, typename From> void append_checked(std::string& out, From value, const std::string& key) {
  if constexpr (std::is_integral_v<T>) {
    FATHOM_CHECK(std::in_range<T>(value), "the value of '" + key + "' does not fit its type");
  }
  append(out, static_cast<T>(value));
}

template <typename From> void append_integer(std::string& out, GgufValueType type, From value, const std::string& key) {
  switch (type) {
    case GgufValueType::kU8: return append_checked<uint8_t>(out, value, key);
    case GgufValueType::kI8: return append_checked<int8_t>(out, value, key);
    case GgufValueType::kU16: return append_checked<uint16_t>(out, value, key);
    case GgufValueType::kI16: return append_checked<int16_t>(out, value, key);
    case GgufValueType::kU32: return append_checked<uint32_t>(out, value, key);
    case GgufValueType::kI32: return append_checked<int32_t>(out, value, key);
    case GgufValueType::kU64: return append_checked<uint64_t>(out, value, key);
    case GgufValueType::kI64: return append_checked<int64_t>(out, value, key);
    case GgufValueType::kBool:
      FATHOM_CHECK(value == 0 || value == 1, "the value of '" + key + "' is not a bool");
      return append(out, static_cast<uint8_t>(value));
    default: FATHOM_CHECK(false, "the value of '" + key + "' is an integer, its type is not");
  }
}

void append_float(std::string& out, GgufValueType type, double value, const std::string& key) {
  FATHOM_CHECK(type == GgufValueType::kF32 || type == GgufValueType::kF64,
               "the value of '" + key + "' is a float, its type is not");
  if (type == GgufValueType::kF32) {
    append(out, static_cast<float>(value));
  } else {
    append(out, value);
  }
}

void append_text(std::string& out, GgufValueType type, const std::string& value, const std::string& key) {
  FATHOM_CHECK(type == GgufValueType::kString, "the value of '" + key + "' is a text, its type is not");
  append_string(out, value);
}

void append_scalar(std::string& out, GgufValueType type, int64_t value, const std::string& key) {
  append_integer(out, type, value, key);
}
void append_scalar(std::string& out, GgufValueType type, uint64_t value, const std::string& key) {
  append_integer(out, type, value, key);
}
void append_scalar(std::string& out, GgufValueType type, bool value, const std::string& key) {
  append_integer(out, type, value ? 1 : 0, key);
}
void append_scalar(std::string& out, GgufValueType type, double value, const std::string& key) {
  append_float(out, type, value, key);
}
void append_scalar(std::string& out, GgufValueType type, const std::string& value, const std::string& key) {
  append_text(out, type, value, key);
}

std::string encode(const std::string& key, const MetadataValue& value, GgufStoredType stored) {
  std::string out;
  append(out, static_cast<uint32_t>(stored.type));
  const auto append_array = [&](const auto& values) {
    FATHOM_CHECK(stored.type == GgufValueType::kArray, "the value of '" + key + "' is an array, its type is not");
    append(out, static_cast<uint32_t>(stored.element));
    append(out, static_cast<uint64_t>(values.size()));
    for (const auto& element : values) append_scalar(out, stored.element, element, key);
  };
  std::visit(
      [&](const auto& v) {
        using V = std::decay_t<decltype(v)>;
        if constexpr (std::is_same_v<V, std::vector<int64_t>> || std::is_same_v<V, std::vector<double>> ||
                      std::is_same_v<V, std::vector<std::string>>) {
          append_array(v);
        } else {
          append_scalar(out, stored.type, v, key);
        }
      },
      value);
  return out;
}

// What a killed process may lose of a resumable file, if it wrote less than note_bytes meanwhile.
constexpr std::chrono::seconds kNoteInterval{5};

uint64_t aligned(uint64_t n, uint64_t alignment) { return (n + alignment - 1) / alignment * alignment; }

}  // namespace

GgufWriter::GgufWriter(std::string path, GgufWriterOptions options) : path_(std::move(path)), options_(options) {
  FATHOM_CHECK(std::has_single_bit(options.alignment) && options.alignment >= kGgufMinAlignment &&
                   options.alignment <= kGgufMaxAlignment,
               "no alignment: " + std::to_string(options.alignment));
  if (options.alignment != kGgufDefaultAlignment)
    set_u32("general.alignment", static_cast<uint32_t>(options.alignment));
}

void GgufWriter::set(const std::string& key, const MetadataValue& value, GgufStoredType stored) {
  FATHOM_CHECK(!begun_ && !key.empty(), "the key '" + key + "' comes too late or has no name");
  std::string encoded = encode(key, value, stored);
  const auto same = std::find_if(keys_.begin(), keys_.end(), [&](const auto& k) { return k.first == key; });
  if (same != keys_.end()) {
    same->second = std::move(encoded);
  } else {
    keys_.emplace_back(key, std::move(encoded));
  }
}

void GgufWriter::set_texts(const std::string& key, std::vector<std::string> values) {
  set(key, std::move(values), {GgufValueType::kArray, GgufValueType::kString});
}
void GgufWriter::set_i32s(const std::string& key, std::vector<int64_t> values) {
  set(key, std::move(values), {GgufValueType::kArray, GgufValueType::kI32});
}

void GgufWriter::copy_metadata(const GgufFile& from) {
  for (const auto& [key, value] : from.metadata.all()) {
    if (key.starts_with("split.") || key == "general.alignment") continue;
    set(key, value, from.stored_types.at(key));
  }
}

void GgufWriter::add_tensor(std::string name, DType dtype, Shape shape) {
  FATHOM_CHECK(!begun_ && !name.empty() && name.size() <= kGgufMaxTensorNameBytes,
               "the tensor '" + name + "' comes too late or is badly named");
  FATHOM_CHECK(dtype_from_gguf(static_cast<uint32_t>(dtype)) == dtype,
               "GGUF has no type " + std::string(dtype_name(dtype)));
  FATHOM_CHECK(shape.rank >= 1, "the tensor '" + name + "' has no shape");
  const uint64_t size = Tensor(dtype, shape, nullptr).size_bytes();
  tensors_.push_back({std::move(name), dtype, shape, size, 0, 0});
}

void GgufWriter::plan_shards() {
  uint64_t end = 0;
  size_t n_in_shard = 0;
  for (TensorPlan& t : tensors_) {
    if (options_.split_max_bytes > 0 && n_in_shard > 0 && end + t.size_bytes > options_.split_max_bytes) {
      ++n_shards_;
      end = 0;
      n_in_shard = 0;
    }
    t.shard = n_shards_ - 1;
    t.offset_bytes = end;
    end = aligned(end + t.size_bytes, options_.alignment);
    ++n_in_shard;
  }
  std::vector<std::string_view> names;
  for (const TensorPlan& t : tensors_) names.emplace_back(t.name);
  std::sort(names.begin(), names.end());
  const auto twice = std::adjacent_find(names.begin(), names.end());
  FATHOM_CHECK(twice == names.end(), "the tensor '" + std::string(*twice) + "' was declared twice");
  FATHOM_CHECK(n_shards_ <= std::numeric_limits<uint16_t>::max(), "too many shards");
}

std::vector<std::string> GgufWriter::paths() const {
  if (n_shards_ == 1) return {path_};
  const std::string prefix = path_.ends_with(".gguf") ? path_.substr(0, path_.size() - 5) : path_;
  std::vector<std::string> paths;
  for (size_t shard = 0; shard < n_shards_; ++shard) {
    char tail[64];
    std::snprintf(tail, sizeof tail, "-%05zu-of-%05zu.gguf", shard + 1, n_shards_);
    paths.push_back(prefix + tail);
  }
  return paths;
}

std::string GgufWriter::header_of(size_t shard) const {
  std::vector<std::pair<std::string, std::string>> keys;
  if (shard == 0) {
    keys = keys_;
  } else if (options_.alignment != kGgufDefaultAlignment) {
    keys.emplace_back("general.alignment",
                      encode("general.alignment", static_cast<int64_t>(options_.alignment), {GgufValueType::kU32}));
  }
  if (n_shards_ > 1) {
    keys.emplace_back("split.no", encode("split.no", static_cast<int64_t>(shard), {GgufValueType::kU16}));
    keys.emplace_back("split.count", encode("split.count", static_cast<int64_t>(n_shards_), {GgufValueType::kU16}));
    keys.emplace_back("split.tensors.count",
                      encode("split.tensors.count", static_cast<int64_t>(tensors_.size()), {GgufValueType::kI32}));
  }
  const auto n_tensors =
      std::count_if(tensors_.begin(), tensors_.end(), [&](const TensorPlan& t) { return t.shard == shard; });
  std::string out = "GGUF";
  append(out, uint32_t{3});
  append(out, static_cast<uint64_t>(n_tensors));
  append(out, static_cast<uint64_t>(keys.size()));
  for (const auto& [key, encoded] : keys) {
    append_string(out, key);
    out += encoded;
  }
  for (const TensorPlan& t : tensors_) {
    if (t.shard != shard) continue;
    append_string(out, t.name);
    append(out, static_cast<uint32_t>(t.shape.rank));
    for (int i = t.shape.rank - 1; i >= 0; --i) append(out, t.shape[i]);
    append(out, static_cast<uint32_t>(t.dtype));
    append(out, t.offset_bytes);
  }
  return out;
}

void GgufWriter::open_shard(size_t shard) {
  if (options_.resume_key && !files_.empty()) note_progress();
  const std::string path = paths()[shard];
  files_.push_back(options_.resume_key ? open_part_file(path, 0) : open_whole_file(path));
  noted_bytes_ = 0;
  const std::string header = header_of(shard);
  files_.back()->write(header.data(), header.size());
  pad();
}

void GgufWriter::pad() {
  const uint64_t at = files_.back()->written_bytes();
  const std::string zeros(aligned(at, options_.alignment) - at, '\0');
  files_.back()->write(zeros.data(), zeros.size());
}

// Steps over tensors without elements and opens the shard of the tensor that comes next.
void GgufWriter::enter_shard_of_next_tensor() {
  while (current_tensor_ < tensors_.size()) {
    if (tensors_[current_tensor_].shard == files_.size()) open_shard(files_.size());
    if (tensors_[current_tensor_].size_bytes > 0) return;
    ++current_tensor_;
  }
}

uint64_t GgufWriter::shard_bytes(size_t shard) const {
  const uint64_t start = aligned(header_of(shard).size(), options_.alignment);
  const auto last =
      std::find_if(tensors_.rbegin(), tensors_.rend(), [&](const TensorPlan& t) { return t.shard == shard; });
  if (last == tensors_.rend()) return start;
  return start + aligned(last->offset_bytes + last->size_bytes, options_.alignment);
}

// All were whole when an earlier writer began to put them in place: some have their name already.
bool GgufWriter::take_up_whole_shards() {
  for (size_t shard = 0; shard < n_shards_; ++shard) {
    std::error_code missing;
    const std::string path = paths()[shard];
    const bool is_in_place = !std::filesystem::exists(part_path(path), missing) &&
                             std::filesystem::file_size(path, missing) == shard_bytes(shard) && !missing;
    files_.push_back(is_in_place ? nullptr : open_part_file(path, shard_bytes(shard)));
    if (!is_in_place && files_.back() == nullptr) {
      files_.clear();
      return false;
    }
  }
  current_tensor_ = tensors_.size();
  return true;
}

// The journal: what the bytes are made from, how many shards are whole, and how many bytes of the next one are on the
// disk.
bool GgufWriter::take_up() {
  uint64_t hash = fnv1a({});
  for (size_t shard = 0; shard < n_shards_; ++shard) hash = fnv1a(header_of(shard), hash);
  hash = fnv1a(*options_.resume_key, hash);
  char text[17];
  std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(hash));
  fingerprint_ = text;

  std::ifstream journal(journal_path());
  std::string word, fingerprint;
  size_t shard = 0;
  uint64_t n_bytes = 0;
  if (!(journal >> word >> fingerprint >> shard >> n_bytes) || word != "fathom-journal-1" ||
      fingerprint != fingerprint_ || shard > n_shards_)
    return false;
  if (shard == n_shards_) return take_up_whole_shards();
  for (size_t s = 0; s <= shard; ++s) {
    const uint64_t start = aligned(header_of(s).size(), options_.alignment);
    uint64_t keep = start;  // whole tensors only
    size_t next = current_tensor_;
    for (; next < tensors_.size() && tensors_[next].shard == s; ++next) {
      const uint64_t end = start + aligned(tensors_[next].offset_bytes + tensors_[next].size_bytes, options_.alignment);
      if (s == shard && end > n_bytes) break;
      keep = end;
    }
    std::unique_ptr<OutputFile> file = s == shard && n_bytes < start ? nullptr : open_part_file(paths()[s], keep);
    if (file == nullptr) {
      files_.clear();
      current_tensor_ = 0;
      return false;
    }
    files_.push_back(std::move(file));
    current_tensor_ = next;
  }
  return true;
}

void GgufWriter::note_progress() {
  files_.back()->flush();
  write_journal(files_.size() - 1, files_.back()->written_bytes() - current_written_bytes_);
  noted_bytes_ = files_.back()->written_bytes();
  noted_at_ = std::chrono::steady_clock::now();
}

void GgufWriter::write_journal(size_t shard, uint64_t n_bytes) {
  AtomicFile journal(journal_path());
  const std::string text =
      "fathom-journal-1 " + fingerprint_ + " " + std::to_string(shard) + " " + std::to_string(n_bytes) + "\n";
  journal.write(text.data(), text.size());
  journal.commit();
}

GgufWriter::~GgufWriter() {
  if (!options_.resume_key || files_.empty() || is_closed_) return;
  try {
    note_progress();
  } catch (const std::exception&) {
    // The journal written last stands: less is kept.
  }
}

size_t GgufWriter::begin() {
  FATHOM_CHECK(!begun_, "a second begin");
  plan_shards();
  begun_ = true;
  if (!options_.resume_key) {
    open_shard(0);
  } else if (!take_up()) {
    open_shard(0);
    // A journal of other bytes must not speak for these.
    if (std::filesystem::exists(journal_path())) note_progress();
  }
  if (current_tensor_ == tensors_.size()) return current_tensor_;
  noted_bytes_ = files_.back()->written_bytes();
  const size_t n_there = current_tensor_;
  enter_shard_of_next_tensor();
  return n_there;
}

void GgufWriter::write(std::string_view name, const void* data, size_t size_bytes) {
  FATHOM_CHECK(begun_ && current_tensor_ < tensors_.size(), "no tensor is left to write");
  const TensorPlan& t = tensors_[current_tensor_];
  FATHOM_CHECK(t.name == name, "tensor '" + t.name + "' is due, not '" + std::string(name) + "'");
  FATHOM_CHECK(size_bytes <= t.size_bytes - current_written_bytes_, "too many bytes for tensor '" + t.name + "'");
  files_.back()->write(data, size_bytes);
  current_written_bytes_ += size_bytes;
  if (current_written_bytes_ < t.size_bytes) return;
  pad();
  current_written_bytes_ = 0;
  ++current_tensor_;
  if (options_.resume_key && (files_.back()->written_bytes() - noted_bytes_ >= options_.note_bytes ||
                              std::chrono::steady_clock::now() - noted_at_ >= kNoteInterval))
    note_progress();
  enter_shard_of_next_tensor();
}

void GgufWriter::discard() {
  FATHOM_CHECK(begun_, "nothing was begun");
  is_closed_ = true;
  const std::vector<std::string> shards = paths();
  std::error_code ignored;
  for (size_t shard = 0; options_.resume_key && shard < files_.size(); ++shard)
    std::filesystem::remove(part_path(shards[shard]), ignored);
  std::filesystem::remove(journal_path(), ignored);
}

void GgufWriter::finish() {
  FATHOM_CHECK(begun_ && current_tensor_ == tensors_.size(), "tensors are missing");
  if (options_.resume_key && n_shards_ > 1) {
    for (const auto& file : files_) {
      if (file != nullptr) file->flush();
    }
    write_journal(n_shards_, 0);
    is_closed_ = true;
  }
  for (auto file = files_.rbegin(); file != files_.rend(); ++file) {
    if (*file != nullptr) (*file)->commit();
  }
  files_.clear();
  if (options_.resume_key) {
    std::error_code ignored;
    std::filesystem::remove(journal_path(), ignored);
  }
}

}  // namespace fathom
