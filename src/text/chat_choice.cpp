#include "text/chat_choice.h"

#include <algorithm>
#include <cctype>
#include <optional>

#include "text/chat_literals.h"

namespace fathom {
namespace {

using namespace chat_literals;

class Chooser {
 public:
  explicit Chooser(const ChatEvidence& evidence) : evidence_(evidence) {}

  ChatChoice choose() const {
    if (!evidence_.chat_template.empty()) {
      if (auto choice = from_template()) return *choice;
    }
    const std::string_view architecture = evidence_.architecture;
    if (has_token(kDsml)) return {ChatGeneration::kV4, "the vocabulary has ｜DSML｜"};
    if (architecture == "deepseek4") return {ChatGeneration::kV4, "architecture deepseek4"};
    if (architecture == "deepseek32") return {ChatGeneration::kV32, "architecture deepseek32"};
    if (architecture == "deepseek") return {ChatGeneration::kV2, "architecture deepseek"};
    if (has_token(kUser)) {
      if (auto choice = from_name()) return *choice;
    }
    if (has_token(kThink)) {
      if (has_token("<｜search▁begin｜>"))
        return {ChatGeneration::kV31, "the vocabulary has <think> and <｜search▁begin｜>"};
      return {ChatGeneration::kR1, "the vocabulary has <think>"};
    }
    if (has_token(kUser)) return {v3_or_v25(), "the vocabulary has <｜User｜>"};
    return {ChatGeneration::kV2, "the vocabulary has no <｜User｜>"};
  }

 private:
  bool has_token(std::string_view text) const { return evidence_.has_token && evidence_.has_token(text); }
  bool says(std::string_view text) const { return evidence_.chat_template.find(text) != std::string_view::npos; }

  /// One format; they differ in the advice on sampling. The vocabularies have about 102,400 and 129,280 tokens.
  ChatGeneration v3_or_v25() const {
    return evidence_.vocab_size > 0 && evidence_.vocab_size < 110000 ? ChatGeneration::kV25 : ChatGeneration::kV3;
  }

  std::optional<ChatChoice> from_template() const {
    if (says(kDsml)) {
      if (says("tool_calls>")) return ChatChoice{ChatGeneration::kV4, "the chat template writes ｜DSML｜tool_calls"};
      if (says("function_calls>"))
        return ChatChoice{ChatGeneration::kV32, "the chat template writes ｜DSML｜function_calls"};
    }
    if (says(kUser)) {
      if (says(kThinkEnd) && says("thinking"))
        return ChatChoice{ChatGeneration::kV31, "the chat template has a thinking switch"};
      if (says("<｜Assistant｜><think>")) return ChatChoice{ChatGeneration::kR1, "the chat template opens <think>"};
      if (says(kThinkEnd)) {
        if (has_token(kThink))
          return ChatChoice{ChatGeneration::kR1_0528, "the chat template cuts reasoning, and <think> is a token"};
        return ChatChoice{v3_or_v25(), "the chat template cuts reasoning, and <think> is no token"};
      }
      if (says("is_last_user"))
        return ChatChoice{ChatGeneration::kV3_0324, "the chat template opens an answer with each question"};
      return ChatChoice{v3_or_v25(), "the chat template writes <｜User｜>"};
    }
    if (says("User: ") && says("Assistant:"))
      return ChatChoice{ChatGeneration::kV2, "the chat template writes \"User: \""};
    return {};
  }

  std::optional<ChatChoice> from_name() const {
    std::string name(evidence_.model_name);
    std::transform(name.begin(), name.end(), name.begin(),
                   [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    const auto names = [&](std::string_view text) { return name.find(text) != std::string::npos; };
    // V3.2-Exp still speaks V3.1's format.
    if (names("v3.2") && !names("exp")) return ChatChoice{ChatGeneration::kV32, "the model's name"};
    if (names("v3.1") || names("v3.2")) return ChatChoice{ChatGeneration::kV31, "the model's name"};
    if (names("0528")) return ChatChoice{ChatGeneration::kR1_0528, "the model's name"};
    if (names("0324")) return ChatChoice{ChatGeneration::kV3_0324, "the model's name"};
    return {};
  }

  const ChatEvidence& evidence_;
};

}  // namespace

ChatChoice choose_format(const ChatEvidence& evidence) { return Chooser(evidence).choose(); }

}  // namespace fathom
