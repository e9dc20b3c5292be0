// fathom detokenize: token ids to bytes.
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
  std::vector<std::string> ids;
  bool lines = false;
};

std::vector<int32_t> read_ids(const ChatJson& value, const std::string& where) {
  if (!value.is_array())
    throw Error(ErrorCode::kUsage,
                where + ": not a list; expected a JSON list of token ids a line, got " + value.type_name());
  std::vector<int32_t> ids;
  for (const ChatJson& item : value) {
    if (!item.is_number_integer() || item < 0 || item > INT32_MAX)
      throw Error(ErrorCode::kUsage, where + ": not a token id; expected a whole number, got " + item.dump());
    ids.push_back(item.get<int32_t>());
  }
  return ids;
}

int run(const Options& options) {
  if (options.lines && !(options.ids.empty() || options.ids == std::vector<std::string>{"-"})) {
    throw Error(ErrorCode::kUsage, "detokenize: --lines reads standard input; expected no ids beside it, got " +
                                       std::to_string(options.ids.size()));
  }
  const Tokenizer tokenizer(read_model_metadata(options.model.choose(options.common.console())));
  if (options.lines) {
    transform_lines("detokenize", [&](const std::string& line, const std::string& where) {
      return nlohmann::json(to_valid_utf8(tokenizer.decode(read_ids(parse_chat_json(line, where), where)))).dump();
    });
    return 0;
  }
  std::optional<std::string> text;
  for (const std::string& id : options.ids) text = text.value_or("") + (text ? " " : "") + id;
  text = text_argument(text, "detokenize");
  const bool is_blank = text->find_first_not_of(" \t\r\n") == std::string::npos;
  AnswerOutput out;
  if (!is_blank) out.write(tokenizer.decode(parse_ids(*text, "detokenize")));
  out.finish();
  return 0;
}

}  // namespace

Command add_detokenize(CLI::App& root) {
  auto options = std::make_shared<Options>();
  CLI::App* app = root.add_subcommand("detokenize", "Token ids to their bytes");
  app->add_option("ids", options->ids, "Token ids, or - for standard input")->type_name("ID ...|-")->take_all();
  options->model.declare(*app);
  app->add_flag("--lines", options->lines,
                "Each line of standard input is a JSON list of ids; each line out a JSON string (not UTF-8: U+FFFD)");
  options->common.declare(*app);
  return {app, [options] { return run(*options); }};
}

}  // namespace fathom
