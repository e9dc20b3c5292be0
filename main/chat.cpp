// fathom chat: a conversation in a terminal.
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>

#include "core/error.h"
#include "core/plain_text.h"
#include "core/printable.h"
#include "main/answer.h"
#include "main/chat_format_option.h"
#include "main/chat_session.h"
#include "main/input.h"
#include "main/line_editor.h"
#include "main/signals.h"
#include "text/chat_format.h"

namespace fathom {
namespace {

struct Options {
  CommonOptions common;
  ModelOption model;
  EngineFlags engine;
  SamplingFlags sampling;
  std::string system, session_file, think = "auto";
  bool continue_last = false, hide_thinking = false, no_history = false;
  int64_t max_tokens = 0;
};

constexpr const char* kHelp =  // for a window of 80 columns and 24 rows
    "/help             this list\n"
    "/exit             leave, as Ctrl-D does\n"
    "/clear            begin anew\n"
    "/regen            another answer to the last question\n"
    "/undo             take the last question back\n"
    "/think [HOW]      on, off, auto, low, high, max\n"
    "/system [TEXT|-]  show, set or drop (-) the system text\n"
    "/set NAME VALUE   temp, top-k, top-p, min-p, seed, max-tokens ...\n"
    "/show             model and settings\n"
    "/ctx              how full the context is\n"
    "/stats            the last answer in numbers\n"
    "/save FILE        write the conversation\n"
    "/load FILE        go on with a saved one\n"
    "/read FILE        put a file before your next message\n"
    "/edit             write in $EDITOR, as Ctrl-G\n"
    "\"\"\"               opens and closes a block of several lines\n"
    "Alt-Enter or Ctrl-J begins a new line, Ctrl-R searches what was typed,\n"
    "Ctrl-C stops an answer.\n";

/// A file of its own for an editor, removed at the end.
class TemporaryFile {
 public:
  explicit TemporaryFile(const std::string& text) {
    const char* folder = std::getenv("TMPDIR");
    path_ = std::string(folder != nullptr && *folder != '\0' ? folder : "/tmp") + "/fathom-XXXXXX";
    const int fd = ::mkstemp(path_.data());
    if (fd < 0) throw Error(ErrorCode::kRuntime, "/edit: no temporary file can be made in " + in_quotes(path_));
    const bool written = ::write(fd, text.data(), text.size()) == static_cast<ssize_t>(text.size());
    ::close(fd);
    if (!written) throw Error(ErrorCode::kRuntime, "/edit: the temporary file cannot be written; the disk may be full");
  }
  ~TemporaryFile() { ::unlink(path_.c_str()); }
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

/// `text` as $VISUAL or $EDITOR leaves it. Throws Error{kRuntime} if it cannot be run.
std::string edited(const std::string& text) {
  const TemporaryFile file(text);
  const char* editor = std::getenv("VISUAL");
  if (editor == nullptr || *editor == '\0') editor = std::getenv("EDITOR");
  if (editor == nullptr || *editor == '\0') editor = "vi";
  const std::string command = std::string(editor) + " \"$1\"";
  const pid_t pid = ::fork();
  if (pid < 0) throw Error(ErrorCode::kRuntime, "/edit: no process can be started");
  if (pid == 0) {
    ::signal(SIGINT, SIG_DFL);
    ::signal(SIGPIPE, SIG_DFL);
    ::execl("/bin/sh", "sh", "-c", command.c_str(), "sh", file.path().c_str(), static_cast<char*>(nullptr));
    ::_exit(127);
  }
  int status = 0;
  while (::waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  clear_interrupt();  // Ctrl-C in the editor was meant for it
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
    throw Error(ErrorCode::kRuntime, std::string("/edit: ") + editor + " failed; set EDITOR to one that works");
  return without_last_newline(read_input(file.path(), "/edit"));
}

class Chat {
 public:
  Chat(const Options& options, const Console& console)
      : options_(options),
        console_(console),
        state_folder_(options.no_history ? "" : state_folder()),
        history_(state_folder_.empty() ? "" : state_folder_ + "/history"),
        editor_(history_, command_names()) {}

  int run() {
    start();
    for (;;) {
      std::optional<std::string> entry = read_entry();
      if (!entry) return 0;
      try {
        if (is_command(*entry)) {
          if (!obey(*entry)) return 0;
        } else if (!trimmed(*entry).empty()) {
          converse(*entry);
        }
      } catch (const Error& error) {
        tell(error.what());
      }
    }
  }

 private:
  using Handler = bool (Chat::*)(const std::string& argument);
  static const std::map<std::string, Handler>& commands();
  static std::vector<std::string> command_names() {
    std::vector<std::string> names;
    for (const auto& [name, handler] : commands()) names.push_back(name);
    return names;
  }

  void start() {
    engine_ = load_engine(options_.model, options_.engine, options_.common, console_);
    scheduler_.emplace(*engine_, one_reader(options_.engine.draft_mode()));
    settings_.sampling = options_.sampling.params(*engine_, options_.common.seed);
    settings_.max_tokens = options_.max_tokens;
    settings_.think = options_.think;
    settings_.show_thinking = !options_.hide_thinking;
    const std::string last = last_session_path();
    std::error_code ignored;
    if (!options_.session_file.empty()) {
      if (std::filesystem::exists(options_.session_file, ignored)) session_ = ChatSession::load(options_.session_file);
    } else if (options_.continue_last) {
      if (last.empty() || !std::filesystem::exists(last, ignored))
        throw Error(ErrorCode::kUsage,
                    "chat: --continue: there is no conversation to continue; expected one left by an earlier chat; try "
                    "fathom chat");
      session_ = ChatSession::load(last);
    }
    if (!options_.system.empty()) session_.system = to_valid_utf8(options_.system);
    if (console_.level() >= LogLevel::kInfo) tell("/help lists the commands; Ctrl-D leaves");
    for (const ChatMessage& turn : session_.turns()) show_turn(turn);
  }

  /// A message, possibly of several lines; nothing at the end.
  std::optional<std::string> read_entry() {
    std::string text = std::move(unsent_);
    unsent_.clear();
    for (;;) {
      switch (editor_.read(block_ ? "... " : ">>> ", "... ", text)) {
        case LineEditor::Outcome::kEnd: return std::nullopt;
        case LineEditor::Outcome::kOpenEditor: try { text = edited(text);
          } catch (const Error& error) {
            tell(error.what());
          }
          continue;
        case LineEditor::Outcome::kInterrupted:
          if (block_)
            tell("the block is dropped");
          else if (text.empty())
            tell("Ctrl-D or /exit leaves");
          block_.reset();
          text.clear();
          continue;
        case LineEditor::Outcome::kLine: break;
      }
      if (std::optional<std::string> whole = collect_block(text)) return whole;
      text.clear();
    }
  }

  /// Lines between """ and """ are one message. Nothing while a block is open.
  std::optional<std::string> collect_block(const std::string& text) {
    constexpr std::string_view kFence = "\"\"\"";
    if (!block_) {
      const std::string begin(trimmed(text));
      if (!begin.starts_with(kFence)) return text;
      block_.emplace();
      const std::string rest = begin.substr(kFence.size());
      return rest.empty() ? std::nullopt : collect_block(rest);
    }
    if (!text.ends_with(kFence)) {
      *block_ += text + "\n";
      return std::nullopt;
    }
    std::string whole = without_last_newline(*block_ + text.substr(0, text.size() - kFence.size()));
    block_.reset();
    // A block is always a message, even if it looks like a command: those begin with their slash.
    return whole.starts_with("/") ? " " + whole : whole;
  }

  static bool is_command(const std::string& entry) {
    return entry.starts_with("/") && entry.find('\n') == std::string::npos;
  }

  bool obey(const std::string& entry) {
    const size_t space = entry.find_first_of(" \t");
    const std::string name = entry.substr(0, space),
                      argument(space == std::string::npos ? "" : trimmed(std::string_view(entry).substr(space)));
    const auto command = commands().find(name);
    if (command == commands().end()) {
      tell("unknown command " + in_quotes(name) + "; /help lists them; to send it as a message begin with a space");
      return true;
    }
    return (this->*command->second)(argument);
  }

  void converse(const std::string& entry) {
    session_.ask(to_valid_utf8(attached_.empty() ? entry : attached_ + "\n\n" + entry));
    try {
      if (answer_last()) {
        attached_.clear();
      } else {
        session_.undo();
        unsent_ = entry;
      }
    } catch (...) {
      session_.undo();  // a question that could not be answered, as one too long, was never asked
      throw;
    }
  }

  std::vector<PromptPart> rendered_conversation() const {
    ChatOptions options;
    set_thinking(settings_.think, options);
    return render_chat(engine_->chat_generation(), session_.messages(), {}, options);
  }

  /// Generates the answer to the question that stands last and keeps it, as far as it came. False: it was stopped
  /// before the first token, and there is nothing to keep.
  bool answer_last() {
    const std::vector<PromptPart> parts = rendered_conversation();
    Prompt prompt;
    prompt.is_chat = true;
    prompt.token_ids = memory_.encode(engine_->tokenizer(), parts);
    prompt.parser = {.starts_in_reasoning = opens_reasoning(parts), .parse_calls = false, .tools = {}};
    GenerateOptions options;
    options.sampling = settings_.sampling;
    options.stop = settings_.stop;
    options.max_tokens = settings_.max_tokens > 0 ? settings_.max_tokens : engine_->context();

    // Keys typed meanwhile are not shown among the answer; they wait for the next prompt.
    const TerminalMode mode(TerminalMode::Signals::kInterrupt);
    AnswerOutput out;
    bool in_reasoning = false;
    AnswerSink sink;
    sink.content = [&](std::string_view text) {
      if (in_reasoning) out.write_dimmed("\n</think>\n\n", console_.color_out());
      in_reasoning = false;
      out.write(text);
    };
    if (settings_.show_thinking) {
      sink.reasoning = [&](std::string_view text) {
        if (!in_reasoning) out.write_dimmed("<think>\n", console_.color_out());
        in_reasoning = true;
        out.write_dimmed(text, console_.color_out());
      };
    }
    clear_interrupt();
    last_answer_ = generate_answer(*engine_, *scheduler_, prompt, options, sink, console_);
    clear_interrupt();
    out.finish();
    const Generation& generation = last_answer_->generation;
    const bool is_stopped = generation.finish == FinishReason::kInterrupted;
    if (is_stopped && generation.token_ids.empty()) {
      tell("stopped before the answer began");
      return false;
    }
    memory_.remember(engine_->tokenizer(), parts, std::move(prompt.token_ids), generation);
    if (is_stopped) tell("stopped");
    if (generation.context_full)
      tell("the context of " + std::to_string(engine_->context()) + " tokens is full; /clear or /undo makes room");
    session_.answer(last_answer_->parsed);
    keep();
    return true;
  }

  void show_turn(const ChatMessage& turn) {
    AnswerOutput out;
    if (turn.role == ChatRole::kUser) write_answer(color(">>> ", "\x1b[1m"));
    out.write(turn.content);
    out.finish();
  }

  /// After each answer, so that a crash or a closed window loses nothing.
  void keep() {
    const std::string path = options_.session_file.empty() ? last_session_path() : options_.session_file;
    if (path.empty()) return;
    try {
      session_.save(path, engine_->info().path);
    } catch (const Error& error) {
      tell(std::string("the conversation could not be saved: ") + error.what());
    }
  }

  std::string last_session_path() const { return state_folder_.empty() ? "" : state_folder_ + "/last.json"; }
  std::string color(const std::string& text, const char* code) const {
    return console_.color_out() ? code + text + "\x1b[0m" : text;
  }
  void tell(const std::string& text) const { write_answer(color(visible_text(text), "\x1b[2m") + "\n"); }

  // ---- commands; false: leave ----

  bool help(const std::string&) {
    write_answer(kHelp);
    return true;
  }
  bool exit(const std::string&) { return false; }
  bool clear(const std::string&) {
    session_.clear();
    attached_.clear();
    last_answer_.reset();
    tell("the conversation is empty");
    return true;
  }
  bool regen(const std::string&) {
    const ChatSession before = session_;
    const std::optional<std::string> question = session_.undo();
    if (!question) {
      tell("there is no question yet");
      return true;
    }
    ++settings_.sampling.seed;  // the same seed would give the same answer
    session_.ask(*question);
    try {
      if (!answer_last()) session_ = before;
    } catch (...) {
      session_ = before;
      throw;
    }
    return true;
  }
  bool undo(const std::string&) {
    std::optional<std::string> question = session_.undo();
    if (question)
      unsent_ = *std::move(question);
    else
      tell("there is no question yet");
    keep();
    return true;
  }
  bool think(const std::string& argument) {
    if (!can_reason(engine_->chat_generation())) {
      tell("this model's chat format has no reasoning");
      return true;
    }
    if (argument.empty())
      settings_.think =
          settings_.think == "off" || (settings_.think == "auto" && !reasons_by_default(engine_->chat_generation()))
              ? "on"
              : "off";
    else if (std::find(kThinkChoices.begin(), kThinkChoices.end(), argument) != kThinkChoices.end())
      settings_.think = argument;
    else
      throw Error(ErrorCode::kUsage,
                  "/think: unknown value; expected auto, on, off, low, high or max, got " + in_quotes(argument));
    tell("thinking is " + (settings_.think == "auto" ? "as the model does by default" : settings_.think));
    return true;
  }
  bool system(const std::string& argument) {
    if (!argument.empty()) session_.system = argument == "-" ? "" : to_valid_utf8(argument);
    tell(session_.system.empty() ? "no system text" : "system: " + session_.system);
    return true;
  }
  bool set(const std::string& argument) {
    const size_t space = argument.find(' ');
    if (argument.empty()) throw Error(ErrorCode::kUsage, "/set: expected NAME VALUE, as in /set temp 0.7");
    settings_.set(argument.substr(0, space),
                  std::string(space == std::string::npos ? "" : trimmed(std::string_view(argument).substr(space))),
                  engine_->info().vocab_size);
    tell(settings_.describe());
    return true;
  }
  bool show(const std::string&) {
    const ModelInfo& info = engine_->info();
    tell("model: " + (info.name.empty() ? info.architecture : info.name) + ", " + human_bytes(info.size_bytes) + " " +
         info.type + ", chat format " + std::string(name_of(engine_->chat_generation())) + ", " + info.path);
    tell("runs on: " + engine_->backend_description());
    tell(settings_.describe());
    if (!session_.system.empty()) tell("system: " + session_.system);
    return true;
  }
  bool ctx(const std::string&) {
    const size_t n_tokens =
        session_.messages().empty() ? 0 : memory_.encode(engine_->tokenizer(), rendered_conversation()).size();
    tell(std::to_string(n_tokens) + " of " + std::to_string(engine_->context()) + " tokens; the cache holds " +
         human_bytes(cache_bytes(*engine_, *scheduler_)));
    return true;
  }
  bool stats(const std::string&) {
    tell(last_answer_ ? answer_statistics(*last_answer_) : "there is no answer yet");
    return true;
  }
  bool save(const std::string& argument) {
    if (argument.empty()) throw Error(ErrorCode::kUsage, "/save: no file; expected /save FILE");
    session_.save(with_home(argument), engine_->info().path);
    tell("saved to " + with_home(argument));
    return true;
  }
  bool load(const std::string& argument) {
    if (argument.empty()) throw Error(ErrorCode::kUsage, "/load: no file; expected /load FILE");
    session_ = ChatSession::load(with_home(argument));
    for (const ChatMessage& turn : session_.turns()) show_turn(turn);
    return true;
  }
  bool read(const std::string& argument) {
    if (argument.empty()) throw Error(ErrorCode::kUsage, "/read: no file; expected /read FILE");
    const std::string text = to_valid_utf8(read_input(with_home(argument), "/read"));
    attached_ += (attached_.empty() ? "" : "\n\n") + text;
    tell(std::to_string(text.size()) + " bytes go before your next message");
    return true;
  }
  bool edit(const std::string&) {
    unsent_ = edited("");
    return true;
  }

  const Options& options_;
  const Console& console_;
  std::string state_folder_;
  History history_;
  LineEditor editor_;
  std::unique_ptr<Engine> engine_;
  std::optional<Scheduler> scheduler_;
  PromptMemory memory_;
  ChatSession session_;
  ChatSettings settings_;
  std::optional<Answer> last_answer_;
  std::optional<std::string> block_;  // open """ block
  std::string attached_;              // of /read, for the next message
  std::string unsent_;                // what the next prompt begins with
};

const std::map<std::string, Chat::Handler>& Chat::commands() {
  static const std::map<std::string, Handler> table = {
      {"/help", &Chat::help}, {"/exit", &Chat::exit},   {"/clear", &Chat::clear},   {"/regen", &Chat::regen},
      {"/undo", &Chat::undo}, {"/think", &Chat::think}, {"/system", &Chat::system}, {"/set", &Chat::set},
      {"/show", &Chat::show}, {"/ctx", &Chat::ctx},     {"/stats", &Chat::stats},   {"/save", &Chat::save},
      {"/load", &Chat::load}, {"/read", &Chat::read},   {"/edit", &Chat::edit},
  };
  return table;
}

int run(const Options& options) {
  if (!is_terminal(STDIN_FILENO) || !is_terminal(STDOUT_FILENO)) {
    throw Error(
        ErrorCode::kUsage,
        "chat: needs a terminal; expected one as standard input and output, got a pipe or file; try fathom run");
  }
  options.sampling.check();
  const Console console = options.common.console();
  return Chat(options, console).run();
}

}  // namespace

Command add_chat(CLI::App& root) {
  auto options = std::make_shared<Options>();
  Options& o = *options;
  CLI::App* app = root.add_subcommand("chat", "A conversation in a terminal");
  o.model.declare(*app);
  app->add_option("--system", o.system, "System message")->type_name("TEXT");
  app->add_flag("-c,--continue", o.continue_last, "Go on with the last conversation");
  app->add_option("--session", o.session_file, "Keep the conversation in this file, and go on with what it holds")
      ->type_name("FILE");
  app->add_option("--think", o.think,
                  "Reason before answering, and with V4 how much (default: auto, as the model does)")
      ->check(one_of(kThinkChoices));
  app->add_flag("--hide-thinking", o.hide_thinking, "Do not show the reasoning");
  app->add_flag("--no-history", o.no_history, "Keep neither what was typed nor the conversation on disk");
  app->add_option("-n,--max-tokens", o.max_tokens, "Most tokens of an answer (default: 0, what the context holds)")
      ->check(at_least(0))
      ->type_name("N");
  o.sampling.declare(*app);
  o.engine.declare(*app, "--ctx");
  o.engine.declare_answering(*app);
  o.common.declare(*app);
  return {app, [options] { return run(*options); }};
}

}  // namespace fathom
