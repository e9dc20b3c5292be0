#include "engine/engine.h"

#include <algorithm>
#include <array>
#include <bit>
#include <map>

#include "core/error.h"
#include "core/host_memory.h"
#include "core/plain_text.h"
#include "deepseek/deepseek.h"
#include "engine/cache_arrays.h"
#include "engine/chat_choice.h"
#include "engine/cost.h"
#include "engine/devices.h"
#include "engine/model_fingerprint.h"
#include "engine/placement.h"
#include "engine/step_inputs.h"
#include "engine/weight_tap.h"
#include "graph/graph.h"

namespace fathom {
namespace {

/// The element type most of the file's bytes have, norms and router aside.
std::string main_type(const std::map<std::string, Tensor>& tensors) {
  std::map<DType, size_t> bytes;
  for (const auto& [name, tensor] : tensors) bytes[tensor.dtype] += tensor.size_bytes();
  const auto best =
      std::max_element(bytes.begin(), bytes.end(), [](const auto& a, const auto& b) { return a.second < b.second; });
  return best == bytes.end() ? "none" : std::string(dtype_name(best->first));
}

deepseek::Model read_model(const ModelSource& source, bool wants_mtp) {
  const std::string* architecture = source.metadata.text("general.architecture");
  const std::optional<int64_t> blocks =
      architecture ? source.metadata.integer(*architecture + ".block_count") : std::nullopt;
  const std::string mtp = "blk." + std::to_string(blocks.value_or(0) - 1) + ".nextn.";
  const auto after = source.tensors.lower_bound(mtp);
  const bool has_mtp = blocks && after != source.tensors.end() && after->first.starts_with(mtp);
  const bool has_bias = std::any_of(source.tensors.begin(), source.tensors.end(),
                                    [](const auto& t) { return t.first.ends_with(".exp_probs_b.bias"); });
  deepseek::Model model;
  model.config = deepseek::read_config(source.metadata, has_mtp, has_bias);
  model.weights = deepseek::bind_weights(model.config, source.tensors);
  if (wants_mtp && deepseek::has_mtp_block(model.config, source.tensors))
    deepseek::bind_mtp(model.config, source.tensors, model.weights);
  model.config.caches_mtp = model.weights.mtp.has_value();
  return model;
}

/// Room for `tokens` in one sequence; the page more is for the copy that writing to a shared last page takes.
int64_t pages_for(int64_t tokens) { return (tokens + kPageTokens - 1) / kPageTokens + 1; }

/// Sequences whose recent rows a device has room for beside one that evaluates a prompt: it has no swap.
constexpr uint64_t kAnswersBeside = 4;

/// `free_bytes`: of a device after everything else; nothing: the host's memory is looked at.
int64_t choose_context(const EngineOptions& options, const deepseek::Config& config, const CacheLayout& layout,
                       int64_t chunk_tokens, std::optional<uint64_t> free_bytes) {
  if (options.context && (*options.context < 1 || *options.context > config.context_length)) {
    throw Error(ErrorCode::kUsage, "--ctx: out of range; expected 1 to the model's own " +
                                       std::to_string(config.context_length) + ", got " +
                                       std::to_string(*options.context) + "; try a smaller value");
  }
  const int64_t wanted = options.context.value_or(std::min(kDefaultContextLimit, config.context_length));
  const std::optional<uint64_t> available = free_bytes ? free_bytes : available_memory_bytes();
  if (!available) return wanted;
  const uint64_t recent =
      layout.recent_bytes(chunk_tokens) + (free_bytes ? kAnswersBeside * layout.recent_bytes(1) : 0);
  const uint64_t needed = static_cast<uint64_t>(pages_for(wanted)) * layout.page_bytes() + recent;
  if (needed <= *available) return wanted;
  const uint64_t for_pages = *available - std::min(*available, recent);
  const int64_t fits = (static_cast<int64_t>(for_pages / std::max<size_t>(1, layout.page_bytes())) - 1) * kPageTokens;
  if (options.context || fits < kPageTokens) {
    throw Error(ErrorCode::kNoMemory,
                "cache: a context of " + std::to_string(wanted) + " tokens does not fit; expected " + mib(needed) +
                    " free, got " + mib(*available) + "; try --ctx " +
                    std::to_string(std::max<int64_t>(fits, kPageTokens)) + " or a smaller --cache-type");
  }
  return fits;
}

/// The graph of a step of n_tokens of one sequence, all with logits or only the last, without data: for checks and
/// plans.
Graph probe_graph(const deepseek::Model& model, const CacheLayout& layout, int64_t n_tokens, int64_t n_outputs,
                  int64_t n_pages, AttentionForm attention) {
  auto ints = [](Shape shape) { return Tensor(DType::kI32, shape, nullptr); };
  const Tensor tokens = ints({n_tokens});
  deepseek::Step step{tokens, {tokens, tokens, tokens, ints({1, n_pages})}, ints({n_outputs}), {}, attention};
  step.selects = model.config.has_choice();
  step.caches = cache_arrays(model.config, layout, n_pages);
  Graph probe;
  deepseek::forward(probe, model, step);
  return probe;
}

/// What of cache_arrays is the MTP block's.
std::vector<Tensor> mtp_arrays(const deepseek::Config& config, std::vector<Tensor> arrays) {
  arrays.erase(arrays.begin(), arrays.end() - static_cast<ptrdiff_t>(config.n_mtp_cache_rows()));
  return arrays;
}

/// The same of the MTP block.
Graph probe_mtp_graph(const deepseek::Model& model, const CacheLayout& layout, int64_t n_tokens, int64_t n_pages) {
  auto ints = [](Shape shape) { return Tensor(DType::kI32, shape, nullptr); };
  const Tensor tokens = ints({n_tokens});
  Graph probe;
  deepseek::forward_mtp(probe, model,
                        {tokens,
                         Tensor(DType::kF32, {n_tokens, model.config.hidden_size}, nullptr),
                         tokens,
                         {tokens, tokens, tokens, ints({1, n_pages})},
                         ints({1}),
                         mtp_arrays(model.config, cache_arrays(model.config, layout, n_pages)),
                         AttentionForm::kAuto,
                         model.config.has_choice()});
  return probe;
}

}  // namespace

DType default_cache_type(const deepseek::Config& config) { return config.has_indexer() ? DType::kF16 : DType::kBF16; }

namespace {

/// A step's graph with its addresses, kept for the next step of that shape.
struct PreparedStep {
  uint64_t key = 0;
  Graph graph;
  Tensor logits;
};

/// On a device, steps of so many tokens are prepared once for each shape. Larger ones spend their time on matrices, not
/// on launches.
constexpr int64_t kReplayedTokens = 16;
constexpr size_t kMostPrepared = 256;

/// Counts the steps in progress.
class InsideStep {
 public:
  explicit InsideStep(size_t& depth) : depth_(depth) { ++depth_; }
  ~InsideStep() { --depth_; }
  InsideStep(const InsideStep&) = delete;
  InsideStep& operator=(const InsideStep&) = delete;

 private:
  size_t& depth_;
};

/// What one step works on. The graph stays alive after it because its arena holds the logits.
struct Pass {
  explicit Pass(Backend& backend) : executor(backend) {}

  Executor executor;
  std::optional<StepInputs> inputs;
  std::optional<Graph> graph;
  Tensor logits;
  std::shared_ptr<Buffer> host_logits;  ///< of a device whose memory the host does not see
  std::shared_ptr<Buffer> hidden;       ///< [its tokens, D] f32 of the last step that kept them
  int64_t hidden_tokens = 0;            ///< of that step; 0: the last step kept none

  std::map<StepShape, PreparedStep> prepared;
  uint64_t prepared_arena = 0, prepared_inputs = 0;  ///< generations of the memory their addresses are in
};

}  // namespace

struct Engine::Impl {
  Impl(ModelSource s, const EngineOptions& o, ChosenBackend chosen)
      : options(o),
        source(std::move(s)),
        model(read_model(source, o.mtp)),
        backend(keep_experts_on_host(std::move(chosen.backend), model, o, source.streams_experts)),
        note(std::move(chosen.note)),
        passes{Pass(*backend), Pass(*backend)} {
    if (source.metadata.has("tokenizer.ggml.tokens")) tokenizer.emplace(source.metadata);
  }

  /// On a device everything is taken here: weights, activations of a whole chunk, what kernels need, and the pages
  /// last.
  void take_memory(const CacheLayout& layout, std::span<const Node> probe);
  /// Whether prompts are evaluated in the forms of an AttentionPlan. With an indexer a token attends to index_topk rows
  /// at most, each token to others: expanding them would be shared by nobody.
  bool plans_forms() const {
    return model.config.attention == deepseek::Attention::kLatent && !model.config.has_indexer() &&
           options.attention == AttentionForm::kAuto;
  }
  /// Adds the step over `sent` to the graph; its logits.
  Tensor build(Graph& g, const deepseek::Step& sent);
  Tensor hidden_of(Pass& pass, int64_t n_tokens);
  /// Runs the step in pass.inputs; sets pass.logits. False if go_on ended it.
  bool run_step(Pass& pass, const std::function<bool()>& go_on);
  void replay_step(Pass& pass, const deepseek::Step& sent);
  void fetch_logits(Pass& pass);

  EngineOptions options;
  ModelSource source;
  std::optional<Tokenizer> tokenizer;
  deepseek::Model model;
  std::unique_ptr<Backend> backend;
  std::string note;
  std::shared_ptr<Buffer> device_weights;
  std::optional<WeightTap> tap;
  std::optional<DraftPass> drafts;  ///< if there is an MTP block
  ModelInfo info;
  ChatGeneration chat{};
  std::unique_ptr<PagePool> pool;
  int64_t context = 0;
  int64_t chunk_tokens = 0;

  std::vector<std::span<const int32_t>> pages;  // of the step to be sent
  std::array<Pass, 2> passes;                   // the second for steps inside a step
  size_t depth = 0;                             // steps in progress
  Pass* last = &passes[0];                      // whose logits can be read
  uint64_t next_key = 0;                        // of prepared steps
};

void Engine::Impl::take_memory(const CacheLayout& layout, std::span<const Node> probe) {
  if (backend->shares_host_memory()) {
    context = choose_context(options, model.config, layout, chunk_tokens, std::nullopt);
    pool = std::make_unique<PagePool>(layout, pages_for(context));
    for (Pass& pass : passes) pass.inputs.emplace(*backend, chunk_tokens, pages_for(context));
    if (model.weights.mtp) drafts.emplace(*backend, chunk_tokens, pages_for(context));
    return;
  }
  device_weights = place_weights(model.weights, source.tensors, probe,
                                 stacks_of(last_experts(model.weights, options.host_expert_layers.value_or(0))),
                                 *backend, options.on_load);
  const int64_t longest = options.context.value_or(std::min(kDefaultContextLimit, model.config.context_length));
  const int64_t most_tokens = std::min(chunk_tokens, std::max<int64_t>(longest, 1)),
                few_tokens = std::min(kReplayedTokens, most_tokens);
  // A chunk with one output, and the largest step that is replayed with all of its tokens' logits. Steps inside steps
  // are short.
  const auto table_width = static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(pages_for(longest))));
  Graph chunk = probe_graph(model, layout, most_tokens, 1, table_width, options.attention),
        few = probe_graph(model, layout, few_tokens, few_tokens, table_width, options.attention);
  const size_t chunk_bytes = chunk.plan(backend->fused_nodes()), few_bytes = few.plan(backend->fused_nodes());
  passes[0].executor.reserve(std::max(chunk_bytes, few_bytes));
  passes[1].executor.reserve(few_bytes);
  for (Pass& pass : passes) pass.inputs.emplace(*backend, most_tokens, pages_for(longest));
  backend->reserve(chunk.nodes());
  backend->reserve(few.nodes());
  const std::optional<uint64_t> free = backend->free_bytes();
  context = choose_context(options, model.config, layout, chunk_tokens,
                           free ? std::optional(*free - std::min(*free, kDeviceReserveBytes)) : std::nullopt);
  pool = std::make_unique<PagePool>(layout, pages_for(context), backend.get());
  if (!model.weights.mtp) return;
  drafts.emplace(*backend, most_tokens, pages_for(longest));
  // Rows that the MTP block never wrote are read all the same, and have to be numbers.
  for (int i = layout.n_layers - static_cast<int>(model.config.n_mtp_cache_rows()); i < layout.n_layers; ++i) {
    const std::vector<std::byte> zeros(kPageTokens * layout.row_bytes(i));
    for (int32_t page = 0; page < pool->n_pages(); ++page) pool->write_rows(i, page, kPageTokens, zeros.data());
  }
}

Tensor Engine::Impl::hidden_of(Pass& pass, int64_t n_tokens) {
  const size_t size_bytes = static_cast<size_t>(n_tokens * model.config.hidden_size) * sizeof(float);
  if (!pass.hidden || pass.hidden->size_bytes() < size_bytes) {
    backend->finish();
    pass.prepared.clear();  // they write to the old memory
    backend->forget_replays();
    pass.hidden.reset();
    pass.hidden = backend->allocate(size_bytes, "hidden states");
  }
  return Tensor(DType::kF32, {n_tokens, model.config.hidden_size}, pass.hidden->data());
}

Tensor Engine::Impl::build(Graph& g, const deepseek::Step& sent) {
  deepseek::Step step = sent;
  step.caches = cache_arrays(model.config, *pool);
  step.attention = options.attention;
  const Tensor value = deepseek::forward(g, model, step);
  if (value) g.keep(value);
  return value;
}

void Engine::Impl::replay_step(Pass& pass, const deepseek::Step& sent) {
  Executor& executor = pass.executor;
  auto forget = [&] {
    pass.prepared.clear();
    backend->forget_replays();
    pass.prepared_arena = executor.arena_generation();
    pass.prepared_inputs = pass.inputs->generation();
  };
  if (pass.prepared_arena != executor.arena_generation() || pass.prepared_inputs != pass.inputs->generation() ||
      pass.prepared.size() >= kMostPrepared)
    forget();
  auto found = pass.prepared.find(pass.inputs->shape());
  if (found == pass.prepared.end()) {
    PreparedStep step;
    const Tensor value = build(step.graph, sent);
    executor.prepare(step.graph);
    if (pass.prepared_arena != executor.arena_generation()) forget();  // the arena grew
    if (value) step.logits = step.graph.resolve(value);
    step.key = next_key++;
    found = pass.prepared.emplace(pass.inputs->shape(), std::move(step)).first;
  }
  executor.replay(found->second.key, found->second.graph);
  pass.logits = found->second.logits;
}

void Engine::Impl::fetch_logits(Pass& pass) {
  if (!pass.logits) {
    backend->finish();
    return;
  }
  const size_t size_bytes = pass.logits.size_bytes();
  if (!pass.host_logits || pass.host_logits->size_bytes() < size_bytes) {
    pass.host_logits.reset();
    pass.host_logits = backend->allocate_staging(size_bytes, "logits");
  }
  backend->download(pass.host_logits->data(), pass.logits.data, size_bytes);
  pass.logits.data = pass.host_logits->data();
}

bool Engine::Impl::run_step(Pass& pass, const std::function<bool()>& go_on) {
  deepseek::Step sent = pass.inputs->send();
  pass.hidden_tokens = pass.inputs->keeps_hidden ? pass.inputs->shape().n_tokens : 0;
  if (pass.hidden_tokens > 0) sent.hidden = hidden_of(pass, pass.hidden_tokens);
  const bool on_host = backend->shares_host_memory();
  if (!on_host && pass.inputs->shape().n_tokens <= kReplayedTokens) {
    replay_step(pass, sent);
  } else {
    pass.graph.emplace();
    const Tensor value = build(*pass.graph, sent);
    if (tap) {
      pass.executor.run(*pass.graph, [this](const Node& node) { return tap->run(node); });
    } else if (!go_on) {
      pass.executor.run(*pass.graph);
    } else {
      const InsideStep inside(depth);
      if (!pass.executor.run_while(*pass.graph, go_on)) return false;
    }
    if (value) pass.logits = pass.graph->resolve(value);
  }
  if (!on_host) fetch_logits(pass);
  return true;
}

Engine::Engine(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Engine::~Engine() = default;

std::unique_ptr<Engine> Engine::on_backend(ModelSource source, const EngineOptions& options, ChosenBackend chosen) {
  auto impl = std::make_unique<Impl>(std::move(source), options, std::move(chosen));
  Impl& m = *impl;
  const deepseek::Config& config = m.model.config;
  if (m.source.streams_experts && m.backend->shares_host_memory()) {
    m.note += (m.note.empty() ? "" : "; ") + ("the model's " + human_bytes(m.source.size_bytes) + " are more than the " +
                                              human_bytes(available_memory_bytes().value_or(0)) +
                                              " of memory available: experts are read from the disk again and again");
  }
  m.info = {m.source.path,
            config.architecture,
            config.name,
            main_type(m.source.tensors),
            m.source.size_bytes,
            config.context_length,
            m.model.weights.vocab_size(),
            config.n_layers,
            m.source.copied_bytes};
  if (m.tokenizer) {
    if (m.tokenizer->vocab().size() > m.model.weights.vocab_size()) {
      throw Error(ErrorCode::kModel,
                  m.source.path + ": the tokenizer has more tokens than the model; expected at most " +
                      std::to_string(m.model.weights.vocab_size()) + ", got " +
                      std::to_string(m.tokenizer->vocab().size()) + "; try another copy of the file");
    }
    m.chat =
        options.chat_format ? *options.chat_format : choose_chat_generation(m.source.metadata, m.tokenizer->vocab());
  }

  const CacheLayout layout = cache_layout(config, options.cache_type.value_or(default_cache_type(config)));
  validate(layout);
  if (options.chunk_tokens < 0)
    throw Error(ErrorCode::kUsage,
                "--batch: out of range; expected 1 or more, got " + std::to_string(options.chunk_tokens));
  m.chunk_tokens = options.chunk_tokens > 0 ? options.chunk_tokens : default_chunk_tokens(m.model, options, *m.backend);

  // One token's graph shows every operation and weight type that will run: what the backend lacks is refused here.
  std::vector<Node> probe = probe_graph(m.model, layout, 1, 1, pages_for(1), options.attention).nodes();
  if (m.model.weights.mtp) {
    const Graph mtp = probe_mtp_graph(m.model, layout, 1, pages_for(1));
    probe.insert(probe.end(), mtp.nodes().begin(), mtp.nodes().end());
  }
  for (const Node& node : probe) m.backend->check_supported(node);
  m.take_memory(layout, probe);
  return std::unique_ptr<Engine>(new Engine(std::move(impl)));
}

const ModelInfo& Engine::info() const { return impl_->info; }
const Metadata& Engine::metadata() const { return impl_->source.metadata; }
const deepseek::Config& Engine::config() const { return impl_->model.config; }
const Tokenizer& Engine::tokenizer() const {
  FATHOM_CHECK(impl_->tokenizer.has_value(), "a model without a tokenizer");
  return *impl_->tokenizer;
}
ChatGeneration Engine::chat_generation() const { return impl_->chat; }
PagePool& Engine::pool() { return *impl_->pool; }
DType Engine::cache_type() const { return impl_->pool->layout().dtype; }
int64_t Engine::context() const { return impl_->context; }
int64_t Engine::chunk_tokens() const { return impl_->chunk_tokens; }

AttentionPlan Engine::attention_plan(int64_t n_prompt) const {
  return impl_->plans_forms() ? AttentionPlan(n_prompt, impl_->options.expand) : AttentionPlan();
}

std::string Engine::cache_fingerprint() const {
  const EngineOptions& o = impl_->options;
  std::string forms = "absorbed";
  if (o.attention == AttentionForm::kExpanded) forms = "expanded";
  if (impl_->plans_forms())
    forms = "auto " + std::to_string(o.expand.from_position) + "/" + std::to_string(o.expand.block_tokens);
  // "cpu avx512, 2 threads", "cuda sm_90, NAME, device 0; experts of 3 layers: cpu avx512, 2 threads": threads and
  // names change no bit.
  const std::string described = impl_->backend->describe();
  std::string backend = described.substr(0, described.find(','));
  if (const size_t beside = described.find(';'); beside != std::string::npos)
    backend += described.substr(beside, described.find(',', beside) - beside);
  return model_fingerprint(impl_->source.metadata, impl_->source.tensors) + ", " + impl_->pool->layout().describe() +
         ", " + backend + ", " + forms;
}

std::string Engine::backend_description() const { return impl_->backend->describe(); }
const std::string& Engine::note() const { return impl_->note; }
bool Engine::on_device() const { return !impl_->backend->shares_host_memory(); }
uint64_t Engine::device_bytes() const { return impl_->backend->allocated_bytes(); }
uint64_t Engine::host_expert_bytes() const {
  uint64_t sum = 0;
  if (on_device()) {
    for (const GatedFfnWeights& w : last_experts(impl_->model.weights, impl_->options.host_expert_layers.value_or(0)))
      sum += w.gate.size_bytes() + w.up.size_bytes() + w.down.size_bytes();
  }
  return sum;
}
double Engine::host_bytes_per_token() const {
  const deepseek::Config& config = impl_->model.config;
  return config.n_experts == 0 ? 0
                               : static_cast<double>(host_expert_bytes()) * static_cast<double>(config.router.n_used) /
                                     static_cast<double>(config.n_experts);
}
int64_t Engine::streams_experts_from() const { return stream_from(impl_->model, impl_->options, *impl_->backend); }
ExpertHits Engine::expert_hits() const { return impl_->backend->expert_hits(); }
uint64_t Engine::device_weight_bytes() const { return impl_->device_weights ? impl_->device_weights->size_bytes() : 0; }
StepCost Engine::cost(int64_t n_sequences, int64_t tokens_each, int64_t depth) const {
  return step_cost(impl_->model, impl_->pool->layout(), n_sequences, tokens_each, depth);
}
uint64_t Engine::activation_bytes() const {
  return impl_->passes[0].executor.arena_bytes() + impl_->passes[1].executor.arena_bytes() +
         (impl_->drafts ? impl_->drafts->arena_bytes() : 0);
}
uint64_t Engine::planned_activation_bytes() const {
  const int64_t n = std::min(impl_->chunk_tokens, impl_->context);
  return probe_graph(impl_->model, impl_->pool->layout(), n, 1, pages_for(n), impl_->options.attention)
      .plan(impl_->backend->fused_nodes());
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

}  // namespace

StepStatus Engine::step(std::span<const StepPart> parts, const std::function<bool()>& go_on, bool keep_hidden) {
  Impl& m = *impl_;
  FATHOM_CHECK(m.depth < m.passes.size(), "a step inside a step inside a step");
  FATHOM_CHECK(!keep_hidden || has_mtp(), "hidden states are kept for an MTP block");
  Pass& pass = m.passes[m.depth];
  pass.logits = {};
  m.last = &pass;
  int64_t n_tokens = 0;
  for (const StepPart& part : parts) {
    FATHOM_CHECK(&part.sequence->pool() == m.pool.get() && !part.token_ids.empty(),
                 "a part brings tokens for a sequence of this engine");
    for (const int32_t id : part.token_ids) {
      if (id < 0 || id >= m.info.vocab_size) {
        throw Error(ErrorCode::kUsage, "token id: not in the vocabulary; expected 0 to " +
                                           std::to_string(m.info.vocab_size - 1) + ", got " + std::to_string(id));
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

  const deepseek::Config& config = m.model.config;
  StepInputs& in = *pass.inputs;
  in.clear();
  m.pages.clear();
  for (size_t s = 0; s < parts.size(); ++s) {
    const StepPart& part = parts[s];
    const int64_t first = part.sequence->length(), n = static_cast<int64_t>(part.token_ids.size());
    const std::vector<int32_t> slots = part.sequence->slots(first, n);
    in.slots.insert(in.slots.end(), slots.begin(), slots.end());
    in.ids.insert(in.ids.end(), part.token_ids.begin(), part.token_ids.end());
    for (int64_t i = 0; i < n; ++i) {
      if (part.outputs == Outputs::kAll || (part.outputs == Outputs::kLast && i == n - 1))
        in.output_rows.push_back(static_cast<int32_t>(in.positions.size()));
      in.positions.push_back(static_cast<int32_t>(first + i));
      in.selects = in.selects || config.chooses_at(first + i);
      in.sequence_of.push_back(static_cast<int32_t>(s));
    }
    const bool expands =
        part.form == AttentionForm::kExpanded || (part.form == AttentionForm::kAuto && n >= kExpandedPays);
    in.expanded.push_back(expands ? 1 : 0);
    m.pages.push_back(part.sequence->pages());
  }
  in.set_page_table(m.pages);
  in.keeps_hidden = keep_hidden;
  if (!m.run_step(pass, go_on)) {
    give_back(parts);
    return StepStatus::kStopped;
  }
  if (m.source.check_intact) m.source.check_intact();
  m.last = &pass;
  for (const StepPart& part : parts) part.sequence->advance(static_cast<int64_t>(part.token_ids.size()));
  return StepStatus::kDone;
}

bool Engine::has_mtp() const { return impl_->drafts.has_value(); }

std::vector<Draft> Engine::draft(std::span<const DraftPart> parts) {
  Impl& m = *impl_;
  const Pass& pass = *m.last;
  for (const DraftPart& part : parts) {
    const auto n = static_cast<int64_t>(part.next_ids.size());
    FATHOM_CHECK(n > 0 && part.first_row >= 0 && part.first_row + n <= pass.hidden_tokens &&
                     part.first_position + n <= part.sequence->length() && part.n_drafts <= n,
                 "drafts follow tokens of the last step");
  }
  const Tensor hidden(DType::kF32, {pass.hidden_tokens, m.model.config.hidden_size}, pass.hidden->data());
  NodeHook hook;
  if (m.tap) hook = [&m](const Node& node) { return m.tap->run(node); };
  return m.drafts->run(m.model, hidden, mtp_arrays(m.model.config, cache_arrays(m.model.config, *m.pool)), parts, hook);
}

void Engine::observe(WeightObserver* observer) {
  FATHOM_CHECK(impl_->backend->shares_host_memory(), "weights are observed on the host");
  impl_->tap.reset();
  if (observer != nullptr) impl_->tap.emplace(impl_->source.tensors, *impl_->backend, *observer);
}

bool Engine::prefill(Sequence& sequence, std::span<const int32_t> token_ids, Outputs outputs) {
  const int64_t first = sequence.length(), n_prompt = first + static_cast<int64_t>(token_ids.size());
  const AttentionPlan plan = attention_plan(n_prompt);
  while (sequence.length() < n_prompt) {
    const int64_t at = sequence.length();
    const int64_t n = plan.of_one_form(at, std::min(chunk_tokens(), n_prompt - at));
    const bool is_last = at + n == n_prompt;
    const StepPart part{&sequence, token_ids.subspan(static_cast<size_t>(at - first), static_cast<size_t>(n)),
                        is_last || outputs == Outputs::kAll ? outputs : Outputs::kNone, plan.form(at)};
    if (step({&part, 1}) != StepStatus::kDone) return false;
  }
  return true;
}

}  // namespace fathom
