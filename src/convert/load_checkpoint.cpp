#include "convert/load_checkpoint.h"

#include <cstring>
#include <vector>

#include "convert/hf_config.h"
#include "convert/tensor_encoder.h"
#include "convert/tensor_plan.h"
#include "convert/type_mix.h"
#include "core/buffer.h"
#include "core/error.h"
#include "core/plain_text.h"
#include "core/printable.h"
#include "core/threads.h"
#include "io/safetensors.h"

namespace fathom {
namespace {

struct Owner {
  explicit Owner(SafetensorsModel model) : checkpoint(std::move(model)) {}
  SafetensorsModel checkpoint;
  std::vector<std::shared_ptr<Buffer>> buffers;
};

/// The type a tensor has in memory.
DType type_in_memory(const PlannedTensor& t) {
  if (t.source_type == DType::kF8_E4M3) return DType::kBF16;
  const bool is_integer = t.source_type == DType::kI32 || t.source_type == DType::kI64;
  return is_kept_f32(t.name, t.shape) && !is_integer ? DType::kF32 : t.source_type;
}

/// Views need what kernels and readers of floats expect of an address.
bool is_aligned(const std::byte* data, DType type) {
  return data != nullptr && reinterpret_cast<uintptr_t>(data) % dtype_info(type).block_bytes == 0;
}

/// What was planned, and memory for what cannot be viewed in its file.
struct Layout {
  explicit Layout(const std::string& folder)
      : config(read_hf_config(folder)),
        owner(std::make_shared<Owner>(SafetensorsModel::open(folder))),
        plan(plan_tensors(config, owner->checkpoint, {/*splits_kv_b=*/true, MtpChoice::kAuto})) {
    for (auto& keys : {gguf_keys(config, true, plan.has_mtp), sampling_keys(folder), tokenizer_keys(folder, config)}) {
      for (const GgufKey& key : keys) out.metadata.set(key.name, key.value);
    }
    for (const PlannedTensor& t : plan.tensors) {
      const DType type = type_in_memory(t);
      const uint64_t size_bytes = static_cast<uint64_t>(t.n_rows()) * row_bytes(type, t.shape.last());
      out.size_bytes += size_bytes;
      const std::byte* in_place = t.rows->in_place(type);
      if (is_aligned(in_place, type)) {
        out.tensors.emplace(t.name,
                            Tensor(type, t.shape, const_cast<std::byte*>(in_place)));  // a view that nobody writes to
      } else {
        to_copy.push_back(&t);
        out.copied_bytes += size_bytes;
      }
    }
  }

  /// Memory for a tensor of to_copy, zero until written.
  std::byte* allocate(const PlannedTensor& t) {
    const DType type = type_in_memory(t);
    owner->buffers.push_back(allocate_heap(static_cast<size_t>(t.n_rows()) * row_bytes(type, t.shape.last()), t.name));
    std::byte* const at = owner->buffers.back()->data();
    out.tensors.emplace(t.name, Tensor(type, t.shape, at));
    return at;
  }

  LoadedCheckpoint take() {
    out.check_intact = [model = &owner->checkpoint] { model->check_intact(); };
    out.owner = std::move(owner);
    return std::move(out);
  }

  const HfConfig config;
  std::shared_ptr<Owner> owner;
  const TensorPlan plan;
  LoadedCheckpoint out;
  std::vector<const PlannedTensor*> to_copy;
};

}  // namespace

LoadedCheckpoint load_checkpoint(const std::string& folder, int n_threads, std::optional<uint64_t> available_bytes) {
  Layout layout(folder);
  if (available_bytes && layout.out.copied_bytes > *available_bytes) {
    throw Error(ErrorCode::kNoMemory, printable(folder, 400) +
                                          ": putting its tensors together does not fit; expected " +
                                          mib(layout.out.copied_bytes) + " free, got " + mib(*available_bytes) +
                                          "; try fathom convert to a smaller type, then that file");
  }
  TensorEncoder encoder(n_threads > 0 ? n_threads : usable_physical_cores());
  for (const PlannedTensor* t : layout.to_copy) {
    std::byte* at = layout.allocate(*t);
    encoder.encode(
        *t, type_in_memory(*t), nullptr,
        [&at](const std::byte* data, size_t n_bytes) { std::memcpy(at, data, n_bytes), at += n_bytes; }, [] {});
    layout.owner->checkpoint.check_intact();
  }
  return layout.take();
}

LoadedCheckpoint describe_checkpoint(const std::string& folder) {
  Layout layout(folder);
  for (const PlannedTensor* t : layout.to_copy) layout.allocate(*t);
  return layout.take();
}

}  // namespace fathom
