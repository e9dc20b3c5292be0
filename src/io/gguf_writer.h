// Writes GGUF version 3 as a stream: what is in the file first, then the tensors' bytes, piece by piece.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/dtype.h"
#include "core/metadata.h"
#include "core/tensor.h"
#include "io/gguf_file.h"
#include "io/output_file.h"

namespace fathom {

struct GgufWriterOptions {
  uint64_t alignment = kGgufDefaultAlignment;
  /// Tensor bytes a file may hold before the next shard begins; 0: one file. A larger tensor gets a shard of its own.
  uint64_t split_max_bytes = 0;
  /// Names what the tensors' bytes are made from (sources, options). With it an unfinished result stays on the disk as
  /// PATH.part with PATH.journal beside it, and the next writer that declares the same under the same key goes on
  /// there.
  std::optional<std::string> resume_key = std::nullopt;
  /// With a resume_key: what a killed process may lose, beside the tensor it was at, unless that took less than
  /// seconds.
  uint64_t note_bytes = uint64_t{1} << 30;
};

/// Declare (set, add_tensor), begin(), write() every tensor in the order of declaration, finish(). Nothing of the
/// result is visible under its name before finish(); destroyed earlier, the writer leaves no trace. More than one
/// shard: the files are called PREFIX-00001-of-0000N.gguf, PREFIX being the path without ".gguf", and the metadata
/// stands in the first. With a resume_key a destroyed writer keeps whole tensors for the next one; begin() says how
/// many there are. Misuse (order, sizes, values out of their type's range) is a BugError; the disk's refusals are
/// Error{kRuntime}. One thread at a time.
class GgufWriter {
 public:
  explicit GgufWriter(std::string path, GgufWriterOptions options = {});
  ~GgufWriter();
  GgufWriter(const GgufWriter&) = delete;
  GgufWriter& operator=(const GgufWriter&) = delete;

  /// Sets a key to `value`, stored as `stored` says; a second call replaces the value in place.
  void set(const std::string& key, const MetadataValue& value, GgufStoredType stored);
  /// The types that other readers expect: u32 for counts and ids, i32 in arrays.
  void set_u32(const std::string& key, uint32_t value) { set(key, static_cast<int64_t>(value), {GgufValueType::kU32}); }
  void set_f32(const std::string& key, double value) { set(key, value, {GgufValueType::kF32}); }
  void set_bool(const std::string& key, bool value) { set(key, value, {GgufValueType::kBool}); }
  void set_text(const std::string& key, std::string value) { set(key, std::move(value), {GgufValueType::kString}); }
  void set_texts(const std::string& key, std::vector<std::string> values);
  void set_i32s(const std::string& key, std::vector<int64_t> values);
  /// Every key of another file with its type, without those of split files.
  void copy_metadata(const GgufFile& from);

  /// Shape slowest first. Names are unique.
  void add_tensor(std::string name, DType dtype, Shape shape);

  /// Lays out the shards; from here on nothing may be declared. Returns how many tensors, in the order of declaration,
  /// are there already from an earlier writer with the same resume_key: write() goes on with the one after.
  size_t begin();
  /// The next bytes of the tensor `name`, which must be the first one in order that is not complete.
  void write(std::string_view name, const void* data, size_t size_bytes);
  /// After begin(), instead of the rest: nothing remains, not even for a later writer to go on with.
  void discard();
  /// Puts the files in place, the first shard last. Every tensor must be complete.
  void finish();

  /// The files' paths, known after begin().
  std::vector<std::string> paths() const;

 private:
  struct TensorPlan {
    std::string name;
    DType dtype;
    Shape shape;
    uint64_t size_bytes;
    size_t shard;
    uint64_t offset_bytes;  ///< in its shard's data section
  };

  void plan_shards();
  void open_shard(size_t shard);
  std::string header_of(size_t shard) const;
  void pad();
  void enter_shard_of_next_tensor();
  bool take_up();
  bool take_up_whole_shards();
  uint64_t shard_bytes(size_t shard) const;
  void note_progress();
  void write_journal(size_t shard, uint64_t n_bytes);
  std::string journal_path() const { return path_ + ".journal"; }

  std::string path_;
  GgufWriterOptions options_;
  std::vector<std::pair<std::string, std::string>> keys_;  ///< key -> encoded type and value
  std::vector<TensorPlan> tensors_;
  size_t n_shards_ = 1;
  bool begun_ = false;
  bool is_closed_ = false;  ///< put in place or thrown away: nothing is to be noted for a later writer
  size_t current_tensor_ = 0;
  uint64_t current_written_bytes_ = 0;
  std::vector<std::unique_ptr<OutputFile>> files_;  ///< shards opened so far, null where in place
  std::string fingerprint_;                         ///< of declaration and resume_key
  uint64_t noted_bytes_ = 0;                        ///< of the current shard, in the journal
  std::chrono::steady_clock::time_point noted_at_ = std::chrono::steady_clock::now();
};

}  // namespace fathom
