#include "engine/engine.h"

#include <algorithm>
#include <array>
#include <fstream>
#include <map>

#include "core/error.h"
#include "cpu/cpu_backend.h"
#include "deepseek/deepseek.h"
#include "engine/chat_choice.h"
#include "engine/cost.h"
#include "engine/model_fingerprint.h"
#include "graph/graph.h"
#include "io/gguf.h"

namespace fathom {
namespace {

std::string mib(uint64_t bytes) { return std::to_string(bytes >> 20) + " MiB"; }

/// The element type most of the file's bytes have, norms and router aside.
std::string main_type(const std::map<std::string, Tensor>& tensors) {
  std::map<DType, size_t> bytes;
  for (const auto& [name, tensor] : tensors) bytes[tensor.dtype] += tensor.size_bytes();
  const auto best = std::max_element(bytes.begin(), bytes.end(), [](const auto& a, const auto& b) { return a.second < b.second; });
  return best == bytes.end() ? "none" : std::string(dtype_name(best->first));
}

deepseek::Model read_model(const ModelSource& source) {
  const std::string* architecture = source.metadata.text("general.architecture");
  const std::optional<int64_t> blocks = architecture ? source.metadata.integer(*architecture + ".block_count") : std::nullopt;
  const bool has_mtp = blocks && source.tensors.contains("blk." + std::to_string(*blocks - 1) + ".nextn.eh_proj.weight");
  const bool has_bias = std::any_of(source.tensors.begin(), source.tensors.end(), [](const auto& t) { return t.first.ends_with(".exp_probs_b.bias"); });
  deepseek::Model model;
  model.config = deepseek::read_config(source.metadata, has_mtp, has_bias);
  model.weights = deepseek::bind_weights(model.config, source.tensors);
  return model;
}

/// Room for `tokens` in one sequence; the page more is for the copy that writing to a shared last page takes.
int64_t pages_for(int64_t tokens) { return (tokens + kPageTokens - 1) / kPageTokens + 1; }

int64_t choose_context(const EngineOptions& options, const deepseek::Config& config, const CacheLayout& layout) {
  if (options.context && (*options.context < 1 || *options.context > config.context_length)) {
    throw Error(ErrorCode::kUsage, "--ctx: out of range; expected 1 to the model's own " + std::to_string(config.context_length) + ", got " + std::to_string(*options.context) + "; try a smaller value");
  }
  const int64_t wanted = options.context.value_or(std::min(kDefaultContextLimit, config.context_length));
  const std::optional<uint64_t> available = available_memory_bytes();
  if (!available) return wanted;
  const uint64_t needed = static_cast<uint64_t>(pages_for(wanted)) * layout.page_bytes();
  if (needed <= *available) return wanted;
  const int64_t fits = (static_cast<int64_t>(*available / layout.page_bytes()) - 1) * kPageTokens;
  if (options.context || fits < kPageTokens) {
    throw Error(ErrorCode::kNoMemory, "cache: a context of " + std::to_string(wanted) + " tokens does not fit; expected " + mib(needed) + " free, got " + mib(*available) +
                                          "; try --ctx " + std::to_string(std::max<int64_t>(fits, kPageTokens)) + " or a smaller --cache-type");
  }
  return fits;
}

/// The graph of a step of n_tokens of one sequence, without data: for checks and plans.
Graph probe_graph(const deepseek::Model& model, PagePool& pool, int64_t n_tokens, AttentionForm attention) {
  auto ints = [](Shape shape) { return Tensor(DType::kI32, shape, nullptr); };
  const Tensor tokens = ints({n_tokens});
  deepseek::Step step{tokens, {tokens, tokens, tokens, ints({1, pages_for(n_tokens)})}, ints({1}), {}, attention};
  for (int i = 0; i < pool.layout().n_layers; ++i) step.caches.push_back(pool.layer(i));
  Graph probe;
  deepseek::forward(probe, model, step);
  return probe;
}

}  // namespace

std::optional<uint64_t> available_memory_bytes() {
  std::ifstream file("/proc/meminfo");
  std::string key, unit;
  uint64_t kib = 0;
  while (file >> key >> kib >> unit) {
    if (key == "MemAvailable:") return kib * 1024;
  }
  return std::nullopt;
}

namespace {

/// What one step works on. The graph stays alive after it because its arena holds the logits.
struct Pass {
  explicit Pass(Backend& backend) : executor(backend) {}

  Executor executor;
  std::vector<int32_t> ids, positions, slots, sequence_of, page_table, expanded, output_rows;
  std::optional<Graph> graph;
  Tensor logits;
};

}  // namespace

struct Engine::Impl {
  Impl(ModelSource s, const EngineOptions& o)
      : options(o), source(std::move(s)), model(read_model(source)), backend(make_cpu_backend({o.n_threads, o.isa})), passes{Pass(*backend), Pass(*backend)} {
    if (source.metadata.has("tokenizer.ggml.tokens")) tokenizer.emplace(source.metadata);
  }

  EngineOptions options;
  ModelSource source;
  std::optional<Tokenizer> tokenizer;
  deepseek::Model model;
  std::unique_ptr<Backend> backend;
  ModelInfo info;
  ChatGeneration chat{};
  std::unique_ptr<PagePool> pool;
  int64_t context = 0;
  int64_t chunk_tokens = 0;

  std::array<Pass, 2> passes;  // the second for steps inside a step
  size_t depth = 0;            // steps in progress
  Pass* last = &passes[0];     // whose logits can be read
};

Engine::Engine(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Engine::~Engine() = default;

std::unique_ptr<Engine> Engine::load(const EngineOptions& options) {
  auto file = std::make_shared<const GgufModel>(GgufModel::open(options.model_path));
  // Pages that are read from now on come in units of 2 MiB where the file system can: reading weights is a sixth faster.
  for (const GgufFile& shard : file->files()) shard.file->advise(MappedFile::Access::kHugePages);
  return from_source({file->metadata(), file->tensors(), file->path(), file->size_bytes(), file, [f = file.get()] { f->check_intact(); }}, options);
}

std::unique_ptr<Engine> Engine::from_source(ModelSource source, const EngineOptions& options) {
  auto impl = std::make_unique<Impl>(std::move(source), options);
  Impl& m = *impl;
  const deepseek::Config& config = m.model.config;
  m.info = {m.source.path, config.architecture, config.name, main_type(m.source.tensors), m.source.size_bytes, config.context_length, m.model.weights.vocab_size(), config.n_layers};
  if (m.tokenizer) {
    if (m.tokenizer->vocab().size() > m.model.weights.vocab_size()) {
      throw Error(ErrorCode::kModel, m.source.path + ": the tokenizer has more tokens than the model; expected at most " + std::to_string(m.model.weights.vocab_size()) +
                                         ", got " + std::to_string(m.tokenizer->vocab().size()) + "; try another copy of the file");
    }
    m.chat = options.chat_format ? *options.chat_format : choose_chat_generation(m.source.metadata, m.tokenizer->vocab());
  }

  CacheLayout layout{static_cast<int>(config.n_layers), std::vector<int64_t>(static_cast<size_t>(config.n_layers), config.cache_row_elements()), options.cache_type};
  validate(layout);
  m.context = choose_context(options, config, layout);
  m.pool = std::make_unique<PagePool>(layout, pages_for(m.context));
  if (options.chunk_tokens < 0) throw Error(ErrorCode::kUsage, "--batch: out of range; expected 1 or more, got " + std::to_string(options.chunk_tokens));
  m.chunk_tokens = options.chunk_tokens == 0 ? kDefaultChunkTokens : options.chunk_tokens;

  // One token's graph shows every operation and weight type that will run: what the backend lacks is refused here.
  std::unique_ptr<Engine> engine(new Engine(std::move(impl)));
  const Graph probe = probe_graph(m.model, *m.pool, 1, options.attention);
  for (const Node& node : probe.nodes()) m.backend->check_supported(node);
  return engine;
}

const ModelInfo& Engine::info() const { return impl_->info; }
const Metadata& Engine::metadata() const { return impl_->source.metadata; }
const Tokenizer& Engine::tokenizer() const {
  FATHOM_CHECK(impl_->tokenizer.has_value(), "a model without a tokenizer");
  return *impl_->tokenizer;
}
ChatGeneration Engine::chat_generation() const { return impl_->chat; }
PagePool& Engine::pool() { return *impl_->pool; }
int64_t Engine::context() const { return impl_->context; }
int64_t Engine::chunk_tokens() const { return impl_->chunk_tokens; }

AttentionPlan Engine::attention_plan(int64_t n_prompt) const {
  const bool has_forms = impl_->model.config.attention == deepseek::Attention::kLatent && impl_->options.attention == AttentionForm::kAuto;
  return has_forms ? AttentionPlan(n_prompt, impl_->options.expand) : AttentionPlan();
}

std::string Engine::cache_fingerprint() const {
  const EngineOptions& o = impl_->options;
  std::string forms = "absorbed";
  if (o.attention == AttentionForm::kExpanded) forms = "expanded";
  if (o.attention == AttentionForm::kAuto) forms = "auto " + std::to_string(o.expand.from_position) + "/" + std::to_string(o.expand.block_tokens);
  const std::string backend = impl_->backend->describe();  // "cpu avx512, 2 threads": threads change no bit
  return model_fingerprint(impl_->source.metadata, impl_->source.tensors) + ", " + impl_->pool->layout().describe() + ", " + backend.substr(0, backend.find(',')) + ", " + forms;
}

std::string Engine::backend_description() const { return impl_->backend->describe(); }
StepCost Engine::cost(int64_t n_sequences, int64_t tokens_each, int64_t depth) const { return step_cost(impl_->model, impl_->pool->layout(), n_sequences, tokens_each, depth); }
uint64_t Engine::cache_bytes() { return impl_->pool->used_bytes(); }
uint64_t Engine::activation_bytes() const { return impl_->passes[0].executor.arena_bytes() + impl_->passes[1].executor.arena_bytes(); }
uint64_t Engine::planned_activation_bytes() const {
  return probe_graph(impl_->model, *impl_->pool, std::min(impl_->chunk_tokens, impl_->context), impl_->options.attention).plan();
}
int64_t Engine::n_outputs() const { return impl_->last->logits ? impl_->last->logits.dim(0) : 0; }

std::span<const float> Engine::logits(int64_t output_idx) const {
  FATHOM_CHECK(output_idx >= 0 && output_idx < n_outputs(), "no such output row");
  const Tensor& logits = impl_->last->logits;
  return {logits.row_as<float>(output_idx), static_cast<size_t>(logits.dim(1))};
}

namespace {

/// The pages that were reserved for rows.
void give_back(std::span<const StepPart> parts) {
  for (const StepPart& part : parts) part.sequence->truncate(part.sequence->length());
}

class InsideStep {
 public:
  explicit InsideStep(size_t& depth) : depth_(depth) { ++depth_; }
  ~InsideStep() { --depth_; }
  InsideStep(const InsideStep&) = delete;
  InsideStep& operator=(const InsideStep&) = delete;

 private:
  size_t& depth_;
};

}  // namespace

StepStatus Engine::step(std::span<const StepPart> parts, const std::function<bool()>& go_on) {
  Impl& m = *impl_;
  FATHOM_CHECK(m.depth < m.passes.size(), "a step inside a step inside a step");
  Pass& pass = m.passes[m.depth];
  pass.logits = {};
  m.last = &pass;
  int64_t n_tokens = 0, longest = 0;
  for (const StepPart& part : parts) {
    FATHOM_CHECK(&part.sequence->pool() == m.pool.get() && !part.token_ids.empty(), "a part brings tokens for a sequence of this engine");
    for (const int32_t id : part.token_ids) {
      if (id < 0 || id >= m.info.vocab_size) {
        throw Error(ErrorCode::kUsage, "token id: not in the vocabulary; expected 0 to " + std::to_string(m.info.vocab_size - 1) + ", got " + std::to_string(id));
      }
    }
    n_tokens += static_cast<int64_t>(part.token_ids.size());
  }
  FATHOM_CHECK(n_tokens > 0, "a step without tokens");
  for (size_t i = 0; i < parts.size(); ++i) {
    if (parts[i].sequence->reserve(static_cast<int64_t>(parts[i].token_ids.size()))) continue;
    give_back(parts.first(i));
    return StepStatus::kNoPages;
  }

  pass.ids.clear(), pass.positions.clear(), pass.slots.clear(), pass.sequence_of.clear(), pass.expanded.clear(), pass.output_rows.clear();
  for (size_t s = 0; s < parts.size(); ++s) {
    const StepPart& part = parts[s];
    const int64_t first = part.sequence->length(), n = static_cast<int64_t>(part.token_ids.size());
    const std::vector<int32_t> slots = part.sequence->slots(first, n);
    pass.slots.insert(pass.slots.end(), slots.begin(), slots.end());
    pass.ids.insert(pass.ids.end(), part.token_ids.begin(), part.token_ids.end());
    for (int64_t i = 0; i < n; ++i) {
      if (part.outputs == Outputs::kAll || (part.outputs == Outputs::kLast && i == n - 1)) pass.output_rows.push_back(static_cast<int32_t>(pass.positions.size()));
      pass.positions.push_back(static_cast<int32_t>(first + i));
      pass.sequence_of.push_back(static_cast<int32_t>(s));
    }
    const bool expands = part.form == AttentionForm::kExpanded || (part.form == AttentionForm::kAuto && n >= kExpandedPays);
    pass.expanded.push_back(expands ? 1 : 0);
    longest = std::max(longest, static_cast<int64_t>(part.sequence->pages().size()));
  }
  pass.page_table.assign(parts.size() * static_cast<size_t>(longest), -1);
  for (size_t s = 0; s < parts.size(); ++s) {
    const std::span<const int32_t> pages = parts[s].sequence->pages();
    std::copy(pages.begin(), pages.end(), pass.page_table.begin() + static_cast<ptrdiff_t>(s) * longest);
  }

  auto ints = [](std::vector<int32_t>& v) { return Tensor(DType::kI32, {static_cast<int64_t>(v.size())}, v.data()); };
  deepseek::Step step;
  step.token_ids = ints(pass.ids);
  step.where = {ints(pass.positions), ints(pass.slots), ints(pass.sequence_of), Tensor(DType::kI32, {static_cast<int64_t>(parts.size()), longest}, pass.page_table.data()),
                ints(pass.expanded)};
  if (!pass.output_rows.empty()) step.output_rows = ints(pass.output_rows);
  for (int i = 0; i < m.pool->layout().n_layers; ++i) step.caches.push_back(m.pool->layer(i));
  step.attention = m.options.attention;

  pass.graph.emplace();
  const Tensor logits = deepseek::forward(*pass.graph, m.model, step);
  if (logits) pass.graph->keep(logits);
  if (!go_on) {
    pass.executor.run(*pass.graph);
  } else {
    const InsideStep inside(m.depth);
    if (!pass.executor.run_while(*pass.graph, go_on)) {
      give_back(parts);
      return StepStatus::kStopped;
    }
  }
  if (m.source.check_intact) m.source.check_intact();
  if (logits) pass.logits = pass.graph->resolve(logits);
  m.last = &pass;
  for (const StepPart& part : parts) part.sequence->advance(static_cast<int64_t>(part.token_ids.size()));
  return StepStatus::kDone;
}

bool Engine::prefill(Sequence& sequence, std::span<const int32_t> token_ids, Outputs outputs, const Progress& progress, const std::function<bool()>& stop) {
  const int64_t first = sequence.length(), n_prompt = first + static_cast<int64_t>(token_ids.size());
  const AttentionPlan plan = attention_plan(n_prompt);
  const std::function<bool()> go_on = stop ? std::function<bool()>([&stop] { return !stop(); }) : nullptr;
  while (sequence.length() < n_prompt) {
    if (stop && stop()) return false;
    const int64_t at = sequence.length();
    if (progress) progress(static_cast<uint64_t>(at - first), token_ids.size());
    const int64_t n = plan.of_one_form(at, std::min(chunk_tokens(), n_prompt - at));
    const bool is_last = at + n == n_prompt;
    const StepPart part{&sequence, token_ids.subspan(static_cast<size_t>(at - first), static_cast<size_t>(n)),
                        is_last || outputs == Outputs::kAll ? outputs : Outputs::kNone, plan.form(at)};
    if (step({&part, 1}, go_on) != StepStatus::kDone) return false;
  }
  if (progress) progress(token_ids.size(), token_ids.size());
  return true;
}

}  // namespace fathom
