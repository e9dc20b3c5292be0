// fathom run: one prompt, one answer.
#include <chrono>
#include <memory>

#include "core/error.h"
#include "main/answer.h"
#include "main/chat_format_option.h"
#include "main/input.h"
#include "sampling/stop_matcher.h"
#include "server/json_constraint.h"
#include "text/chat_format.h"

namespace fathom {
namespace {

struct Options {
  CommonOptions common;
  ModelOption model;
  EngineFlags engine;
  SamplingFlags sampling;
  std::optional<std::string> prompt, prompt_option;
  std::string prompt_file, messages_file, schema_file, system, ids;
  bool raw = false, show_thinking = false, ignore_eos = false, json = false, jsonl = false;
  std::string think = "auto";
  int64_t max_tokens = 512;
  std::vector<std::string> stop;
};

/// What was asked, before there is a model: exactly one of the three.
struct Question {
  std::optional<std::string> text;
  std::optional<ChatConversation> conversation;
  std::vector<int32_t> ids;
  std::shared_ptr<const ByteGrammar> grammar;  ///< of the answer; null: free text
};

ChatMessage make_message(ChatRole role, std::string content) {
  ChatMessage message;
  message.role = role;
  message.content = std::move(content);
  return message;
}

std::string read_prompt_text(const Options& options) {
  const int sources = options.prompt.has_value() + options.prompt_option.has_value() + !options.prompt_file.empty();
  if (sources > 1)
    throw Error(ErrorCode::kUsage,
                "run: more than one prompt; expected one of PROMPT, --prompt and --prompt-file, got " +
                    std::to_string(sources));
  const bool is_stdin = options.prompt == "-" || options.prompt_file == "-";
  std::optional<std::string> piped = is_stdin ? read_input("-", "run") : read_piped_input();
  std::string text = without_last_newline(piped.value_or(""));
  std::string own;
  if (!is_stdin)
    own = options.prompt                ? *options.prompt
          : options.prompt_option       ? *options.prompt_option
          : options.prompt_file.empty() ? ""
                                        : without_last_newline(read_input(options.prompt_file, "--prompt-file"));
  text += (text.empty() || own.empty() ? "" : "\n\n") + own;
  if (text.empty())
    throw Error(ErrorCode::kUsage,
                "run: no prompt; expected text as an argument, in a file or on standard input; try fathom run \"Once "
                "upon a time\"");
  return text;
}

Question read_question(const Options& options) {
  const bool has_text = options.prompt || options.prompt_option || !options.prompt_file.empty();
  const int kinds = has_text + !options.ids.empty() + !options.messages_file.empty();
  if (kinds > 1)
    throw Error(ErrorCode::kUsage, "run: more than one prompt; expected one of a text, --ids and --messages, got " +
                                       std::to_string(kinds));
  const bool is_chat = options.ids.empty() && !options.raw;
  if (!is_chat && (!options.system.empty() || !options.messages_file.empty())) {
    throw Error(ErrorCode::kUsage,
                "run: --raw and --ids have no chat format; expected neither --system nor --messages beside them");
  }
  Question question;
  if (!options.ids.empty()) {
    question.ids = parse_ids(options.ids, "--ids");
  } else if (!options.messages_file.empty()) {
    question.conversation =
        read_chat_conversation(parse_chat_json(read_input(options.messages_file, "--messages"), "--messages"));
  } else if (options.raw) {
    question.text = read_prompt_text(options);
  } else {
    question.conversation.emplace();
    question.conversation->messages.push_back(make_message(ChatRole::kUser, to_valid_utf8(read_prompt_text(options))));
  }
  if (!options.schema_file.empty()) {
    const ChatJson schema = parse_chat_json(read_input(options.schema_file, "--schema"), "--schema");
    question.grammar = make_json_grammar(schema, "--schema");
  }
  if (question.conversation) {
    if (!options.system.empty())
      question.conversation->messages.insert(question.conversation->messages.begin(),
                                             make_message(ChatRole::kSystem, to_valid_utf8(options.system)));
    set_thinking(options.think, question.conversation->options);
  }
  return question;
}

Prompt make_prompt(const Engine& engine, const Question& question) {
  Prompt prompt;
  bool is_reasoning_first = false;
  if (question.conversation) {
    const ChatConversation& chat = *question.conversation;
    const std::vector<PromptPart> parts =
        render_chat(engine.chat_generation(), chat.messages, chat.tools, chat.options);
    prompt.is_chat = true;
    prompt.token_ids = engine.tokenizer().encode(parts);
    is_reasoning_first = opens_reasoning(parts);
    prompt.parser = {
        .starts_in_reasoning = is_reasoning_first, .parse_calls = !chat.tools.empty(), .tools = chat.tools};
  } else {
    prompt.token_ids = question.text ? encode_raw(engine, *question.text) : question.ids;
  }
  if (question.grammar)
    prompt.constraint = constrain_to_grammar(engine.tokenizer().vocab(), question.grammar, is_reasoning_first);
  return prompt;
}

/// Writes an answer to standard output in the form asked for.
class Printer {
 public:
  Printer(const Options& options, const Console& console) : options_(options), console_(console) {}

  AnswerSink sink() {
    if (options_.json) return {};
    if (options_.jsonl) {
      return {.reasoning =
                  [this](std::string_view text) {
                    print_line({{"reasoning_delta", text}});
                  },
              .content =
                  [this](std::string_view text) {
                    print_line({{"delta", text}});
                  }};
    }
    AnswerSink sink;
    sink.content = [this](std::string_view text) {
      close_reasoning();
      out_.write(text);
    };
    if (options_.show_thinking) {
      sink.reasoning = [this](std::string_view text) {
        if (!in_reasoning_) out_.write_dimmed("<think>\n", console_.color_out());
        in_reasoning_ = true;
        out_.write_dimmed(text, console_.color_out());
      };
    }
    return sink;
  }

  void finish(const Answer& answer, const nlohmann::ordered_json& json) {
    if (options_.json || options_.jsonl) return print_line(json);
    close_reasoning();
    // Calls are the answer where the model asks for tools: one JSON object a line.
    nlohmann::ordered_json parsed = answer.parsed.to_json();
    for (const nlohmann::ordered_json& call : parsed["tool_calls"]) out_.write(dump(call) + "\n");
    out_.finish();
  }

 private:
  static std::string dump(const nlohmann::ordered_json& json) {
    return json.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
  }
  static void print_line(const nlohmann::ordered_json& json) { write_answer(dump(json) + "\n"); }

  void close_reasoning() {
    if (in_reasoning_) out_.write_dimmed("\n</think>\n\n", console_.color_out());
    in_reasoning_ = false;
  }

  const Options& options_;
  const Console& console_;
  AnswerOutput out_;
  bool in_reasoning_ = false;
};

int run(const Options& options) {
  const Console console = options.common.console();
  if (options.json && options.jsonl)
    throw Error(ErrorCode::kUsage, "run: --json and --jsonl exclude each other; expected one of them");
  options.sampling.check();
  GenerateOptions generate_options;
  generate_options.max_tokens = options.max_tokens;
  generate_options.stop = options.stop;
  generate_options.ignore_eos = options.ignore_eos;
  validate_stop_strings(options.stop);
  const Question question = read_question(options);

  const auto start = std::chrono::steady_clock::now();
  const std::unique_ptr<Engine> engine = load_engine(options.model, options.engine, options.common, console);
  const double load_ms = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
  generate_options.sampling = options.sampling.params(*engine, options.common.seed);
  const Prompt prompt = make_prompt(*engine, question);

  Scheduler scheduler(*engine, one_reader(options.engine.draft_mode()));
  Printer printer(options, console);
  const Answer answer = generate_answer(*engine, scheduler, prompt, generate_options, printer.sink(), console);
  printer.finish(answer, options.json || options.jsonl ? answer_json(*engine, scheduler, options.engine, answer,
                                                                     generate_options.sampling.seed, load_ms)
                                                       : nlohmann::ordered_json());
  if (answer.generation.context_full) {
    console.warn("the answer ends because the context of " + std::to_string(engine->context()) +
                 " tokens is full; a larger --ctx gives room");
  }
  console.detail(answer_statistics(answer) + "; seed " + std::to_string(generate_options.sampling.seed));
  return answer.generation.finish == FinishReason::kInterrupted ? static_cast<int>(ErrorCode::kInterrupted) : 0;
}

}  // namespace

Command add_run(CLI::App& root) {
  auto options = std::make_shared<Options>();
  Options& o = *options;
  CLI::App* app = root.add_subcommand("run", "One prompt, one answer");
  app->add_option("text", o.prompt, "The prompt, or - for standard input")->type_name("PROMPT|-");
  app->add_option("-p,--prompt", o.prompt_option, "The prompt")->type_name("TEXT");
  app->add_option("-f,--prompt-file,--file", o.prompt_file, "Read the prompt from a file")->type_name("FILE");
  o.model.declare(*app);
  app->add_flag("--raw", o.raw,
                "Continue the text as it is, special tokens spelled in it included (default: the model's chat format)");
  app->add_option("--system", o.system, "System message")->type_name("TEXT");
  app->add_option("--messages", o.messages_file, "Conversation as JSON: a list of messages as in the OpenAI API")
      ->type_name("FILE");
  app->add_option("--schema", o.schema_file, "The answer is to be JSON that fits the JSON schema in this file")
      ->type_name("FILE");
  app->add_option("--ids", o.ids, "Token ids instead of text, taken as they are")->type_name("1,2,3");
  app->add_option("--think", o.think,
                  "Reason before answering, and with V4 how much (default: auto, as the model does)")
      ->check(one_of(kThinkChoices));
  app->add_flag("--show-thinking", o.show_thinking, "Print the reasoning too, between <think> and </think>");
  app->add_option("-n,--max-tokens", o.max_tokens,
                  "Most tokens of the answer; 0: evaluate the prompt only (default: 512)")
      ->check(at_least(0))
      ->type_name("N");
  app->add_option("--stop", o.stop, "End the answer before this text; repeatable")
      ->type_name("TEXT")
      ->allow_extra_args(false)
      ->take_all();
  app->add_flag("--ignore-eos", o.ignore_eos, "Go on after an end token");
  app->add_flag("--json", o.json, "Print one JSON object");
  app->add_flag("--jsonl", o.jsonl, "Print a JSON object for each piece, and the one of --json last");
  o.sampling.declare(*app);
  o.engine.declare(*app);
  o.engine.declare_answering(*app);
  o.common.declare(*app);
  return {app, [options] { return run(*options); }};
}

}  // namespace fathom
