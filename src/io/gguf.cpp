#include "io/gguf.h"

#include <cstdio>

#include "core/error.h"
#include "core/printable.h"
#include "io/gguf_checks.h"

namespace fathom {
namespace {

// PREFIX-%05d-of-%05d.gguf, taken apart.
struct ShardName {
  std::string prefix;
  int64_t number;  ///< from 1
  int64_t count;

  std::string of(int64_t shard) const {
    char tail[64];
    std::snprintf(tail, sizeof tail, "-%05lld-of-%05lld.gguf", static_cast<long long>(shard),
                  static_cast<long long>(count));
    return prefix + tail;
  }
};

std::optional<int64_t> five_digits(std::string_view text) {
  int64_t value = 0;
  for (const char c : text) {
    if (c < '0' || c > '9') return std::nullopt;
    value = value * 10 + (c - '0');
  }
  return value;
}

std::optional<ShardName> parse_shard_name(const std::string& path) {
  constexpr std::string_view kPattern = "-00000-of-00000.gguf";
  if (path.size() <= kPattern.size()) return std::nullopt;
  const size_t begin = path.size() - kPattern.size();
  const std::string_view tail = std::string_view(path).substr(begin);
  const std::optional<int64_t> number = five_digits(tail.substr(1, 5));
  const std::optional<int64_t> count = five_digits(tail.substr(10, 5));
  if (!number || !count || tail[0] != '-' || tail.substr(6, 4) != "-of-" || tail.substr(15) != ".gguf")
    return std::nullopt;
  return ShardName{path.substr(0, begin), *number, *count};
}

[[noreturn]] void fail(const std::string& path, const std::string& what, const std::string& expected,
                       const std::string& got, const std::string& hint) {
  throw Error(ErrorCode::kModel,
              printable(path, 400) + ": " + what + "; expected " + expected + ", got " + got + "; try " + hint);
}

std::string or_none(const std::optional<int64_t>& value) { return value ? std::to_string(*value) : "none"; }

// A key of a shard as an integer; errors name the file, which Metadata does not know.
std::optional<int64_t> shard_key(const GgufFile& gguf, const char* key) {
  try {
    return gguf.metadata.integer(key);
  } catch (const Error& error) {
    throw Error(error.code(),
                printable(gguf.file->path(), 400) + ": " + error.what() + "; try to split the model again");
  }
}

void check_shard(const GgufFile& gguf, const ShardName& name, int64_t shard, const GgufFile& first) {
  const std::string& path = gguf.file->path();
  const std::string hint = "to put the shards of one model into one folder under their own names";
  if (const auto count = shard_key(gguf, "split.count"); count != name.count) {
    fail(path, "wrong key split.count", std::to_string(name.count) + " as in the file's name", or_none(count), hint);
  }
  if (const auto number = shard_key(gguf, "split.no"); number != shard - 1) {
    fail(path, "this is another shard than its name says",
         "shard " + std::to_string(shard) + " (split.no " + std::to_string(shard - 1) + ")",
         "split.no " + or_none(number), hint);
  }
  const auto total = shard_key(gguf, "split.tensors.count");
  if (const auto total_of_first = shard_key(first, "split.tensors.count"); total != total_of_first) {
    fail(path, "a shard of another model", "split.tensors.count " + or_none(total_of_first) + " as in the first shard",
         or_none(total), hint);
  }
  for (const char* key : {"general.architecture", "general.name"}) {
    const MetadataValue* mine = gguf.metadata.find(key);
    const MetadataValue* of_first = first.metadata.find(key);
    if (mine != nullptr && (of_first == nullptr || *mine != *of_first)) {
      fail(path, "a shard of another model", std::string("the same ") + key + " as in the first shard", "another one",
           hint);
    }
  }
}

GgufFile read_shard(const ShardName& name, int64_t shard, const std::string& asked, bool header_only) {
  const std::string path = name.of(shard);
  try {
    return read_gguf_file(path, header_only);
  } catch (const Error& error) {
    if (path == asked) throw;
    throw Error(error.code(),
                "shard " + std::to_string(shard) + " of " + std::to_string(name.count) + ", " + error.what());
  }
}

std::vector<GgufFile> read_shards(const ShardName& name, const std::string& asked, bool header_only) {
  if (name.count < 1 || name.number < 1 || name.number > name.count) {
    fail(asked, "an impossible shard name", "a number from 1 to the count",
         std::to_string(name.number) + " of " + std::to_string(name.count), "the file's original name");
  }
  std::vector<GgufFile> files;
  for (int64_t shard = 1; shard <= name.count; ++shard) {
    files.push_back(read_shard(name, shard, asked, header_only));
    check_shard(files.back(), name, shard, files.front());
  }
  return files;
}

std::vector<GgufFile> read_files(const std::string& path, bool header_only) {
  const std::optional<ShardName> name = parse_shard_name(path);
  if (name && name->count != 1) return read_shards(*name, path, header_only);
  std::vector<GgufFile> files;
  files.push_back(read_gguf_file(path, header_only));
  const auto count = shard_key(files.front(), "split.count");
  if (count && *count > 1) {
    fail(path, "one shard of a split model under another name",
         "a name like MODEL-00001-of-" + ShardName{"", 0, *count}.of(0).substr(10), "a name without shard numbers",
         "the shards' original names");
  }
  return files;
}

}  // namespace

GgufModel GgufModel::open(const std::string& path, GgufOptions options) {
  GgufModel model;
  model.files_ = read_files(path, options.header_only);
  const bool is_split = model.files_.size() > 1;
  for (const GgufFile& gguf : model.files_) {
    if (gguf.missing_data) model.has_data_ = false;
    for (const GgufTensorInfo& t : gguf.tensors) {
      // The offset of a tensor without bytes was not compared with the file.
      void* data =
          options.header_only ? nullptr : gguf.file->data() + (t.size_bytes == 0 ? gguf.data_offset : t.offset_bytes);
      if (!model.tensors_.emplace(t.name, Tensor(t.dtype, t.shape, data)).second) {
        fail(gguf.file->path(), "the tensor '" + printable(t.name) + "' is also in an earlier shard",
             "every tensor once", "a second one", "to put the shards of one model into one folder");
      }
    }
  }
  if (is_split) {
    const auto total = shard_key(model.files_.front(), "split.tensors.count");
    if (total && *total != static_cast<int64_t>(model.tensors_.size())) {
      fail(path, "the shards do not hold all tensors", std::to_string(*total) + " tensors (split.tensors.count)",
           std::to_string(model.tensors_.size()), "to download all shards again");
    }
  }
  check_model_metadata(model.files_.front());
  return model;
}

const Tensor* GgufModel::find(const std::string& name) const {
  const auto it = tensors_.find(name);
  return it == tensors_.end() ? nullptr : &it->second;
}

uint64_t GgufModel::size_bytes() const {
  uint64_t sum = 0;
  for (const GgufFile& gguf : files_) sum += gguf.file->size_bytes();
  return sum;
}

std::optional<FileSpan> GgufModel::locate(const Tensor& tensor) const {
  for (const GgufFile& gguf : files_) {
    const std::byte* begin = gguf.file->data();
    if (tensor.data == nullptr || tensor.data < begin || tensor.data >= begin + gguf.file->size_bytes()) continue;
    return FileSpan{gguf.file.get(), static_cast<uint64_t>(tensor.data - begin), tensor.size_bytes()};
  }
  return std::nullopt;
}

void GgufModel::check_intact() const {
  for (const GgufFile& gguf : files_) gguf.file->check_intact();
}

}  // namespace fathom
