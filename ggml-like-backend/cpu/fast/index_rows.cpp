// The lightning indexer: scores of all cached rows for groups of tokens, then every token's best rows.
//
// Scores are sums of products of floats, whatever the cache holds: the choice is a comparison of sums that lie close
// together, and with operands rounded to bf16 one in some hundred rows would be another.
#include <algorithm>
#include <bit>
#include <numeric>

#include "cpu/fast/fast.h"
#include "cpu/fast/paged_attention.h"

namespace fathom::cpu::fast {
namespace {

/// Tokens that share a conversion of cached rows.
constexpr int64_t kGroupTokens = 8;
/// Scores kept at a time: of 128 tokens at 128K rows. More tokens take more waves.
constexpr int64_t kScoreBytes = int64_t{64} << 20;

/// Order of floats as that of integers; the two zeros are one.
uint32_t ordered(float x) {
  const auto bits = std::bit_cast<uint32_t>(x + 0.0F);
  return (bits >> 31) != 0 ? ~bits : bits | 0x80000000U;
}

constexpr int kDigitBits = 11;

/// The k of n > k rows with the highest scores, rising, of equal ones the lower. The k-th highest score is found digit
/// by digit from the highest down, among the keys that agree with it so far: three passes, the last two over few keys.
/// keys: n of them, counts: 2^kDigitBits.
void choose_highest(const float* scores, int64_t n, int64_t k, int32_t* chosen, uint32_t* keys, uint32_t* counts) {
  for (int64_t i = 0; i < n; ++i) keys[i] = ordered(scores[i]);
  uint32_t threshold = 0;
  int64_t n_keys = n, n_equal = k;  // how many of the keys are wanted; in the end of those equal to the threshold
  for (const int shift : {21, 10, 0}) {
    const uint32_t mask = (1U << (shift == 0 ? 10 : kDigitBits)) - 1;
    std::fill_n(counts, mask + 1, 0);
    for (int64_t i = 0; i < n_keys; ++i) ++counts[keys[i] >> shift & mask];
    uint32_t digit = mask;
    while (counts[digit] < n_equal) n_equal -= counts[digit--];
    threshold |= digit << shift;
    int64_t n_agree = 0;
    for (int64_t i = 0; i < n_keys; ++i) {
      const uint32_t key = keys[i];
      keys[n_agree] = key;
      n_agree += (key >> shift & mask) == digit ? 1 : 0;
    }
    n_keys = n_agree;
  }
  int64_t n_chosen = 0;
  for (int64_t i = 0; n_chosen < k; ++i) {
    const uint32_t key = ordered(scores[i]);
    const bool is_equal = key == threshold && n_equal > 0;
    n_equal -= is_equal ? 1 : 0;
    chosen[n_chosen] = static_cast<int32_t>(i);
    n_chosen += key > threshold || is_equal ? 1 : 0;
  }
}

/// Neighbouring tokens of one sequence that have to choose.
struct Group {
  int64_t first_token, n_tokens, sequence;
  int64_t n_visible;  ///< rows that the last one sees
};

class IndexRows {
 public:
  IndexRows(const IndexRowsArgs& a, const MatmulKernels& matmul, std::byte* shared_base, std::byte* own_base)
      : a_(a),
        kernels_(float_attention_kernels(matmul.isa)),
        shared_(shared_base),
        own_(own_base),
        n_panels_((a.q.dim(1) + kernels_.lanes - 1) / kernels_.lanes),
        n_steps_(word_count(kernels_, a.q.dim(2))),
        most_rows_(deepest_context(a.step) / a.tokens_per_row),
        n_groups_(count_groups(a)),
        wave_groups_(std::clamp<int64_t>(kScoreBytes / (4 * kGroupTokens * std::max<int64_t>(most_rows_, 1)), 1,
                                         std::max<int64_t>(n_groups_, 1))),
        rows_(kernels_, a.cache, a.step, a.q.dim(2), 0, own_) {
    const int64_t wave_tokens = n_groups_ > 0 ? wave_groups_ * kGroupTokens : 0;
    groups_ = shared_.take<Group>(n_groups_);
    queries_ = shared_.take<uint32_t>(wave_tokens * query_words());
    head_weights_ = shared_.take<float>(wave_tokens * n_panels_ * kernels_.lanes);
    scores_ = shared_.take<float>(wave_tokens * most_rows_);
    words_ = own_.take<uint32_t>(n_steps_);
    products_ = own_.take<float>(kSliceRows * n_panels_ * kernels_.lanes);
    keys_ = own_.take<uint32_t>(most_rows_);
    counts_ = own_.take<uint32_t>(1 << kDigitBits);
  }

  Workspace workspace() const { return {shared_.used(), own_.used()}; }

  void run(Worker& worker) {
    if (worker.index() == 0) fill_groups();
    worker.share(a_.q.dim(0), 16, [&](int64_t t, int64_t end) {
      for (; t < end; ++t) take_all(t);
    });
    worker.barrier();
    rows_.prepare();
    for (int64_t wave = 0; wave < n_groups_; wave += wave_groups_) {
      const int64_t n = std::min(wave_groups_, n_groups_ - wave);
      each_token(worker, wave, n, [&](int64_t t, int64_t slot) { pack_query(t, slot); });
      worker.barrier();
      // Groups of a slice are neighbours: they find its rows in the processor's cache, and converted.
      const int64_t n_jobs = n * ((most_rows_ + kSliceRows - 1) / kSliceRows);
      worker.share(n_jobs, std::clamp<int64_t>(n_jobs / (8 * worker.count()), 1, 8), [&](int64_t job, int64_t end) {
        for (; job < end; ++job) score(groups_[wave + job % n], job % n * kGroupTokens, job / n * kSliceRows);
      });
      worker.barrier();
      each_token(worker, wave, n, [&](int64_t t, int64_t slot) {
        choose_highest(scores_ + slot * most_rows_, visible_rows(a_.step, t, a_.tokens_per_row), a_.chosen.dim(1),
                       a_.chosen.row_as<int32_t>(t), keys_, counts_);
      });
      worker.barrier();
    }
  }

 private:
  int64_t query_words() const { return n_panels_ * n_steps_ * kernels_.lanes; }

  /// Calls fn(run) for the tokens of every sequence that have to choose.
  template <typename Fn> static void each_choosing_run(const IndexRowsArgs& a, Fn&& fn) {
    for_each_run(a.step, [&](const SequenceRun& run) {
      const SequenceRun last = choosing_tokens(a.step, run, a.chosen.dim(1), a.tokens_per_row);
      if (last.n_tokens > 0) fn(last);
    });
  }

  static int64_t count_groups(const IndexRowsArgs& a) {
    int64_t n = 0;
    each_choosing_run(a, [&](const SequenceRun& run) { n += (run.n_tokens + kGroupTokens - 1) / kGroupTokens; });
    return n;
  }

  void fill_groups() {
    Group* group = groups_;
    each_choosing_run(a_, [&](const SequenceRun& run) {
      for (int64_t done = 0; done < run.n_tokens; done += kGroupTokens) {
        const int64_t first = run.first_token + done, n = std::min(kGroupTokens, run.n_tokens - done);
        *group++ = {first, n, run.sequence, visible_rows(a_.step, first + n - 1, a_.tokens_per_row)};
      }
    });
  }

  /// fn(token, its place in the wave) for the tokens of groups [wave, wave + n).
  template <typename Fn> void each_token(Worker& worker, int64_t wave, int64_t n, Fn&& fn) const {
    worker.share(n * kGroupTokens, 1, [&](int64_t slot, int64_t) {
      const Group& group = groups_[wave + slot / kGroupTokens];
      if (slot % kGroupTokens < group.n_tokens) fn(group.first_token + slot % kGroupTokens, slot);
    });
  }

  /// The choice of a token that sees no more rows than it may have.
  void take_all(int64_t t) const {
    const int64_t top_k = a_.chosen.dim(1), n_visible = visible_rows(a_.step, t, a_.tokens_per_row);
    if (n_visible > top_k) return;
    int32_t* chosen = a_.chosen.row_as<int32_t>(t);
    std::iota(chosen, chosen + n_visible, 0);
    std::fill(chosen + n_visible, chosen + top_k, -1);
  }

  /// Heads are lanes; those that fill up the last panel have zeros for weights.
  void pack_query(int64_t t, int64_t slot) {
    const int64_t n_heads = a_.q.dim(1), lanes = kernels_.lanes;
    uint32_t* queries = queries_ + slot * query_words();
    std::fill_n(queries + (n_panels_ - 1) * n_steps_ * lanes, n_steps_ * lanes, 0);
    for (int64_t h = 0; h < n_heads; ++h) {
      kernels_.pack_words(a_.q.row_as<float>(t) + h * a_.q.dim(2), 1.0F, words_, a_.q.dim(2));
      spread_words(words_, n_steps_, h % lanes, lanes, queries + h / lanes * n_steps_ * lanes);
    }
    float* weights = head_weights_ + slot * n_panels_ * lanes;
    std::copy_n(a_.head_weights.row_as<float>(t), n_heads, weights);
    std::fill(weights + n_heads, weights + n_panels_ * lanes, 0.0F);
  }

  /// Rows first .. first + kSliceRows for the tokens of a group, the first of which has place `slot` in the wave.
  void score(const Group& group, int64_t slot, int64_t first) {
    const int64_t n_rows = std::min(kSliceRows, group.n_visible - first);
    if (n_rows <= 0) return;
    const RowPointers& rows = rows_.load(group.sequence, first, n_rows, 0, 0);
    rows_.announce(group.sequence, first + kSliceRows, 0, 0);
    for (int64_t i = 0; i < group.n_tokens; ++i, ++slot) {
      const int64_t n = std::min(n_rows, visible_rows(a_.step, group.first_token + i, a_.tokens_per_row) - first);
      if (n <= 0) continue;
      multiply_rows(kernels_, rows, n, queries_ + slot * query_words(), n_panels_, n_steps_, products_,
                    n_panels_ * kernels_.lanes, kernels_.lanes);
      kernels_.weigh_heads({products_, n, n_panels_, head_weights_ + slot * n_panels_ * kernels_.lanes,
                            scores_ + slot * most_rows_ + first});
    }
  }

  const IndexRowsArgs& a_;
  const AttentionKernels& kernels_;
  Carver shared_, own_;
  const int64_t n_panels_, n_steps_;
  const int64_t most_rows_;  ///< that any token sees
  const int64_t n_groups_, wave_groups_;
  CachedRows rows_;
  Group* groups_;
  uint32_t* queries_;    ///< [tokens of a wave][panels][steps][lanes]
  float* head_weights_;  ///< [tokens of a wave][panels][lanes]
  float* scores_;        ///< [tokens of a wave][most_rows]
  uint32_t* words_;      ///< one head's query
  float* products_;      ///< [kSliceRows][panels][lanes]
  uint32_t* keys_;       ///< [most_rows]
  uint32_t* counts_;
};

}  // namespace

Workspace index_rows_workspace(const IndexRowsArgs& a, const MatmulKernels& kernels) {
  return IndexRows(a, kernels, nullptr, nullptr).workspace();
}

void index_rows(const IndexRowsArgs& a, OpContext& c) { IndexRows(a, *c.matmul, c.shared, c.own).run(c.worker); }

}  // namespace fathom::cpu::fast
