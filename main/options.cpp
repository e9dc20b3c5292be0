#include "main/options.h"

#include <algorithm>
#include <charconv>
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

constexpr const char* kEngineGroup = "Running the model";

/// More than the largest machines have; each costs a stack and a place at every barrier.
constexpr int64_t kMostThreads = 1024;

}  // namespace

void CommonOptions::declare(CLI::App& app) {
  constexpr const char* kGroup = "For every command";
  app.add_option("-t,--threads", threads, "Threads (default: the physical cores this process may use)")
      ->check(in_range(1, kMostThreads))
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

void EngineFlags::declare(CLI::App& app, std::string_view context_flags, std::string_view context_help) {
  app.add_option(std::string(context_flags), context, std::string(context_help))
      ->check(at_least(1))
      ->type_name("N")
      ->group(kEngineGroup);
  app.add_option("--batch", batch,
                 "Tokens per prefill chunk (default: " + std::to_string(kDefaultChunkTokens) +
                     ", measured; more where experts are streamed)")
      ->check(at_least(1))
      ->type_name("N")
      ->group(kEngineGroup);
  app.add_option("--cache-type", cache_type,
                 "Type of the latent pages (default: auto, bf16, for a model with an indexer f16)")
      ->check(one_of({"auto", "f32", "f16", "bf16", "q8_0", "fp8"}))
      ->group(kEngineGroup);
  app.add_option("--attention", attention, "How attention is computed (default: auto)")
      ->check(one_of({"auto", "expanded", "absorbed"}))
      ->group(kEngineGroup);
  app.add_option("--backend", backend, "What computes (default: auto, a device if there is one that takes the model)")
      ->check(one_of({"auto", "cpu", "cuda"}))
      ->group(kEngineGroup);
  app.add_option("--device", device, "Which device, as listed by doctor (default: 0)")
      ->check(in_range(0, std::numeric_limits<int>::max()))
      ->type_name("N")
      ->group(kEngineGroup);
  app.add_option("--cpu-moe", cpu_moe,
                 "Beside a device: layers whose experts stay in host memory and are computed there, a number or all "
                 "(default: auto, as few as make the rest fit)")
      ->check(number_or({"auto", "all"}))
      ->type_name("N")
      ->group(kEngineGroup);
  app.add_option("--stream-moe", stream_moe,
                 "Of these layers: chunks of a prompt with at least so many tokens bring the experts to the device and "
                 "are computed there, 0 for never (default: auto, 32 times experts / experts a token uses)")
      ->check(number_or({"auto"}))
      ->type_name("N")
      ->group(kEngineGroup);
  app.add_option("--moe-cache", moe_cache,
                 "Of the device's memory in GiB: for copies of those of these experts that the last tokens used most "
                 "(default: 0; with a cache, the last bits of logits depend on what was computed before)")
      ->check(any_number())
      ->type_name("GIB")
      ->group(kEngineGroup);
  app.add_option("--isa", isa, "CPU kernels, as listed by --version; reference: plain float32 (default: auto)")
      ->type_name("NAME")
      ->group(kEngineGroup);
}

void EngineFlags::declare_answering(CLI::App& app) {
  std::vector<std::string> formats = {"auto"};
  for (const ChatGeneration generation : kChatGenerations) formats.emplace_back(name_of(generation));
  app.add_option("--chat-format", chat_format,
                 "How conversations are written for the model (default: auto, as the file says)")
      ->check(one_of(formats))
      ->group(kEngineGroup);
  draft = "auto";
  app.add_option("--draft", draft,
                 "Guess tokens ahead, from repetitions and the model's MTP block, and check them together; never "
                 "changes an answer (default: auto, as far as it pays)")
      ->check(one_of({"auto", "always", "off"}))
      ->group(kEngineGroup);
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

void warn_of_unused(const EngineFlags& flags, const Engine& engine, const Console& console) {
  if (engine.on_device()) return;
  std::vector<std::string> unused;
  if (flags.device != 0) unused.emplace_back("--device");
  if (flags.cpu_moe != "auto") unused.emplace_back("--cpu-moe");
  if (flags.stream_moe != "auto") unused.emplace_back("--stream-moe");
  if (flags.moe_cache != 0) unused.emplace_back("--moe-cache");
  if (!unused.empty()) console.warn(listed(unused, " and ") + ": without effect, as the CPU computes everything");
}

std::unique_ptr<Engine> load_engine(const ModelOption& model, const EngineFlags& flags, const CommonOptions& common,
                                    const Console& console) {
  EngineOptions options = flags.engine_options(model.choose(console), common);
  ProgressLine sending(console, "sending weights to the device", "bytes");
  options.on_load = [&](uint64_t done, uint64_t total) { sending.update(done, total); };
  std::unique_ptr<Engine> engine = Engine::load(options);
  sending.clear();
  if (!engine->note().empty()) console.warn(engine->note());
  warn_of_unused(flags, *engine, console);
  const ModelInfo& info = engine->info();
  console.detail((info.name.empty() ? info.architecture : info.name) + ", " + human_bytes(info.size_bytes) + " " +
                 info.type + "; " + engine->backend_description() + "; context " + std::to_string(engine->context()) +
                 ", cache " + cache_type_name(*engine) + (engine->has_mtp() ? ", MTP block" : ""));
  return engine;
}

void SamplingFlags::declare(CLI::App& app) {
  constexpr const char* kGroup = "Sampling";
  app.add_option("--temp", temperature, "Temperature; 0 takes the likeliest token (default: the model's, else 0.6)")
      ->check(any_number())
      ->type_name("T")
      ->group(kGroup);
  app.add_option("--top-k", top_k, "Keep the K likeliest tokens; 0: off (default: the model's, else 0)")
      ->check(in_range(0, std::numeric_limits<int32_t>::max()))
      ->type_name("K")
      ->group(kGroup);
  app.add_option("--top-p", top_p,
                 "Keep the likeliest tokens whose probabilities reach P (default: the model's, else 0.95)")
      ->check(any_number())
      ->type_name("P")
      ->group(kGroup);
  app.add_option("--min-p", min_p,
                 "Keep tokens with at least P times the highest probability (default: the model's, else 0)")
      ->check(any_number())
      ->type_name("P")
      ->group(kGroup);
  app.add_option("--repeat-penalty", repeat_penalty, "Divide logits of the last 64 tokens (default: 1, off)")
      ->check(any_number())
      ->type_name("X")
      ->group(kGroup);
  app.add_option("--frequency-penalty", frequency_penalty, "Subtract for each use in the answer (default: 0)")
      ->check(any_number())
      ->type_name("X")
      ->group(kGroup);
  app.add_option("--presence-penalty", presence_penalty, "Subtract for tokens used in the answer (default: 0)")
      ->check(any_number())
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

std::vector<int32_t> parse_ids(std::string_view text, const std::string& where, const std::string& try_this) {
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
      throw Error(ErrorCode::kUsage, where + ": not a list of numbers; expected whole ones as in 1,2,3, got " +
                                         in_quotes(std::string_view(at, static_cast<size_t>(end - at))) + "; try " +
                                         try_this);
    }
    ids.push_back(id);
    at = after;
  }
  if (ids.empty())
    throw Error(ErrorCode::kUsage, where + ": empty; expected whole numbers as in 1,2,3; try " + try_this);
  return ids;
}

Metadata read_model_metadata(const std::string& path) {
  std::error_code ignored;
  if (std::filesystem::is_directory(path, ignored)) return read_tokenizer_folder(path);
  return GgufModel::open(path, {.header_only = true}).metadata();
}

}  // namespace fathom
