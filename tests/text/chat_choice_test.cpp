#include "text/chat_choice.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "core/error.h"
#include "text/chat_templates.h"

using namespace fathom;

namespace {

ChatGeneration choose(const std::string& chat_template, std::vector<std::string> tokens, size_t vocab_size = 129280,
                      const char* architecture = "deepseek2", const char* name = "") {
  const ChatChoice choice = choose_format(
      {.chat_template = chat_template,
       .has_token =
           [&](std::string_view text) { return std::find(tokens.begin(), tokens.end(), text) != tokens.end(); },
       .vocab_size = vocab_size,
       .architecture = architecture,
       .model_name = name});
  CHECK_FALSE(choice.reason.empty());
  return choice.generation;
}

const std::string kUser = "<｜User｜>", kThink = "<think>", kSearch = "<｜search▁begin｜>", kDsml = "｜DSML｜";

}  // namespace

TEST_CASE(
    "the templates that conversion adds are known as their generation's, by this program and by llama.cpp's rule") {
  for (const ChatGeneration generation : {ChatGeneration::kV32, ChatGeneration::kV4}) {
    const std::string text = chat_template_of(generation);
    CHECK(choose(text, {kUser, kThink}, 129280, "deepseek2") == generation);
    CHECK(text.find("dsml_token") != std::string::npos);  // what llama.cpp looks for before it reads calls as DSML
  }
  CHECK(chat_template_of(ChatGeneration::kV31).empty());
}

TEST_CASE("the template decides") {
  CHECK(choose("{{'User: ' + m}}{{'Assistant:'}}", {}, 102400) == ChatGeneration::kV2);
  CHECK(choose("'<｜User｜>' + content '<｜Assistant｜>'", {kUser}, 102400) == ChatGeneration::kV25);
  CHECK(choose("'<｜User｜>' + content '<｜Assistant｜>'", {kUser}) == ChatGeneration::kV3);
  CHECK(choose("ns.is_last_user '<｜User｜>' + content + '<｜Assistant｜>'", {kUser}) == ChatGeneration::kV3_0324);
  CHECK(choose("'<｜User｜>' content.split('</think>')[-1] '<｜Assistant｜><think>\\n'", {kUser, kThink}) ==
        ChatGeneration::kR1);
  CHECK(choose("'<｜User｜>' content.split('</think>')[-1] '<｜Assistant｜>'", {kUser, kThink}) ==
        ChatGeneration::kR1_0528);
  CHECK(choose("'<｜User｜>' content.split('</think>')[-1] '<｜Assistant｜>'", {kUser}) == ChatGeneration::kV3);
  CHECK(choose("not thinking is defined '<｜User｜>' ns.is_last_user '</think>'", {kUser, kThink}) ==
        ChatGeneration::kV31);
  CHECK(choose("'<｜User｜>' thinking '</think>' <｜DSML｜function_calls>", {kUser, kThink}) == ChatGeneration::kV32);
  CHECK(choose("'<｜User｜>' thinking '</think>' <｜DSML｜tool_calls>", {kUser, kThink, kDsml}) == ChatGeneration::kV4);
}

TEST_CASE("without a template the tokens, the architecture and the name decide") {
  CHECK(choose("", {kUser, kThink, kDsml}) == ChatGeneration::kV4);
  CHECK(choose("", {kUser, kThink}, 129280, "deepseek4") == ChatGeneration::kV4);
  CHECK(choose("", {kUser, kThink, kSearch}, 129280, "deepseek32") == ChatGeneration::kV32);
  CHECK(choose("", {kUser, kThink, kSearch}) == ChatGeneration::kV31);
  CHECK(choose("", {kUser, kThink, kSearch}, 129280, "deepseek2", "DeepSeek V3.2") == ChatGeneration::kV32);
  CHECK(choose("", {kUser, kThink, kSearch}, 129280, "deepseek2", "DeepSeek-V3.2-Exp") == ChatGeneration::kV31);
  CHECK(choose("", {kUser, kThink}) == ChatGeneration::kR1);
  CHECK(choose("", {kUser, kThink}, 129280, "deepseek2", "DeepSeek-R1-0528") == ChatGeneration::kR1_0528);
  CHECK(choose("", {kUser}, 129280, "deepseek2", "DeepSeek V3 0324") == ChatGeneration::kV3_0324);
  CHECK(choose("", {kUser}) == ChatGeneration::kV3);
  CHECK(choose("", {kUser}, 102400) == ChatGeneration::kV25);
  CHECK(choose("", {}, 102400) == ChatGeneration::kV2);
  CHECK(choose("", {}, 102400, "deepseek") == ChatGeneration::kV2);
  CHECK(choose_format({}).generation == ChatGeneration::kV2);
}

TEST_CASE("a template of another family leaves the choice to the tokens") {
  CHECK(choose("<|im_start|>user", {kUser, kThink}) == ChatGeneration::kR1);
}

TEST_CASE("names and generations are one to one, and an unknown name lists them") {
  for (const ChatGeneration generation : kChatGenerations)
    CHECK(chat_generation_from_name(name_of(generation)) == generation);
  CHECK_THROWS_WITH_AS(chat_generation_from_name("v5"),
                       doctest::Contains("v2, v2.5, v3, v3-0324, r1, r1-0528, v3.1, v3.2, v4"), Error);
}

TEST_CASE("sampling advice is DeepSeek's") {
  CHECK(recommended_sampling(ChatGeneration::kR1).temperature == 0.6f);
  CHECK(recommended_sampling(ChatGeneration::kR1_0528).top_p == 0.95f);
  CHECK(recommended_sampling(ChatGeneration::kV3).temperature == 0.3f);
  CHECK_FALSE(recommended_sampling(ChatGeneration::kV3).top_p.has_value());
  CHECK(recommended_sampling(ChatGeneration::kV4).temperature == 1.0f);
  CHECK_FALSE(recommended_sampling(ChatGeneration::kV2).temperature.has_value());
}
