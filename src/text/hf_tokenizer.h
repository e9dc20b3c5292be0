// Hugging Face's tokenizer.json as the tokenizer.ggml.* metadata that a GGUF of the same model has.
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <optional>

#include "core/metadata.h"

namespace fathom {

/// Keys: tokenizer.ggml.{model, pre, tokens, token_type, merges, bos_token_id, eos_token_id, padding_token_id,
/// add_bos_token, add_eos_token} and tokenizer.chat_template where known, ready for Vocab. `tokenizer` is
/// tokenizer.json; `config` is tokenizer_config.json or null. With `vocab_size` (config.json's), ids up to it that have
/// no token become unused "[PADn]".
///
/// Added tokens that are flagged special or look like `<｜...｜>` or `<|...|>` become control tokens, the others
/// user-defined. The pre-tokenizer is recognised by its regexes; joyai-llm cannot be told from deepseek-v3 and is
/// reported as the latter. Throws Error{kModel} naming the JSON path for anything that would change ids and is not
/// supported: another model than BPE, unknown regexes, a normalizer, added tokens that strip spaces.
Metadata tokenizer_metadata(const nlohmann::json& tokenizer, const nlohmann::json& config,
                            std::optional<int64_t> vocab_size = std::nullopt);

/// The same from a model folder: tokenizer.json and, where present, tokenizer_config.json and chat_template.jinja.
/// Throws Error{kModel} naming the file.
Metadata read_tokenizer_folder(const std::filesystem::path& folder, std::optional<int64_t> vocab_size = std::nullopt);

}  // namespace fathom
