// fathom tokenize: text to token ids.
#include <memory>

#include <nlohmann/json.hpp>

#include "core/error.h"
#include "main/input.h"
#include "main/lines.h"
#include "main/options.h"
#include "text/bpe.h"
#include "text/chat_json.h"

namespace fathom {
namespace {

struct Options {
  CommonOptions common;
  ModelOption model;
  std::optional<std::string> text;
  bool special = false, lines = false, json = false;
};

/// [{"id":, "piece": the text, "bytes": [each]}]
std::string pieces_json(const Tokenizer& tokenizer, const std::vector<int32_t>& ids) {
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const int32_t id : ids) {
    const std::string_view bytes = tokenizer.vocab().bytes(id);
    nlohmann::ordered_json values = nlohmann::ordered_json::array();
    for (const char c : bytes) values.push_back(static_cast<unsigned char>(c));
    list.push_back({{"id", id}, {"piece", to_valid_utf8(bytes)}, {"bytes", values}});
  }
  return list.dump() + "\n";
}

int run(const Options& options) {
  if (options.lines && (options.text.value_or("-") != "-" || options.json)) {
    throw Error(ErrorCode::kUsage,
                "tokenize: --lines reads standard input and writes lists; expected neither TEXT nor --json beside it");
  }
  const Tokenizer tokenizer(read_model_metadata(options.model.choose(options.common.console())));
  if (options.lines) {
    transform_lines("tokenize", [&](const std::string& line, const std::string& where) {
      const ChatJson value = parse_chat_json(line, where);
      if (!value.is_string())
        throw Error(ErrorCode::kUsage,
                    where + ": not a string; expected one JSON string a line, got " + value.type_name());
      return nlohmann::json(tokenizer.encode(value.get_ref<const std::string&>(), options.special)).dump();
    });
    return 0;
  }
  const std::vector<int32_t> ids = tokenizer.encode(text_argument(options.text, "tokenize"), options.special);
  if (options.json) {
    write_answer(pieces_json(tokenizer, ids));
    return 0;
  }
  std::string line;
  for (const int32_t id : ids) line += (line.empty() ? "" : " ") + std::to_string(id);
  write_answer(line + "\n");
  return 0;
}

}  // namespace

Command add_tokenize(CLI::App& root) {
  auto options = std::make_shared<Options>();
  CLI::App* app = root.add_subcommand("tokenize", "Text to token ids, without BOS");
  app->add_option("text", options->text, "The text, or - for standard input")->type_name("TEXT|-");
  options->model.declare(*app);
  app->add_flag("--special", options->special,
                "Special and added tokens spelled in the text become their ids (default: none does)");
  app->add_flag("--lines", options->lines,
                "Each line of standard input is a JSON string; each line out its JSON list of ids");
  app->add_flag("--json", options->json, "As a JSON list of {\"id\", \"piece\", \"bytes\"}");
  options->common.declare(*app);
  return {app, [options] { return run(*options); }};
}

}  // namespace fathom
