#include "engine/importance.h"

#include <algorithm>
#include <cmath>

#include "core/error.h"
#include "engine/text_windows.h"

namespace fathom {
namespace {

class SquaresObserver final : public WeightObserver {
 public:
  void inputs(const MatrixInputs& seen) override {
    if (seen.tensor == "output.weight" || seen.tensor == "token_embd.weight") return;
    InputSquares& squares = tensors[seen.tensor];
    if (squares.width == 0) {
      squares.width = seen.width;
      squares.sums.resize(static_cast<size_t>(seen.n_matrices * seen.width));
      squares.counts.resize(static_cast<size_t>(seen.n_matrices));
    }
    double* sums = squares.sums.data() + seen.matrix * seen.width;
    for (int64_t r = 0; r < seen.n_rows; ++r) {
      const float* row = seen.row(r);
      for (int64_t c = 0; c < seen.width; ++c) sums[c] += static_cast<double>(row[c]) * static_cast<double>(row[c]);
    }
    squares.counts[static_cast<size_t>(seen.matrix)] += seen.n_rows;
  }
  void expert_outputs(const ExpertOutputs&) override {}

  void check() const {
    for (const auto& [name, squares] : tensors) {
      for (const double sum : squares.sums) {
        if (!std::isfinite(sum))
          throw Error(ErrorCode::kRuntime, "imatrix: the inputs of " + name +
                                               " are not finite; expected a model and a text that give numbers");
      }
    }
  }

  std::map<std::string, InputSquares> tensors;
};

class ExpertObserver final : public WeightObserver {
 public:
  void inputs(const MatrixInputs&) override {}
  void expert_outputs(const ExpertOutputs& seen) override {
    std::vector<double>& sums = sums_[seen.tensor];
    std::vector<int64_t>& counts = counts_[seen.tensor];
    sums.resize(static_cast<size_t>(seen.n_experts));
    counts.resize(static_cast<size_t>(seen.n_experts));
    const auto e = static_cast<size_t>(seen.expert);
    for (int64_t r = 0; r < seen.n_rows; ++r) {
      double squares = 0;
      for (int64_t c = 0; c < seen.width; ++c)
        squares +=
            static_cast<double>(seen.rows[r * seen.width + c]) * static_cast<double>(seen.rows[r * seen.width + c]);
      sums[e] += static_cast<double>(seen.router_weights[r]) * std::sqrt(squares);
    }
    counts[e] += seen.n_rows;
  }

  void move_to(ExpertReport& report) {
    for (auto& [name, sums] : sums_) {
      const std::vector<int64_t>& counts = counts_[name];
      for (size_t e = 0; e < sums.size(); ++e) {
        sums[e] = counts[e] == 0 ? 0 : sums[e] / static_cast<double>(counts[e]);
        if (!std::isfinite(sums[e]))
          throw Error(ErrorCode::kRuntime, "prune: the outputs of " + name +
                                               " are not finite; expected a model and a text that give numbers");
      }
    }
    report.saliency = std::move(sums_);
    report.n_chosen = std::move(counts_);
  }

 private:
  std::map<std::string, std::vector<double>> sums_;
  std::map<std::string, std::vector<int64_t>> counts_;
};

/// Tells the observer nothing more, however reading ends.
class Observed {
 public:
  Observed(Engine& engine, WeightObserver& observer) : engine_(engine) { engine_.observe(&observer); }
  ~Observed() { engine_.observe(nullptr); }
  Observed(const Observed&) = delete;
  Observed& operator=(const Observed&) = delete;

 private:
  Engine& engine_;
};

Reading read_text(Engine& engine, std::span<const int32_t> tokens, const ReadingOptions& options,
                  const Progress& progress, const std::function<bool()>& stop) {
  const int64_t window = options.window, n_tokens = static_cast<int64_t>(tokens.size());
  check_windows(engine, window, n_tokens);
  Reading reading;
  reading.n_windows = std::min(n_tokens / window, options.max_windows.value_or(n_tokens / window));
  // All tokens must come out of the last layer, or its experts see one of them only: steps of at most 32 MiB of logits.
  const int64_t chunk = std::clamp<int64_t>(
      (int64_t{32} << 20) / (engine.info().vocab_size * static_cast<int64_t>(sizeof(float))), 1, engine.chunk_tokens());
  const Vocab& vocab = engine.tokenizer().vocab();
  double nll = 0;
  std::vector<int32_t> ids;
  for (int64_t w = 0; w < reading.n_windows; ++w) {
    const std::span<const int32_t> text = tokens.subspan(static_cast<size_t>(w * window), static_cast<size_t>(window));
    ids.assign(text.begin(), text.end());
    if (vocab.add_bos()) ids[0] = vocab.bos();
    Sequence sequence(engine.pool());
    for (int64_t at = 0; at < window;) {
      if (stop && stop()) throw Error(ErrorCode::kInterrupted, "interrupted");
      if (progress) progress(static_cast<uint64_t>(w * window + at), static_cast<uint64_t>(reading.n_windows * window));
      const int64_t n = std::min(chunk, window - at);
      const StepPart part{&sequence,
                          std::span<const int32_t>(ids).subspan(static_cast<size_t>(at), static_cast<size_t>(n)),
                          Outputs::kAll};
      if (engine.step({&part, 1}, {}, engine.has_mtp()) == StepStatus::kNoPages)
        throw Error(ErrorCode::kRuntime,
                    "no page left in the cache; expected room for " + std::to_string(window) + " tokens");
      for (int64_t i = 0; i < n && at + i + 1 < window; ++i) {
        const std::span<const float> logits = engine.logits(i);
        const int32_t next = ids[static_cast<size_t>(at + i + 1)];
        nll += log_sum_exp(logits) - static_cast<double>(logits[static_cast<size_t>(next)]);
      }
      const int64_t n_next = std::min(n, window - at - 1);  // the MTP block's inputs: the last token has none after it
      if (engine.has_mtp() && n_next > 0) {
        const DraftPart after{
            &sequence, at, 0,
            std::span<const int32_t>(ids).subspan(static_cast<size_t>(at + 1), static_cast<size_t>(n_next)), n_next};
        engine.draft({&after, 1});
      }
      at += n;
    }
  }
  if (progress)
    progress(static_cast<uint64_t>(reading.n_windows * window), static_cast<uint64_t>(reading.n_windows * window));
  reading.perplexity = std::exp(nll / static_cast<double>(reading.n_windows * (window - 1)));
  return reading;
}

}  // namespace

ImportanceReport measure_importance(Engine& engine, std::span<const int32_t> tokens, const ReadingOptions& options,
                                    const Progress& progress, const std::function<bool()>& stop) {
  SquaresObserver observer;
  ImportanceReport report;
  {
    const Observed observed(engine, observer);
    static_cast<Reading&>(report) = read_text(engine, tokens, options, progress, stop);
  }
  observer.check();
  report.tensors = std::move(observer.tensors);
  return report;
}

ExpertReport measure_experts(Engine& engine, std::span<const int32_t> tokens, const ReadingOptions& options,
                             const Progress& progress, const std::function<bool()>& stop) {
  ExpertObserver observer;
  ExpertReport report;
  {
    const Observed observed(engine, observer);
    static_cast<Reading&>(report) = read_text(engine, tokens, options, progress, stop);
  }
  observer.move_to(report);
  return report;
}

}  // namespace fathom
