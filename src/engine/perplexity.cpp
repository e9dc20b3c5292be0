#include "engine/perplexity.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/atomic_file.h"
#include "core/error.h"
#include "engine/text_windows.h"
#include "io/safetensors.h"

namespace fathom {
namespace {

size_t top_of(std::span<const float> logits) {
  return static_cast<size_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

struct MeanAndError {
  double mean, error;
};

MeanAndError mean_and_error(const std::vector<double>& values) {
  const double n = static_cast<double>(values.size());
  double sum = 0, squares = 0;
  for (const double v : values) sum += v;
  const double mean = sum / n;
  for (const double v : values) squares += (v - mean) * (v - mean);
  return {mean, values.size() > 1 ? std::sqrt(squares / (n - 1) / n) : 0};
}

/// The scored logits as a safetensors file, written row by row: ids I32 [T], window I32 [1], logits F32 [R, W].
class LogitsFile {
 public:
  LogitsFile(const std::string& path, std::span<const int32_t> tokens, int64_t window, int64_t n_rows, int64_t width)
      : file_(path) {
    const uint64_t logits_bytes = static_cast<uint64_t>(n_rows * width) * sizeof(float),
                   ids_bytes = tokens.size_bytes();
    auto entry = [](const char* name, const char* type, const std::string& shape, uint64_t begin, uint64_t end) {
      return std::string("\"") + name + "\":{\"dtype\":\"" + type + "\",\"shape\":[" + shape + "],\"data_offsets\":[" +
             std::to_string(begin) + "," + std::to_string(end) + "]}";
    };
    std::string header =
        "{" + entry("logits", "F32", std::to_string(n_rows) + "," + std::to_string(width), 0, logits_bytes) + "," +
        entry("ids", "I32", std::to_string(tokens.size()), logits_bytes, logits_bytes + ids_bytes) + "," +
        entry("window", "I32", "1", logits_bytes + ids_bytes, logits_bytes + ids_bytes + sizeof(int32_t)) + "}";
    header.resize((header.size() + 7) / 8 * 8, ' ');
    const uint64_t size = header.size();
    file_.write(&size, sizeof size);
    file_.write(header.data(), header.size());
    tail_.assign(tokens.begin(), tokens.end());
    tail_.push_back(static_cast<int32_t>(window));
  }

  void add(std::span<const float> logits) { file_.write(logits.data(), logits.size_bytes()); }
  void commit() {
    file_.write(tail_.data(), tail_.size() * sizeof(int32_t));
    file_.commit();
  }

 private:
  AtomicFile file_;
  std::vector<int32_t> tail_;
};

/// The logits that another run saved.
class Reference {
 public:
  Reference(const std::string& path, std::span<const int32_t> tokens, int64_t window, int64_t n_rows, int64_t width)
      : model_(SafetensorsModel::open(path)) {
    const SafetensorsTensor* ids = model_.find("ids");
    const SafetensorsTensor* saved_window = model_.find("window");
    logits_ = model_.find("logits");
    if (ids == nullptr || saved_window == nullptr || logits_ == nullptr || ids->type != SafetensorsType::kI32 ||
        saved_window->type != SafetensorsType::kI32 || saved_window->size_bytes != sizeof(int32_t) ||
        logits_->type != SafetensorsType::kF32) {
      throw Error(
          ErrorCode::kModel,
          path + ": no saved logits; expected tensors logits F32, ids I32 and window I32; try a file of --save-logits");
    }
    int32_t its_window = 0;
    std::memcpy(&its_window, saved_window->data, sizeof its_window);
    if (its_window != window)
      throw Error(ErrorCode::kModel, path + ": saved with another window; expected " + std::to_string(window) +
                                         ", got " + std::to_string(its_window) + "; try --ctx " +
                                         std::to_string(its_window));
    if (ids->size_bytes != tokens.size_bytes() || std::memcmp(ids->data, tokens.data(), tokens.size_bytes()) != 0) {
      throw Error(ErrorCode::kModel, path + ": saved from another text or tokenizer; expected the same " +
                                         std::to_string(tokens.size()) + " tokens");
    }
    if (logits_->shape != std::vector<int64_t>{n_rows, width}) {
      throw Error(ErrorCode::kModel, path + ": logits of another shape; expected [" + std::to_string(n_rows) + ", " +
                                         std::to_string(width) +
                                         "]; try the same --chunks and a model of the same vocabulary");
    }
  }

  std::span<const float> row(int64_t row_idx) const {
    const size_t width = static_cast<size_t>(logits_->shape[1]);
    return {reinterpret_cast<const float*>(logits_->data) + static_cast<size_t>(row_idx) * width, width};
  }
  void check_intact() const { model_.check_intact(); }

 private:
  SafetensorsModel model_;
  const SafetensorsTensor* logits_;
};

/// What is gathered over the scored tokens of all windows.
struct Scores {
  std::vector<double> nll;  // negative log-likelihood of the text's token, nats
  std::vector<double> kl, reference_nll;
  double squared_changes = 0;
  int64_t n_same_top = 0;

  void compare(std::span<const float> mine, double my_lse, std::span<const float> reference, int32_t token) {
    const double lse = log_sum_exp(reference);
    double divergence = 0;
    for (size_t i = 0; i < mine.size(); ++i) {
      const double log_p = static_cast<double>(reference[i]) - lse;
      divergence += std::exp(log_p) * (log_p - (static_cast<double>(mine[i]) - my_lse));
    }
    kl.push_back(std::max(divergence, 0.0));  // rounding alone can make it negative
    reference_nll.push_back(lse - static_cast<double>(reference[static_cast<size_t>(token)]));
    const double change = std::exp(-nll.back()) - std::exp(-reference_nll.back());
    squared_changes += change * change;
    n_same_top += top_of(mine) == top_of(reference) ? 1 : 0;
  }
};

}  // namespace

Distribution Distribution::of(std::vector<double> values) {
  if (values.empty()) return {};
  Distribution d;
  const MeanAndError m = mean_and_error(values);
  d.mean = m.mean;
  d.standard_error = m.error;
  std::sort(values.begin(), values.end());
  auto at = [&](double share) {
    return values[static_cast<size_t>(std::lround(share * static_cast<double>(values.size() - 1)))];
  };
  d.median = at(0.5), d.p90 = at(0.9), d.p95 = at(0.95), d.p99 = at(0.99), d.max = values.back();
  return d;
}

PerplexityReport measure_perplexity(Engine& engine, std::span<const int32_t> text, const PerplexityOptions& options,
                                    const Progress& progress, const std::function<bool()>& stop) {
  const Vocab& vocab = engine.tokenizer().vocab();
  std::vector<int32_t> tokens(text.begin(), text.end());
  if (vocab.add_bos()) tokens.insert(tokens.begin(), vocab.bos());
  const int64_t window = options.window, n_tokens = static_cast<int64_t>(tokens.size());
  check_windows(engine, window, n_tokens);
  const int64_t first_scored = window / 2, scored_per_window = window - 1 - first_scored,
                width = engine.info().vocab_size;
  const int64_t n_windows = std::min(n_tokens / window, options.max_windows.value_or(n_tokens / window));
  const std::span<const int32_t> used = std::span<const int32_t>(tokens).first(static_cast<size_t>(n_windows * window));
  std::optional<Reference> reference;
  if (!options.reference.empty())
    reference.emplace(options.reference, used, window, n_windows * scored_per_window, width);
  std::optional<LogitsFile> saved;
  if (!options.save_logits.empty())
    saved.emplace(options.save_logits, used, window, n_windows * scored_per_window, width);

  // A step's logits take T * W floats: the scored half goes in steps of at most 32 MiB of them.
  const int64_t scored_chunk = std::clamp<int64_t>((int64_t{32} << 20) / (width * static_cast<int64_t>(sizeof(float))),
                                                   1, engine.chunk_tokens());
  Scores scores;
  std::vector<int32_t> ids;
  for (int64_t w = 0; w < n_windows; ++w) {
    const std::span<const int32_t> part_of_text =
        used.subspan(static_cast<size_t>(w * window), static_cast<size_t>(window));
    ids.assign(part_of_text.begin(), part_of_text.end());
    if (vocab.add_bos()) ids[0] = vocab.bos();
    Sequence sequence(engine.pool());
    for (int64_t at = 0; at < window - 1;) {
      if (stop && stop()) throw Error(ErrorCode::kInterrupted, "interrupted");
      if (progress) progress(static_cast<uint64_t>(w * window + at), static_cast<uint64_t>(n_windows * window));
      const bool is_scored = at >= first_scored;
      const int64_t n =
          is_scored ? std::min(scored_chunk, window - 1 - at) : std::min(engine.chunk_tokens(), first_scored - at);
      const StepPart part{&sequence,
                          std::span<const int32_t>(ids).subspan(static_cast<size_t>(at), static_cast<size_t>(n)),
                          is_scored ? Outputs::kAll : Outputs::kNone};
      if (engine.step({&part, 1}) == StepStatus::kNoPages)
        throw Error(ErrorCode::kRuntime,
                    "perplexity: no page left in the cache; expected room for " + std::to_string(window) + " tokens");
      for (int64_t i = 0; is_scored && i < n; ++i) {
        const std::span<const float> logits = engine.logits(i);
        const double lse = log_sum_exp(logits);
        if (!std::isfinite(lse))
          throw Error(ErrorCode::kRuntime, "perplexity: the model gave NaN or infinity at position " +
                                               std::to_string(at + i) + " of window " + std::to_string(w));
        const int32_t token = part_of_text[static_cast<size_t>(at + i + 1)];
        scores.nll.push_back(lse - static_cast<double>(logits[static_cast<size_t>(token)]));
        if (reference) scores.compare(logits, lse, reference->row(static_cast<int64_t>(scores.nll.size()) - 1), token);
        if (saved) saved->add(logits);
      }
      at += n;
    }
  }
  if (progress) progress(static_cast<uint64_t>(n_windows * window), static_cast<uint64_t>(n_windows * window));
  if (saved) saved->commit();

  PerplexityReport report;
  report.window = window;
  report.n_windows = n_windows;
  report.n_scored = static_cast<int64_t>(scores.nll.size());
  const MeanAndError nll = mean_and_error(scores.nll);
  report.perplexity = std::exp(nll.mean);
  report.error = report.perplexity * nll.error;
  if (reference) {
    reference->check_intact();
    const double n = static_cast<double>(report.n_scored);
    PerplexityReport::Comparison comparison;
    comparison.kl = Distribution::of(scores.kl);
    comparison.same_top = static_cast<double>(scores.n_same_top) / n;
    comparison.same_top_error = std::sqrt(comparison.same_top * (1 - comparison.same_top) / std::max(1.0, n - 1));
    comparison.reference_perplexity = std::exp(mean_and_error(scores.reference_nll).mean);
    comparison.rms_probability_change = std::sqrt(scores.squared_changes / n);
    report.comparison = comparison;
  }
  return report;
}

}  // namespace fathom
