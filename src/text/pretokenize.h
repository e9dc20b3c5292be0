// The first step of byte-level BPE: cut text into pieces that merges never cross.
#pragma once

#include <functional>
#include <string_view>

namespace fathom {

enum class PreTokenizer { kDeepSeekLlm, kDeepSeekCoder, kDeepSeekV3 };

/// From the value of tokenizer.ggml.pre: "deepseek-llm", "deepseek-coder", "deepseek-v3", "joyai-llm" (V4; same rules
/// as deepseek-v3). Throws Error{kModel} for any other name: a wrong guess would quietly give wrong ids.
PreTokenizer pre_tokenizer_from_name(std::string_view name);

/// Calls `sink` with the pieces of `text` in order; concatenated they are `text`, none is empty. Equals the regexes of
/// the reference tokenizers, each splitting the pieces of the one before; written out by hand because they must run in
/// linear time and constant stack on megabytes of one character. Bytes that are not UTF-8 count as characters of no
/// class.
void split_pieces(PreTokenizer rules, std::string_view text, const std::function<void(std::string_view)>& sink);

}  // namespace fathom
