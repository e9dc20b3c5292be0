#include "main/options.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <filesystem>
#include <limits>
#include <map>
#include <random>

#include "core/error.h"
#include "core/printable.h"
#include "engine/chat_choice.h"
#include "io/gguf.h"
#include "text/hf_tokenizer.h"

namespace fathom {
namespace {

const std::map<std::string, LogLevel> kLogLevels = {
    {"quiet", LogLevel::kQuiet}, {"warn", LogLevel::kWarn}, {"info", LogLevel::kInfo}, {"debug", LogLevel::kDebug}};
const std::map<std::string, ColorMode> kColorModes = {
    {"auto", ColorMode::kAuto}, {"always", ColorMode::kAlways}, {"never", ColorMode::kNever}};
const std::map<std::string, AttentionForm> kAttentionForms = {
    {"auto", AttentionForm::kAuto}, {"expanded", AttentionForm::kExpanded}, {"absorbed", AttentionForm::kAbsorbed}};
const std::map<std::string, DType> kCacheTypes = {{"f32", DType::kF32},
                                                  {"f16", DType::kF16},
                                                  {"bf16", DType::kBF16},
                                                  {"q8_0", DType::kQ8_0},
                                                  {"fp8", DType::kF8_E4M3}};

const std::map<std::string, DraftMode> kDraftModes = {
    {"off", DraftMode::kOff}, {"auto", DraftMode::kAuto}, {"always", DraftMode::kAlways}};

template <typename T> std::vector<std::string> names_of(const std::map<std::string, T>& values) {
  std::vector<std::string> names;
  for (const auto& [name, value] : values) names.push_back(name);
  return names;
}

/// "x, y or z"
std::string listed(std::span<const std::string> names) {
  std::string text;
  for (size_t i = 0; i < names.size(); ++i) text += (i == 0 ? "" : i + 1 == names.size() ? " or " : ", ") + names[i];
  return text;
}

/// A whole number of up to nine digits, or one of the words.
CLI::Validator number_or(std::vector<std::string> words) {
  return CLI::Validator(
      [words = std::move(words)](std::string& text) -> std::string {
        const bool is_number = !text.empty() && text.size() < 10 &&
                               std::all_of(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; });
        if (is_number || std::find(words.begin(), words.end(), text) != words.end()) return "";
        std::vector<std::string> expected = words;
        expected.emplace_back("a number");
        return "unknown value; expected " + listed(expected) + ", got " + in_quotes(text);
      },
      "");
}

/// Where the shipped model may be: beside an installed program, in a build's source tree, where it was when this was
/// built.
std::vector<std::filesystem::path> shipped_model_places() {
  std::vector<std::filesystem::path> places;
  std::error_code ignored;
  const std::filesystem::path program = std::filesystem::read_symlink("/proc/self/exe", ignored).parent_path();
  if (!program.empty()) {
    places.push_back(program.parent_path() / "share/fathom/tiny-q8_0.gguf");
    places.push_back(program.parent_path() / "models/tiny/tiny-q8_0.gguf");
  }
  places.emplace_back(FATHOM_SHIPPED_MODEL);
  return places;
}

std::map<int32_t, float> parse_logit_bias(const std::vector<std::string>& items) {
  std::map<int32_t, float> bias;
  for (const std::string& item : items) {
    const size_t equals = item.find('=');
    int32_t id = 0;
    float value = 0;
    const char* begin = item.data();
    const char* end = begin + item.size();
    const char* middle = equals == std::string::npos ? end : begin + equals;
    const auto [after_id, id_error] = std::from_chars(begin, middle, id);
    bool good = id_error == std::errc{} && after_id == middle && middle != end;
    if (good) {
      const char* start = middle + 1 + (middle + 1 != end && middle[1] == '+' ? 1 : 0);
      const auto [after, error] = std::from_chars(start, end, value);
      good = error == std::errc{} && after == end && start != end;
    }
    if (!good)
      throw Error(ErrorCode::kUsage, "--logit-bias: not a token id and a number; expected ID=X, got " +
                                         in_quotes(item) + "; try --logit-bias 7=-5 or 7=-inf");
    bias[id] = value;
  }
  return bias;
}

/// Numbers that the file recommends (general.sampling.temp and so on), from newer converters.
std::optional<float> recommended(const Metadata& metadata, const char* key) {
  const std::optional<double> value = metadata.number(std::string("general.sampling.") + key);
  return value ? std::optional<float>(static_cast<float>(*value)) : std::nullopt;
}

/// CLI11 2.1.2 would take -1 as 2^64 - 1.
CLI::Validator seed_number() {
  return CLI::Validator(
      [](std::string& text) -> std::string {
        uint64_t value = 0;
        const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
        return error == std::errc{} && end == text.data() + text.size()
                   ? ""
                   : "not a seed; expected a whole number from 0 to 2^64 - 1, got " + in_quotes(text);
      },
      "");
}

std::string variable_of(const std::string& long_name) {
  std::string name = "FATHOM_" + long_name;
  std::transform(name.begin(), name.end(), name.begin(),
                 [](unsigned char c) { return c == '-' ? '_' : static_cast<char>(std::toupper(c)); });
  return name;
}

}  // namespace

CLI::Validator at_least(int64_t lowest) {
  return CLI::Validator(
      [lowest](std::string& text) -> std::string {
        int64_t value = 0;
        const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
        if (error != std::errc{} || end != text.data() + text.size())
          return "not a whole number; expected " + std::to_string(lowest) + " or more, got " + in_quotes(text);
        return value >= lowest ? "" : "out of range; expected " + std::to_string(lowest) + " or more, got " + text;
      },
      "");
}

CLI::Validator one_of(std::vector<std::string> names) {
  std::string choices;
  for (const std::string& name : names) choices += (choices.empty() ? "" : "|") + name;
  return CLI::Validator(
      [names = std::move(names)](std::string& text) -> std::string {
        if (std::find(names.begin(), names.end(), text) != names.end()) return "";
        return "unknown value; expected " + listed(names) + ", got " + in_quotes(text);
      },
      choices);
}

void CommonOptions::declare(CLI::App& app) {
  constexpr const char* kGroup = "For every command";
  app.add_option("-t,--threads", threads, "Threads (default: the physical cores this process may use)")
      ->check(at_least(1))
      ->type_name("N")
      ->group(kGroup);
  app.add_option("--seed", seed, "Seed of everything random (default: a random one)")
      ->check(seed_number())
      ->type_name("N")
      ->group(kGroup);
  app.add_option("--log-level", log_level, "What standard error tells (default: info)")
      ->check(one_of({"quiet", "warn", "info", "debug"}))
      ->group(kGroup);
  app.add_option("--color", color, "Colours (default: auto, on terminals unless NO_COLOR is set)")
      ->check(one_of({"auto", "always", "never"}))
      ->group(kGroup);
  app.add_flag("--progress", progress, "Report progress even if standard error is no terminal")->group(kGroup);
  app.add_option("--config", config, "Read options from an ini file")->type_name("FILE")->group(kGroup);
}

Console CommonOptions::console() const { return Console(kLogLevels.at(log_level), kColorModes.at(color), progress); }

void ModelOption::declare(CLI::App& app) {
  app.add_option("-m,--model", path,
                 "GGUF file, first shard, or Hugging Face folder (default: the model that ships with fathom)")
      ->type_name("PATH");
}

std::string ModelOption::choose(const Console& console) const {
  if (!path.empty()) return path;
  std::error_code ignored;
  for (const std::filesystem::path& place : shipped_model_places()) {
    if (!std::filesystem::exists(place, ignored)) continue;
    console.note("no --model given: using the one that ships with fathom, " + place.string());
    return place.string();
  }
  throw Error(
      ErrorCode::kModel,
      "model: none given, and the one that ships with fathom is missing; expected a GGUF file, got nothing at " +
          in_quotes(FATHOM_SHIPPED_MODEL) + "; try -m FILE.gguf");
}

void EngineFlags::declare(CLI::App& app, std::string_view context_flags) {
  constexpr const char* kGroup = "Running the model";
  app.add_option(std::string(context_flags), context,
                 "Tokens of context (default: what model and memory allow, at most 32768)")
      ->check(at_least(1))
      ->type_name("N")
      ->group(kGroup);
  app.add_option("--batch", batch,
                 "Tokens per prefill chunk (default: " + std::to_string(kDefaultChunkTokens) +
                     ", measured; more where experts are streamed)")
      ->check(at_least(1))
      ->type_name("N")
      ->group(kGroup);
  app.add_option("--cache-type", cache_type,
                 "Type of the latent pages (default: auto, bf16, for a model with an indexer f16)")
      ->check(one_of({"auto", "f32", "f16", "bf16", "q8_0", "fp8"}))
      ->group(kGroup);
  app.add_option("--attention", attention, "How attention is computed (default: auto)")
      ->check(one_of(names_of(kAttentionForms)))
      ->group(kGroup);
  app.add_option("--backend", backend, "What computes (default: auto, a device if there is one that takes the model)")
      ->check(one_of({"auto", "cpu", "cuda"}))
      ->group(kGroup);
  app.add_option("--device", device, "Which device, as listed by doctor (default: 0)")
      ->check(at_least(0))
      ->type_name("N")
      ->group(kGroup);
  app.add_option("--cpu-moe", cpu_moe,
                 "Beside a device: layers whose experts stay in host memory and are computed there, a number or all "
                 "(default: auto, as few as make the rest fit)")
      ->check(number_or({"auto", "all"}))
      ->type_name("N")
      ->group(kGroup);
  app.add_option("--stream-moe", stream_moe,
                 "Of these layers: chunks of a prompt with at least so many tokens bring the experts to the device and "
                 "are computed there, 0 for never (default: auto, 32 times experts / experts a token uses)")
      ->check(number_or({"auto"}))
      ->type_name("N")
      ->group(kGroup);
  app.add_option("--moe-cache", moe_cache,
                 "Of the device's memory in GiB: for copies of those of these experts that the last tokens used most "
                 "(default: 0; with a cache, the last bits of logits depend on what was computed before)")
      ->type_name("GIB")
      ->group(kGroup);
  app.add_option("--isa", isa, "CPU kernels, as listed by --version; reference: plain float32 (default: auto)")
      ->type_name("NAME")
      ->group(kGroup);
  std::vector<std::string> formats = {"auto"};
  for (const ChatGeneration generation : kChatGenerations) formats.emplace_back(name_of(generation));
  app.add_option("--chat-format", chat_format,
                 "How conversations are written for the model (default: auto, as the file says)")
      ->check(one_of(formats))
      ->group(kGroup);
}

void EngineFlags::declare_draft(CLI::App& app) {
  draft = "auto";
  app.add_option("--draft", draft,
                 "Guess tokens ahead, from repetitions and the model's MTP block, and check them together; never "
                 "changes an answer (default: auto, as far as it pays)")
      ->check(one_of(names_of(kDraftModes)))
      ->group("Running the model");
}

DraftMode EngineFlags::draft_mode() const { return kDraftModes.at(draft); }

EngineOptions EngineFlags::engine_options(const std::string& model_path, const CommonOptions& common) const {
  EngineOptions options;
  options.model_path = model_path;
  options.backend = backend;
  options.device = device;
  options.isa = isa;
  if (cpu_moe != "auto") options.host_expert_layers = cpu_moe == "all" ? 1'000'000 : std::stoll(cpu_moe);
  if (!(moe_cache >= 0 && moe_cache <= 1e6))
    throw Error(ErrorCode::kUsage,
                "--moe-cache: out of range; expected 0 to 1000000 GiB, got " + std::to_string(moe_cache));
  options.expert_cache_bytes = static_cast<uint64_t>(moe_cache * (uint64_t{1} << 30));
  if (stream_moe != "auto") options.stream_experts_from = std::stoll(stream_moe);
  options.n_threads = common.threads;
  options.context = context;
  if (cache_type != "auto") options.cache_type = kCacheTypes.at(cache_type);
  options.attention = kAttentionForms.at(attention);
  options.chunk_tokens = batch;
  options.mtp = draft_mode() != DraftMode::kOff;
  options.estimate_only = estimate_only;
  if (chat_format != "auto") options.chat_format = chat_generation_from_name(chat_format);
  return options;
}

std::string cache_type_name(const Engine& engine) {
  for (const auto& [name, type] : kCacheTypes) {
    if (type == engine.cache_type()) return name;
  }
  return std::string(dtype_name(engine.cache_type()));
}

std::unique_ptr<Engine> load_engine(const ModelOption& model, const EngineFlags& flags, const CommonOptions& common,
                                    const Console& console) {
  EngineOptions options = flags.engine_options(model.choose(console), common);
  ProgressLine sending(console, "sending weights to the device", "bytes");
  options.on_load = [&](uint64_t done, uint64_t total) { sending.update(done, total); };
  std::unique_ptr<Engine> engine = Engine::load(options);
  sending.clear();
  if (!engine->note().empty()) console.warn(engine->note());
  const ModelInfo& info = engine->info();
  console.detail((info.name.empty() ? info.architecture : info.name) + ", " + human_bytes(info.size_bytes) + " " +
                 info.type + "; " + engine->backend_description() + "; context " + std::to_string(engine->context()) +
                 ", cache " + cache_type_name(*engine) + (engine->has_mtp() ? ", MTP block" : ""));
  return engine;
}

void SamplingFlags::declare(CLI::App& app) {
  constexpr const char* kGroup = "Sampling";
  app.add_option("--temp", temperature, "Temperature; 0 takes the likeliest token (default: the model's, else 0.6)")
      ->type_name("T")
      ->group(kGroup);
  app.add_option("--top-k", top_k, "Keep the K likeliest tokens; 0: off (default: the model's, else 0)")
      ->type_name("K")
      ->group(kGroup);
  app.add_option("--top-p", top_p,
                 "Keep the likeliest tokens whose probabilities reach P (default: the model's, else 0.95)")
      ->type_name("P")
      ->group(kGroup);
  app.add_option("--min-p", min_p,
                 "Keep tokens with at least P times the highest probability (default: the model's, else 0)")
      ->type_name("P")
      ->group(kGroup);
  app.add_option("--repeat-penalty", repeat_penalty, "Divide logits of the last 64 tokens (default: 1, off)")
      ->type_name("X")
      ->group(kGroup);
  app.add_option("--frequency-penalty", frequency_penalty, "Subtract for each use in the answer (default: 0)")
      ->type_name("X")
      ->group(kGroup);
  app.add_option("--presence-penalty", presence_penalty, "Subtract for tokens used in the answer (default: 0)")
      ->type_name("X")
      ->group(kGroup);
  app.add_option("--logit-bias", logit_bias, "Add X to a token's logit; -inf forbids it; repeatable")
      ->type_name("ID=X")
      ->allow_extra_args(false)
      ->take_all()
      ->group(kGroup);
}

void SamplingFlags::check() const {
  SamplingParams given;
  given.temperature = temperature.value_or(given.temperature);
  given.top_k = top_k.value_or(given.top_k);
  given.top_p = top_p.value_or(given.top_p);
  given.min_p = min_p.value_or(given.min_p);
  given.repeat_penalty = repeat_penalty;
  given.frequency_penalty = frequency_penalty;
  given.presence_penalty = presence_penalty;
  given.logit_bias = parse_logit_bias(logit_bias);
  given.validate(std::numeric_limits<int32_t>::max());
}

SamplingParams SamplingFlags::params(const Engine& engine, std::optional<uint64_t> seed) const {
  const Metadata& file = engine.metadata();
  const SamplingAdvice advice = recommended_sampling(engine.chat_generation());
  auto first = [](std::optional<float> a, std::optional<float> b, std::optional<float> c, float otherwise) {
    return a ? *a : b ? *b : c.value_or(otherwise);
  };
  SamplingParams out;
  out.temperature = first(temperature, recommended(file, "temp"), advice.temperature, 0.6F);
  out.top_p = first(top_p, recommended(file, "top_p"), advice.top_p, 0.95F);
  out.min_p = first(min_p, recommended(file, "min_p"), {}, 0.0F);
  out.top_k = top_k ? *top_k : static_cast<int32_t>(file.integer("general.sampling.top_k").value_or(0));
  out.repeat_penalty = repeat_penalty;
  out.frequency_penalty = frequency_penalty;
  out.presence_penalty = presence_penalty;
  out.logit_bias = parse_logit_bias(logit_bias);
  if (seed) {
    out.seed = *seed;
  } else {
    std::random_device device;
    out.seed = device();  // 32 bits: short enough to type again
  }
  out.validate(engine.info().vocab_size);
  return out;
}

std::vector<int32_t> parse_ids(std::string_view text, const std::string& where) {
  std::vector<int32_t> ids;
  const char* at = text.data();
  const char* end = at + text.size();
  auto is_space = [](char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; };
  while (true) {
    while (at != end && (is_space(*at) || (*at == ',' && !ids.empty()))) ++at;
    if (at == end) break;
    int32_t id = 0;
    const auto [after, error] = std::from_chars(at, end, id);
    if (error != std::errc{} || (after != end && *after != ',' && !is_space(*after))) {
      throw Error(ErrorCode::kUsage, where + ": not token ids; expected whole numbers as in 1,2,3, got " +
                                         in_quotes(std::string_view(at, static_cast<size_t>(end - at))) +
                                         "; try fathom tokenize");
    }
    ids.push_back(id);
    at = after;
  }
  if (ids.empty())
    throw Error(ErrorCode::kUsage, where + ": empty; expected whole numbers as in 1,2,3; try fathom tokenize");
  return ids;
}

void name_environment_variables(std::span<const Command> commands) {
  for (const Command& command : commands) {
    for (CLI::Option* option : command.app->get_options()) {
      if (!option->get_lnames().empty() && option->get_lnames()[0] != "help")
        option->envname(variable_of(option->get_lnames()[0]));
    }
  }
}

void apply_config_file(const std::string& path, std::span<const Command> commands, const CLI::App& active) {
  std::error_code ignored;
  if (std::filesystem::is_directory(path, ignored))
    throw Error(ErrorCode::kModel, "--config: " + path + ": a folder; expected an ini file");
  std::vector<CLI::ConfigItem> items;
  try {
    items = CLI::ConfigINI().from_file(path);
  } catch (const CLI::FileError&) {
    throw Error(ErrorCode::kModel, "--config: " + path + ": cannot be read; expected an ini file; try another path");
  }
  for (const CLI::ConfigItem& item : items) {
    if (item.name == "++" || item.name == "--") continue;  // CLI11's marks of where sections begin and end
    const std::string section = item.parents.empty() || item.parents[0] == "default" ? "" : item.parents[0];
    bool is_known = false;
    for (const Command& command : commands) {
      if (!section.empty() && command.app->get_name() != section) continue;
      CLI::Option* option = item.parents.size() > 1 ? nullptr : command.app->get_option_no_throw("--" + item.name);
      if (option == nullptr || item.name == "config" || item.name == "help") continue;
      is_known = true;
      if (command.app != &active || option->count() > 0) continue;
      if (option->get_expected_min() == 0) {
        option->add_result(option->get_flag_value(item.name, item.inputs.empty() ? "true" : item.inputs[0]));
      } else {
        for (const std::string& input : item.inputs) option->add_result(input);
      }
      option->run_callback();
    }
    if (!is_known) {
      throw Error(ErrorCode::kUsage, "--config: " + path +
                                         ": unknown key; expected a long option of a command without its dashes, got " +
                                         in_quotes(item.fullname()) + "; try fathom " + active.get_name() + " --help");
    }
  }
}

std::string usage_message(const CLI::ParseError& error, const CLI::App& root) {
  const std::vector<const CLI::App*> chosen = root.get_subcommands([](const CLI::App* app) { return app->parsed(); });
  const std::string command = chosen.empty() ? "" : chosen[0]->get_name();
  std::string what = printable(error.what(), 400);
  if (dynamic_cast<const CLI::ExtrasError*>(&error) != nullptr) {
    const std::vector<std::string> left = root.remaining(true);
    const std::string first = left.empty() ? "" : left[0];
    if (command.empty() && !first.empty() && first[0] != '-') {
      std::vector<std::string> names;
      for (const CLI::App* app : root.get_subcommands([](const CLI::App*) { return true; }))
        names.push_back(app->get_name());
      return "unknown command; expected " + listed(names) + ", got " + in_quotes(first) + "; try fathom --help";
    }
    what = (first.starts_with("-") && first.size() > 1 ? "unknown option " : "unexpected argument ") + in_quotes(first);
  } else if (dynamic_cast<const CLI::ConversionError*>(&error) != nullptr) {
    what = "not of the right kind; " + what;
  }
  return (command.empty() ? "" : command + ": ") + what + "; try fathom " + (command.empty() ? "" : command + " ") +
         "--help";
}

Metadata read_model_metadata(const std::string& path) {
  std::error_code ignored;
  if (std::filesystem::is_directory(path, ignored)) return read_tokenizer_folder(path);
  return GgufModel::open(path, {.header_only = true}).metadata();
}

}  // namespace fathom
