// The fixed texts that DeepSeek's own templates and encoders write, and the spelling of the markers in them.
#pragma once

#include <string_view>

namespace fathom::chat_literals {

inline constexpr std::string_view kBos = "<｜begin▁of▁sentence｜>";
inline constexpr std::string_view kEos = "<｜end▁of▁sentence｜>";
inline constexpr std::string_view kUser = "<｜User｜>";
inline constexpr std::string_view kAssistant = "<｜Assistant｜>";
inline constexpr std::string_view kThink = "<think>";
inline constexpr std::string_view kThinkEnd = "</think>";
inline constexpr std::string_view kLatestReminder = "<｜latest_reminder｜>";

inline constexpr std::string_view kCallsBegin = "<｜tool▁calls▁begin｜>";
inline constexpr std::string_view kCallsEnd = "<｜tool▁calls▁end｜>";
inline constexpr std::string_view kCallBegin = "<｜tool▁call▁begin｜>";
inline constexpr std::string_view kCallEnd = "<｜tool▁call▁end｜>";
inline constexpr std::string_view kSep = "<｜tool▁sep｜>";
inline constexpr std::string_view kOutputsBegin = "<｜tool▁outputs▁begin｜>";
inline constexpr std::string_view kOutputsEnd = "<｜tool▁outputs▁end｜>";
inline constexpr std::string_view kOutputBegin = "<｜tool▁output▁begin｜>";
inline constexpr std::string_view kOutputEnd = "<｜tool▁output▁end｜>";

/// A token of its own in V4, plain text in V3.2.
inline constexpr std::string_view kDsml = "｜DSML｜";

extern const std::string_view kToolsHeadV31, kToolsTailV31;
extern const std::string_view kToolsHeadV32, kToolsTailV32;
extern const std::string_view kToolsHeadV4, kToolsTailV4;
extern const std::string_view kEffortHighV4, kEffortMaxV4;

/// For the fenced generations (V2.5 to R1-0528), which have no official text: the V3.1 text with their call syntax.
extern const std::string_view kToolsTailFenced;

/// Before the schema in V3.2 and V4; the older formats, which know none, are given the same words.
extern const std::string_view kResponseFormat;

}  // namespace fathom::chat_literals
