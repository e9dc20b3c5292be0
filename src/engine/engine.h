// A loaded model: weights, tokenizer, page pool and backend, and one step of the forward pass over any sequences.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "cache/pages.h"
#include "core/backend.h"
#include "core/metadata.h"
#include "core/node.h"
#include "engine/attention_plan.h"
#include "engine/draft_pass.h"
#include "engine/weight_observer.h"
#include "text/bpe.h"
#include "text/chat_generation.h"

namespace fathom {

namespace deepseek {
struct Config;
}

struct EngineOptions {
  std::string model_path;
  std::string backend = "auto";     ///< "auto": a device if there is one that takes the model; "cpu"; "cuda"
  int device = 0;                   ///< which device
  std::string isa = "auto";         ///< of the CPU; anything but "auto" also means the CPU where backend is "auto"
  int n_threads = 0;                ///< 0: physical cores this process may use
  std::optional<int64_t> context;   ///< tokens the page pool holds; nothing: what model and memory allow, at most 32768
  std::optional<DType> cache_type;  ///< nothing: as default_cache_type says
  AttentionForm attention = AttentionForm::kAuto;  ///< kAuto: as AttentionPlan says
  ExpandThresholds expand{};                       ///< of that plan
  int64_t chunk_tokens = 0;  ///< most tokens of a prefill step; 0: as is best, mostly kDefaultChunkTokens
  bool mtp = false;          ///< use the MTP block of files that have one: Engine::draft
  std::optional<ChatGeneration> chat_format{};                   ///< nothing: as the file asks for
  std::function<void(uint64_t done, uint64_t total)> on_load{};  ///< bytes of weights sent to a device; may be empty
  /// For estimates, nothing can be evaluated: of a checkpoint's folder only headers are read, a device's memory is
  /// counted and not taken.
  bool estimate_only = false;
  /// On a device: layers whose routed experts stay in host memory and are computed there, the last ones of the model;
  /// nothing: as few as make the rest fit.
  std::optional<int64_t> host_expert_layers{};
  /// Steps of at least so many tokens bring these experts to the device and compute them there; 0: never; nothing: as
  /// default_stream_from says. Up to kFewestStreamedTokens: that many.
  std::optional<int64_t> stream_experts_from{};
  /// Of the device's memory, for copies of these experts: those that were used most of late. Which ones that are
  /// depends on the tokens before, and with it the last bits of logits.
  uint64_t expert_cache_bytes = 0;
};

/// What a step must have for streaming: fewer tokens are multiplied by kernels that want all weights at once.
constexpr int64_t kFewestStreamedTokens = 17;
/// Tokens of a step from which on bringing n_experts experts, of which a token uses n_used, over PCIe takes less time
/// than computing them on a CPU of some cores. Published measurements: 512 still pays for 64 experts of which 6 are
/// used, 32 by far not.
constexpr int64_t default_stream_from(int64_t n_experts, int64_t n_used) { return 32 * n_experts / n_used; }
/// Most tokens of one step if experts are streamed: their way takes as long for one token as for all.
constexpr int64_t kStreamedChunks = 4;  // times default_stream_from

/// Most tokens of one step unless asked otherwise. Measured on the V2-Lite shape: tests/bench/RESULTS.md.
constexpr int64_t kDefaultChunkTokens = 512;
constexpr int64_t kDefaultContextLimit = 32768;

/// bf16; f16 for a model with an indexer, whose scores lie close together: rounded to bf16 one in some hundred chosen
/// rows is another (same size, 8 times the resolution; the attention kernels for f16 take twice as long).
DType default_cache_type(const deepseek::Config& config);

/// What the file is, for reports.
struct ModelInfo {
  std::string path;
  std::string architecture;
  std::string name;
  std::string type;  ///< the quantized type with most bytes: "q4_k"
  uint64_t size_bytes = 0;
  int64_t trained_context = 0;
  int64_t vocab_size = 0;
  int64_t n_layers = 0;
  uint64_t copied_bytes = 0;  ///< of size_bytes: put together in memory, the rest is mapped
};

/// A model whose tensors are in memory: metadata and tensors as a GGUF file has them.
struct ModelSource {
  Metadata metadata;
  std::map<std::string, Tensor> tensors;
  std::string path;  ///< for reports
  uint64_t size_bytes = 0;
  uint64_t copied_bytes = 0;           ///< ModelInfo's
  std::shared_ptr<const void> owner;   ///< keeps the tensors' memory
  std::function<void()> check_intact;  ///< throws if that memory was lost since; may be empty
  bool streams_experts = false;        ///< they are pages of files larger than memory (ReadingPlan)
};

/// What one step reads and computes, for bounds: bytes and operations that no implementation can avoid.
struct StepCost {
  double weight_bytes = 0;   ///< of the file's weights, each once; experts as uniform routing would touch them
  double cache_bytes = 0;    ///< rows of the cache
  double matmul_ops = 0;     ///< 2 for each weight and token that meet
  double attention_ops = 0;  ///< in the cheaper of the two forms
  double model_bytes = 0;    ///< all weights
};

/// Which tokens of a part of a step give logits.
enum class Outputs { kNone, kLast, kAll };

/// One sequence's part in a step: its next tokens, at positions sequence->length() and on.
struct StepPart {
  Sequence* sequence;
  std::span<const int32_t> token_ids;
  Outputs outputs = Outputs::kLast;
  /// Of latent attention, unless EngineOptions::attention forces one. kAuto: by the number of tokens, which is fastest,
  /// but makes the last bits depend on how a prompt is cut: callers whose pages are found again pass AttentionPlan's
  /// form.
  AttentionForm form = AttentionForm::kAuto;
};

enum class StepStatus { kDone, kNoPages, kStopped };

/// Called while long work goes on: done of total units (tokens, bytes). May be empty.
using Progress = std::function<void(uint64_t done, uint64_t total)>;

struct ChosenBackend;

/// One thread at a time. Sequences of its pool must not outlive it.
class Engine {
 public:
  /// A GGUF file, any shard of a split one, or the folder of a Hugging Face checkpoint (load_checkpoint.h).
  /// Throws Error{kModel} for unusable files, Error{kUsage} for impossible options, Error{kNoMemory} with the bytes
  /// needed and available.
  static std::unique_ptr<Engine> load(const EngineOptions& options);
  /// The same for weights from elsewhere; options.model_path is not looked at. Without tokenizer.ggml keys the engine
  /// has no tokenizer and works on ids alone.
  static std::unique_ptr<Engine> from_source(ModelSource source, const EngineOptions& options);
  ~Engine();

  const ModelInfo& info() const;
  const Metadata& metadata() const;        ///< what the file says about itself
  const deepseek::Config& config() const;  ///< what was read from it, with what older files leave out
  const Tokenizer& tokenizer() const;      ///< the model must have one (checked)
  /// The file's chat template, empty if it has none; `chat_generation()` is the format chosen from it, or by
  /// EngineOptions::chat_format.
  ChatGeneration chat_generation() const;
  PagePool& pool();
  DType cache_type() const;
  int64_t context() const;  ///< tokens a single sequence may have
  int64_t chunk_tokens() const;
  /// The forms for a prompt of n tokens. One form throughout if the model has no latent attention or a form is forced.
  AttentionPlan attention_plan(int64_t n_prompt) const;
  /// Names all that cached rows depend on: weights (sampled), settings, cache type, kernels. For DiskStore and
  /// SequenceWriter.
  std::string cache_fingerprint() const;
  std::string backend_description() const;
  /// What its user should know about where it runs ("no device, runs on the CPU") and where from, or nothing.
  const std::string& note() const;
  bool on_device() const;              ///< false: all memory is the host's
  uint64_t device_bytes() const;       ///< of a device's memory: weights, cache, activations, workspace
  uint64_t host_expert_bytes() const;  ///< of the weights of a model on a device, those that stay in host memory
  double host_bytes_per_token() const;
  /// Tokens of a step from which on they pass through the device; 0: never.
  int64_t streams_experts_from() const;
  /// Since it was loaded: routes to these experts, and how many of them found copies on the device.
  ExpertHits expert_hits() const;        ///< of those, what a token reads
  uint64_t device_weight_bytes() const;  ///< of those, weights

  /// Evaluates all parts in one pass and advances their sequences. Logits of the wanted tokens are then at logits(), in
  /// the order of parts and tokens. kNoPages: the pool is full, nothing has changed. `go_on` is asked between
  /// operations, some hundred times a step; false ends it: kStopped, nothing has changed. It may itself step other
  /// sequences (one level deep): a short step need not wait for the end of a long one. Throws Error{kUsage} for token
  /// ids outside the vocabulary, Error{kModel} if the model file was cut short meanwhile.
  /// keep_hidden: draft() follows.
  StepStatus step(std::span<const StepPart> parts, const std::function<bool()>& go_on = {}, bool keep_hidden = false);
  /// [n_outputs, vocab] of the step that ended last, valid until the next begins. Row i:
  std::span<const float> logits(int64_t output_idx) const;
  int64_t n_outputs() const;

  /// Whether there is an MTP block to draft with.
  bool has_mtp() const;
  /// Runs the MTP block over tokens of the last step, which kept its hidden states: a guess at the token after the one
  /// that follows, for each part that wants one, in order. Pages of the parts must not be shared. A token that this
  /// never ran over is missing from the block's context: its guesses get worse, nothing else.
  std::vector<Draft> draft(std::span<const DraftPart> parts);

  /// Evaluates more of a prompt in chunks, in the forms of attention_plan(its length then); the last token's logits are
  /// at logits(0) afterwards (unless outputs is kNone). False if the pool is full (then sequence holds what was done).
  bool prefill(Sequence& sequence, std::span<const int32_t> token_ids, Outputs outputs);

  /// From here on `observer` is told what every weight is multiplied with; null: nobody. Steps are slower meanwhile,
  /// and their logits differ in the last bits. The observer must outlive the steps.
  void observe(WeightObserver* observer);

  /// Cost of a step in which each of n_sequences, `depth` tokens long, gets tokens_each more and has one output.
  StepCost cost(int64_t n_sequences, int64_t tokens_each, int64_t depth) const;

  uint64_t model_bytes() const { return info().size_bytes; }
  uint64_t activation_bytes() const;
  /// What activation_bytes will be once a step of a whole chunk has run, from the plan of its graph.
  uint64_t planned_activation_bytes() const;

 private:
  struct Impl;
  explicit Engine(std::unique_ptr<Impl> impl);
  /// The fewest layers whose experts stay on the host so that the device takes everything else with the context that is
  /// wanted; more than there are if it never does. Counted, in milliseconds.
  static int64_t least_host_layers(const ModelSource& source, const EngineOptions& options);
  static std::unique_ptr<Engine> on_backend(ModelSource source, const EngineOptions& options, ChosenBackend chosen);
  std::unique_ptr<Impl> impl_;
};

}  // namespace fathom
