#include "io/gguf_file.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <unordered_set>
#include <utility>

#include "core/printable.h"
#include "io/byte_reader.h"

namespace fathom {
namespace {

void read_magic_and_version(ByteReader& in, GgufFile& gguf) {
  constexpr std::string_view kMagic = "GGUF";
  if (in.left() < 24) {
    in.fail(0, "too short for a GGUF header", "at least 24 bytes", std::to_string(in.left()) + " bytes",
            "download the file again");
  }
  if (const std::string_view magic = in.take(4, "the magic"); magic != kMagic) {
    in.fail(0, "not a GGUF file", "the bytes 'GGUF' at the start", in_quotes(magic),
            "give a .gguf file, or a Hugging Face folder where that is allowed");
  }
  gguf.version = in.read<uint32_t>("the version");
  if (gguf.version == 2 || gguf.version == 3) return;
  const bool big_endian = gguf.version != 0 && (gguf.version & 0xffffu) == 0;
  in.fail(4, big_endian ? "a big-endian GGUF file" : "unsupported GGUF version", "version 2 or 3, little endian",
          std::to_string(gguf.version), "convert the model again with a current converter");
}

GgufValueType read_value_type(ByteReader& in, const std::string& what) {
  const uint64_t at = in.position();
  const auto number = in.read<uint32_t>("the type of " + what);
  if (number >= kGgufValueTypeCount)
    in.fail(at, "unknown value type of " + what, "a number from 0 to 12", std::to_string(number));
  return static_cast<GgufValueType>(number);
}

bool read_bool(ByteReader& in, const std::string& what) {
  const uint64_t at = in.position();
  const auto byte = in.read<uint8_t>(what);
  if (byte > 1) in.fail(at, "not a bool in " + what, "one byte, 0 or 1", std::to_string(byte));
  return byte == 1;
}

std::string read_text(ByteReader& in, const std::string& what) {
  return std::string(in.take_string(kGgufMaxStringBytes, what));
}

template <typename Stored, typename Kept>
std::vector<Kept> read_numbers(ByteReader& in, uint64_t count, const std::string& what) {
  const std::string_view bytes = in.take(count * sizeof(Stored), what);
  std::vector<Kept> values(count);
  for (uint64_t i = 0; i < count; ++i) {
    Stored value;
    std::memcpy(&value, bytes.data() + i * sizeof(Stored), sizeof(Stored));
    values[i] = static_cast<Kept>(value);
  }
  return values;
}

std::vector<int64_t> read_u64s(ByteReader& in, uint64_t count, const std::string& what) {
  const uint64_t at = in.position();
  std::vector<int64_t> values = read_numbers<uint64_t, int64_t>(in, count, what);
  for (uint64_t i = 0; i < count; ++i) {
    if (values[i] < 0)
      in.fail(at + 8 * i, "a number too large in " + what, "at most 2^63 - 1",
              std::to_string(static_cast<uint64_t>(values[i])));
  }
  return values;
}

std::vector<int64_t> read_bools(ByteReader& in, uint64_t count, const std::string& what) {
  std::vector<int64_t> values(count);
  for (int64_t& value : values) value = read_bool(in, what) ? 1 : 0;
  return values;
}

std::vector<std::string> read_texts(ByteReader& in, uint64_t count, const std::string& what) {
  std::vector<std::string> texts;
  texts.reserve(count);
  for (uint64_t i = 0; i < count; ++i) texts.emplace_back(in.take_string(kGgufMaxStringBytes, what));
  return texts;
}

MetadataValue read_array(ByteReader& in, const std::string& what, GgufStoredType& stored) {
  const uint64_t at = in.position();
  stored.element = read_value_type(in, "the elements of " + what);
  if (stored.element == GgufValueType::kArray)
    in.fail(at, "an array of arrays in " + what, "an array of numbers, bools or strings", "nested arrays");
  const uint64_t count_at = in.position();
  const auto count = in.read<uint64_t>("the element count of " + what);
  in.check_count(count_at, count, gguf_value_min_bytes(stored.element), "elements of " + what);
  if (count > kGgufMaxArrayElements) {
    in.fail(count_at, "too many elements of " + what, "at most " + std::to_string(kGgufMaxArrayElements),
            std::to_string(count));
  }
  switch (stored.element) {
    case GgufValueType::kU8: return read_numbers<uint8_t, int64_t>(in, count, what);
    case GgufValueType::kI8: return read_numbers<int8_t, int64_t>(in, count, what);
    case GgufValueType::kU16: return read_numbers<uint16_t, int64_t>(in, count, what);
    case GgufValueType::kI16: return read_numbers<int16_t, int64_t>(in, count, what);
    case GgufValueType::kU32: return read_numbers<uint32_t, int64_t>(in, count, what);
    case GgufValueType::kI32: return read_numbers<int32_t, int64_t>(in, count, what);
    case GgufValueType::kI64: return read_numbers<int64_t, int64_t>(in, count, what);
    case GgufValueType::kU64: return read_u64s(in, count, what);
    case GgufValueType::kF32: return read_numbers<float, double>(in, count, what);
    case GgufValueType::kF64: return read_numbers<double, double>(in, count, what);
    case GgufValueType::kBool: return read_bools(in, count, what);
    default: return read_texts(in, count, what);
  }
}

MetadataValue read_value(ByteReader& in, const std::string& what, GgufStoredType& stored) {
  switch (stored.type) {
    case GgufValueType::kU8: return static_cast<int64_t>(in.read<uint8_t>(what));
    case GgufValueType::kI8: return static_cast<int64_t>(in.read<int8_t>(what));
    case GgufValueType::kU16: return static_cast<int64_t>(in.read<uint16_t>(what));
    case GgufValueType::kI16: return static_cast<int64_t>(in.read<int16_t>(what));
    case GgufValueType::kU32: return static_cast<int64_t>(in.read<uint32_t>(what));
    case GgufValueType::kI32: return static_cast<int64_t>(in.read<int32_t>(what));
    case GgufValueType::kI64: return in.read<int64_t>(what);
    case GgufValueType::kU64: return in.read<uint64_t>(what);
    case GgufValueType::kF32: return static_cast<double>(in.read<float>(what));
    case GgufValueType::kF64: return in.read<double>(what);
    case GgufValueType::kBool: return read_bool(in, what);
    case GgufValueType::kString: return read_text(in, what);
    default: return read_array(in, what, stored);
  }
}

void read_metadata(ByteReader& in, uint64_t n_keys, GgufFile& gguf) {
  for (uint64_t i = 0; i < n_keys; ++i) {
    GgufStoredType stored{};
    stored.at = in.position();
    const std::string_view key = in.take_string(kGgufMaxKeyBytes, "the name of key " + std::to_string(i));
    if (key.empty()) in.fail(stored.at, "key " + std::to_string(i) + " has no name", "at least one byte", "none");
    if (gguf.metadata.has(key))
      in.fail(stored.at, "the key " + in_quotes(key) + " appears twice", "every key once", "a second one");
    const std::string what = "key " + in_quotes(key);
    stored.type = read_value_type(in, what);
    gguf.metadata.set(std::string(key), read_value(in, what, stored));
    gguf.stored_types.emplace(key, stored);
  }
}

void read_alignment(const ByteReader& in, GgufFile& gguf) {
  constexpr std::string_view kKey = "general.alignment";
  const MetadataValue* value = gguf.metadata.find(kKey);
  if (value == nullptr) return;
  const GgufStoredType& stored = gguf.stored_types.at(std::string(kKey));
  if (stored.type != GgufValueType::kU32)
    in.fail(stored.at, "the key 'general.alignment' has the wrong type", "u32", stored.text());
  const auto alignment = static_cast<uint64_t>(std::get<int64_t>(*value));
  if (!std::has_single_bit(alignment) || alignment < kGgufMinAlignment || alignment > kGgufMaxAlignment) {
    in.fail(stored.at, "an impossible general.alignment",
            "a power of two from " + std::to_string(kGgufMinAlignment) + " to " + std::to_string(kGgufMaxAlignment),
            std::to_string(alignment));
  }
  gguf.alignment = alignment;
}

// Elements, with dimensions of 0 counted as 1: strides of a tensor without elements must not overflow either.
int64_t spread(const Shape& shape) {
  int64_t n = 1;
  for (int i = 0; i < shape.rank; ++i) n *= std::max<int64_t>(shape[i], 1);
  return n;
}

// The dimensions in the file's order, fastest first, as a shape.
Shape read_shape(ByteReader& in, const std::string& what) {
  const uint64_t at = in.position();
  const auto n_dims = in.read<uint32_t>("the number of dimensions of " + what);
  if (n_dims < 1 || n_dims > kMaxDims)
    in.fail(at, "wrong number of dimensions of " + what, "1 to " + std::to_string(kMaxDims), std::to_string(n_dims));
  Shape shape;
  shape.rank = static_cast<int>(n_dims);
  int64_t n_elements = 1;
  for (uint32_t i = 0; i < n_dims; ++i) {
    const uint64_t dim_at = in.position();
    const auto dim = in.read<int64_t>("a dimension of " + what);
    if (dim < 0) in.fail(dim_at, "a negative dimension of " + what, "at least 0", std::to_string(dim));
    if (__builtin_mul_overflow(n_elements, std::max<int64_t>(dim, 1), &n_elements)) {
      in.fail(dim_at, "the number of elements of " + what + " overflows", "fewer than 2^63",
              "a further dimension of " + std::to_string(dim));
    }
    shape.dims[n_dims - 1 - i] = dim;
  }
  return shape;
}

DType read_dtype(ByteReader& in, const std::string& what) {
  const uint64_t at = in.position();
  const auto type = in.read<uint32_t>("the type of " + what);
  const std::optional<DType> dtype = dtype_from_gguf(type);
  if (!dtype) {
    in.fail(at, what + " has a type that cannot be read",
            "F32, F16, BF16, Q4_0 to Q8_0, Q2_K to Q6_K, IQ1 to IQ4, MXFP4 or integers",
            "type " + gguf_tensor_type_text(type), "get the model in one of these types");
  }
  return *dtype;
}

uint64_t tensor_bytes(const ByteReader& in, const GgufTensorInfo& t, const std::string& what) {
  const DTypeInfo& info = dtype_info(t.dtype);
  if (t.shape.last() % info.block_elements != 0) {
    in.fail(t.info_at, "the rows of " + what + " do not divide into blocks of " + std::string(info.name),
            "a multiple of " + std::to_string(info.block_elements) + " elements", std::to_string(t.shape.last()));
  }
  int64_t size = 0;
  // The number of elements was checked; that of bytes can still overflow.
  if (__builtin_mul_overflow(spread(t.shape) / info.block_elements, info.block_bytes, &size) ||
      size > std::numeric_limits<int64_t>::max() - static_cast<int64_t>(kGgufMaxAlignment)) {
    in.fail(t.info_at, "the size of " + what + " overflows", "fewer than 2^63 bytes",
            t.shape.to_string() + " of " + std::string(info.name));
  }
  return t.shape.n_elements() == 0 ? 0 : static_cast<uint64_t>(size);
}

// Tensor descriptions; offsets stay relative to the data section, whose place is known only after the last of them.
void read_tensor_infos(ByteReader& in, uint64_t n_tensors, GgufFile& gguf) {
  gguf.tensors.reserve(n_tensors);
  std::unordered_set<std::string_view> names;
  for (uint64_t i = 0; i < n_tensors; ++i) {
    GgufTensorInfo t{};
    t.info_at = in.position();
    const std::string_view name = in.take_string(kGgufMaxTensorNameBytes, "the name of tensor " + std::to_string(i));
    if (name.empty()) in.fail(t.info_at, "tensor " + std::to_string(i) + " has no name", "at least one byte", "none");
    const std::string what = "tensor " + in_quotes(name);
    if (!names.insert(name).second)
      in.fail(t.info_at, "the " + what + " appears twice", "every tensor once", "a second one");
    t.name = name;
    t.shape = read_shape(in, what);
    t.dtype = read_dtype(in, what);
    t.size_bytes = tensor_bytes(in, t, what);
    const uint64_t offset_at = in.position();
    t.offset_bytes = in.read<uint64_t>("the offset of " + what);
    if (t.offset_bytes % gguf.alignment != 0) {
      in.fail(offset_at, "the offset of " + what + " is not aligned", "a multiple of " + std::to_string(gguf.alignment),
              std::to_string(t.offset_bytes));
    }
    if (!gguf.tensors.empty()) {
      const GgufTensorInfo& before = gguf.tensors.back();
      if (t.offset_bytes < before.offset_bytes + before.size_bytes) {
        in.fail(offset_at, what + " overlaps the one before it or is out of order",
                "an offset of at least " + std::to_string(before.offset_bytes + before.size_bytes),
                std::to_string(t.offset_bytes));
      }
    }
    if (t.offset_bytes > static_cast<uint64_t>(std::numeric_limits<int64_t>::max()) - t.size_bytes) {
      in.fail(offset_at, "the end of " + what + " overflows", "an end below 2^63",
              "offset " + std::to_string(t.offset_bytes));
    }
    gguf.tensors.push_back(std::move(t));
  }
}

// Makes offsets absolute and compares them with the file.
void place_tensors(const ByteReader& in, bool header_only, GgufFile& gguf) {
  const uint64_t file_bytes = gguf.file->size_bytes();
  gguf.data_offset = (in.position() + gguf.alignment - 1) / gguf.alignment * gguf.alignment;
  for (GgufTensorInfo& t : gguf.tensors) {
    t.offset_bytes += gguf.data_offset;  // below 2^63 + 2^30
    const bool is_whole = t.size_bytes <= file_bytes && t.offset_bytes <= file_bytes - t.size_bytes;
    if (is_whole || t.size_bytes == 0) continue;
    const std::string what = "the data of tensor " + in_quotes(t.name) + " reaches beyond the end of the file";
    const std::string needed = "at least " + std::to_string(t.offset_bytes + t.size_bytes) + " bytes";
    if (!header_only || file_bytes > gguf.data_offset) {
      in.fail(t.offset_bytes, what, needed, std::to_string(file_bytes),
              "download the file again, it seems to be incomplete");
    }
    if (!gguf.missing_data) gguf.missing_data = what + "; expected " + needed + ", got " + std::to_string(file_bytes);
  }
}

}  // namespace

std::string GgufStoredType::text() const {
  std::string text(gguf_value_type_name(type));
  if (type == GgufValueType::kArray) text += " of " + std::string(gguf_value_type_name(element));
  return text;
}

GgufFile read_gguf_file(const std::string& path, bool header_only) {
  GgufFile gguf;
  gguf.file = MappedFile::open(path);
  ByteReader in(path, gguf.file->data(), gguf.file->size_bytes(), kGgufMaxHeaderBytes);
  read_magic_and_version(in, gguf);
  const uint64_t counts_at = in.position();
  const auto n_tensors = in.read<uint64_t>("the tensor count");
  const auto n_keys = in.read<uint64_t>("the key count");
  // Shortest key: an 8-byte length, one letter, a type, one byte. Shortest tensor: length, letter, rank, one dimension,
  // type, offset.
  in.check_count(counts_at, n_tensors, 8 + 1 + 4 + 8 + 4 + 8, "tensors");
  in.check_count(counts_at + 8, n_keys, 8 + 1 + 4 + 1, "keys");
  const uint64_t most = std::max(n_tensors, n_keys);
  if (most > kGgufMaxEntries)
    in.fail(counts_at, "too many tensors or keys", "at most " + std::to_string(kGgufMaxEntries), std::to_string(most));
  read_metadata(in, n_keys, gguf);
  read_alignment(in, gguf);
  in.check_count(counts_at, n_tensors, 8 + 1 + 4 + 8 + 4 + 8, "tensors");
  read_tensor_infos(in, n_tensors, gguf);
  place_tensors(in, header_only, gguf);
  gguf.file->check_intact();
  return gguf;
}

}  // namespace fathom
