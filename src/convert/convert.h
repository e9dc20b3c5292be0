// Weight files into weight files: a Hugging Face checkpoint into GGUF, and GGUF into GGUF of other types.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "convert/hf_config.h"
#include "core/dtype.h"
#include "core/tensor.h"

namespace fathom {

/// What both commands take.
struct WriteOptions {
  std::string out;                        ///< path of the file, or of the first of its shards without their numbers
  std::string type;                       ///< a mix of type_mix.h
  std::vector<std::string> tensor_types;  ///< "REGEX=TYPE"
  std::string imatrix;                    ///< a file of llama.cpp's, or empty
  uint64_t split_max_bytes = 0;           ///< 0: one file
  int n_threads = 0;                      ///< 0: the physical cores this process may use
  bool is_dry_run = false;                ///< plan and sizes only
  std::function<void(uint64_t done_bytes, uint64_t total_bytes)> progress;  ///< of the result; may be empty
  std::function<bool()> stop;  ///< asked several times a second; true ends with Error{kInterrupted}
};

struct ConvertOptions : WriteOptions {
  std::string folder;
  std::string name;  ///< general.name; empty: the folder's
  MtpChoice mtp = MtpChoice::kAuto;
  bool splits_kv_b = true;  ///< attn_k_b and attn_v_b, as llama.cpp wants it since 2025; else attn_kv_b
};

struct QuantizeOptions : WriteOptions {
  std::string in;
  bool with_mtp = true;  ///< false: MTP layers are left out, as some readers want it
};

struct WriteReport {
  struct Line {
    std::string tensor;
    Shape shape;
    DType from, to;
    uint64_t from_bytes, to_bytes;
    bool has_importance;
  };
  std::vector<Line> tensors;       ///< in file order
  std::vector<std::string> paths;  ///< of the files written
  std::vector<std::string>
      notes;  ///< what people should know: fallbacks, layers left out, types that want an importance matrix
  uint64_t from_bytes = 0, to_bytes = 0;  ///< of the tensors
  uint64_t resumed_bytes = 0;             ///< found from an earlier, interrupted run
};

/// Writes the GGUF file of a checkpoint of V1, V2, V3 (R1, V3.1), V3.2 or V4, tensor by tensor: memory stays at a few
/// batches of rows whatever the size. An interrupted run leaves OUT.part and OUT.journal; the same command goes on from
/// there. Throws Error{kModel} naming file, field or tensor; Error{kUsage} for types; Error{kRuntime} for the disk.
WriteReport convert_checkpoint(const ConvertOptions& options);

/// Writes `in` again with other types. Metadata stays, apart from the file type. Tensors that keep their type are
/// copied bit for bit; "copy" as the type changes those alone that rules name. Resumed as above. Throws likewise.
WriteReport quantize_file(const QuantizeOptions& options);

}  // namespace fathom
