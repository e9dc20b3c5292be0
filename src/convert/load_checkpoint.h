// A Hugging Face checkpoint as a model in memory, without writing a file.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "core/metadata.h"
#include "core/tensor.h"

namespace fathom {

/// Metadata and tensors as a GGUF file of the checkpoint would have them.
struct LoadedCheckpoint {
  Metadata metadata;
  std::map<std::string, Tensor> tensors;
  uint64_t size_bytes = 0;             ///< of all tensors
  uint64_t copied_bytes = 0;           ///< of those that could not be viewed in their files
  std::shared_ptr<const void> owner;   ///< of what the tensors view
  std::function<void()> check_intact;  ///< throws if a file was cut short since
};

/// Weights stay in the types they have: matrices that GGUF would hold row for row alike are views of the mapped files;
/// stacks of experts, split or rotated matrices and vectors are put together in memory, FP8 with factors as BF16, FP4
/// as MXFP4. `available_bytes`: what memory there is for that, if known. Throws Error{kNoMemory} with both numbers,
/// Error{kModel} as convert_checkpoint does.
LoadedCheckpoint load_checkpoint(const std::string& folder, int n_threads, std::optional<uint64_t> available_bytes);

/// The same from headers alone, in no time: what would have to be put together is zeros that take no memory. For
/// estimates. Throws Error{kModel} as load_checkpoint does.
LoadedCheckpoint describe_checkpoint(const std::string& folder);

}  // namespace fathom
