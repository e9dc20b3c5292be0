// Latent attention: sequences that bring few tokens in the absorbed form, straight over the latents; sequences that
// bring many in the expanded form, keys and values made a stretch of the cache at a time.
//
// Query rows of the absorbed form are (token, head) pairs of one sequence, since all heads look at the same rows.
// Tokens that choose their rows are always absorbed, each in blocks of its own: rows expanded for one token would serve
// no other. Those that see no more than they may have see the same rows with or without a choice, and get the same
// bits.
#include "cpu/attention.h"
#include "cpu/fast/latent_projections.h"
#include "cpu/fast/paged_attention.h"

namespace fathom::cpu::fast {
namespace {

/// Keys expanded before queries meet them: a workspace of 512 * H * (N + R + V) elements, 5 MB for V2-Lite's 16 heads
/// and 42 MB for V3's 128, while a stretch gives the threads 8 jobs for each head.
constexpr int64_t kStretch = 4 * kSliceRows;
/// Keys of one expansion job.
constexpr int64_t kExpandRows = 64;

struct Dims {
  int64_t heads, nope, rope, value, latent;
  explicit Dims(const LatentAttentionArgs& a)
      : heads(a.n_heads()), nope(a.nope_dim()), rope(a.rope_dim()), value(a.value_dim()), latent(a.latent_dim()) {}
  int64_t query() const { return nope + rope; }
  int64_t row() const { return latent + rope; }
};

int64_t div_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

/// Calls fn(first, n) for the tokens of a run, so many at a time as the projections take.
template <typename Fn> void for_each_group(const SequenceRun& run, Fn&& fn) {
  for (int64_t done = 0; done < run.n_tokens; done += LatentProjections::kTokens) {
    fn(run.first_token + done, std::min(LatentProjections::kTokens, run.n_tokens - done));
  }
}

/// Tokens of a run that are evaluated alike.
struct Part {
  SequenceRun run;
  bool chooses;
};

/// The tokens of a run that see all rows up to their own.
SequenceRun dense_tokens(const LatentAttentionArgs& a, const SequenceRun& run) {
  if (!a.chosen) return run;
  SequenceRun dense = run;
  dense.n_tokens -= choosing_tokens(a.step, run, a.chosen.dim(1), 1).n_tokens;
  if (dense.n_tokens > 0) dense.n_visible = a.step.positions.as<int32_t>()[run.first_token + dense.n_tokens - 1] + 1;
  return dense;
}

/// Calls fn(part) for the tokens in the absorbed form.
template <typename Fn> void for_each_absorbed(const LatentAttentionArgs& a, Fn&& fn) {
  for_each_run(a.step, [&](const SequenceRun& run) {
    const SequenceRun dense = dense_tokens(a, run);
    if (dense.n_tokens > 0 && !use_expanded_form(a, run)) fn(Part{dense, false});
    if (dense.n_tokens < run.n_tokens) fn(Part{choosing_tokens(a.step, run, a.chosen.dim(1), 1), true});
  });
}

/// Calls fn(run) for the tokens in the expanded form.
template <typename Fn> void for_each_expanded(const LatentAttentionArgs& a, Fn&& fn) {
  for_each_run(a.step, [&](const SequenceRun& run) {
    const SequenceRun dense = dense_tokens(a, run);
    if (dense.n_tokens > 0 && use_expanded_form(a, run)) fn(dense);
  });
}

// ---- absorbed ----

class Absorbed {
 public:
  Absorbed(const LatentAttentionArgs& a, const MatmulKernels& matmul, int n_threads, std::byte* shared_base,
           std::byte* own_base)
      : a_(a),
        d_(a),
        kernels_(absorbed_attention_kernels(matmul.isa, a.cache.dtype, d_.heads, d_.row(), d_.latent)),
        shared_(shared_base),
        own_(own_base),
        n_blocks_(count_blocks(a, kernels_.lanes)),
        attention_(kernels_, a.cache, a.step, a.chosen, d_.row(), d_.latent, n_blocks_, n_threads, shared_, own_),
        projections_(a, matmul, n_threads, own_),
        latents_(shared_.take<float>(n_blocks_ > 0 ? a.q.dim(0) * d_.heads * d_.latent : 0)),
        part_(own_.take<float>(LatentProjections::kTokens * projections_.part_stride())),
        query_(own_.take<float>(d_.row())),
        words_(own_.take<uint32_t>(std::max(d_.row(), word_count(kernels_, d_.row())))) {}

  Workspace workspace() const { return {shared_.used(), own_.used()}; }

  void run(Worker& worker) {
    if (n_blocks_ == 0) return;
    const int64_t n_parts = d_.latent / projections_.part_columns();
    const int64_t n_jobs = d_.heads * n_parts;
    worker.share_ahead(n_jobs, 1, [&](int64_t job, int64_t end, int64_t next_piece) {
      for (; job < end; ++job) {
        const int64_t next = job + 1 < end ? job + 1 : next_piece,
                      next_begin = next % n_parts * projections_.part_columns();
        make_queries(job / n_parts, job % n_parts,
                     next < n_jobs ? projections_.query_weights(next / n_parts, next_begin) : nullptr);
      }
    });
    if (worker.index() == 0) fill_blocks();
    worker.barrier();
    attention_.run(worker);
    // Whole heads where there are enough of them, so that activations are quantized once.
    const int64_t n_value_parts = d_.heads >= 2 * worker.count() ? 1 : 2, part = div_up(d_.value, n_value_parts);
    const int64_t n_value_jobs = d_.heads * n_value_parts;
    worker.share_ahead(n_value_jobs, 1, [&](int64_t job, int64_t jobs_end, int64_t next_piece) {
      for (; job < jobs_end; ++job) {
        const int64_t next = job + 1 < jobs_end ? job + 1 : next_piece;
        const int64_t begin = job % n_value_parts * part, end = std::min(begin + part, d_.value);
        const std::byte* next_weights =
            next < n_value_jobs ? projections_.value_weights(next / n_value_parts, next % n_value_parts * part)
                                : nullptr;
        for_each_absorbed(a_, [&](const Part& part) {
          for_each_group(part.run, [&](int64_t first, int64_t n) {
            projections_.values(job / n_value_parts, begin, end, latents_, first, n, next_weights);
          });
        });
      }
    });
    worker.barrier();
  }

 private:
  /// Query rows from one token's first to the next one's: whole blocks where tokens choose.
  static int64_t rows_a_token(const LatentAttentionArgs& a, const Part& part, int64_t lanes) {
    return part.chooses ? div_up(a.n_heads(), lanes) * lanes : a.n_heads();
  }

  static int64_t count_blocks(const LatentAttentionArgs& a, int64_t lanes) {
    int64_t n = 0;
    for_each_absorbed(a,
                      [&](const Part& part) { n += div_up(part.run.n_tokens * rows_a_token(a, part, lanes), lanes); });
    return n;
  }

  /// Calls fn(part, its first block, its rows_a_token).
  template <typename Fn> void each_part(Fn&& fn) const {
    int64_t block = 0;
    for_each_absorbed(a_, [&](const Part& part) {
      const int64_t token_rows = rows_a_token(a_, part, kernels_.lanes);
      fn(part, block, token_rows);
      block += div_up(part.run.n_tokens * token_rows, kernels_.lanes);
    });
  }

  /// Part `part` of every token's query at head h: W_UK^T q_nope, and after the last part q_pe. `next`: the weights of
  /// this thread's next part, or null.
  void make_queries(int64_t h, int64_t part, const std::byte* next) {
    const int64_t columns = projections_.part_columns(), begin = part * columns, lanes = kernels_.lanes;
    const bool last = begin + columns == d_.latent;
    const int64_t n = columns + (last ? d_.rope : 0);
    each_part([&](const Part& part, int64_t block, int64_t token_rows) {
      for_each_group(part.run, [&](int64_t first, int64_t n_tokens) {
        projections_.latent_queries(h, begin, first, n_tokens, part_, next);
        for (int64_t i = 0; i < n_tokens; ++i) {
          const int64_t t = first + i, row = (t - part.run.first_token) * token_rows + h;
          std::copy_n(part_ + i * projections_.part_stride(), columns, query_);
          if (last) std::copy_n(a_.q.row_as<float>(t) + h * d_.query() + d_.nope, d_.rope, query_ + columns);
          kernels_.pack_words(query_, a_.scale, words_, n);
          spread_words(words_, word_count(kernels_, n), row % lanes, lanes,
                       attention_.queries(block + row / lanes) + word_count(kernels_, begin) * lanes);
        }
      });
    });
  }

  void fill_blocks() {
    const int64_t lanes = kernels_.lanes;
    each_part([&](const Part& part, int64_t block, int64_t token_rows) {
      const int64_t n_rows = part.run.n_tokens * token_rows;
      for (int64_t row = 0; row < n_rows; row += lanes, ++block) {
        const int64_t token = part.run.first_token + row / token_rows, head = row % token_rows;
        const int64_t n_lanes = std::min(lanes, part.chooses ? d_.heads - head : n_rows - row);
        const auto sees = [&](int64_t r) {
          const int32_t position = a_.step.positions.as<int32_t>()[part.run.first_token + r / token_rows];
          return part.chooses ? static_cast<int32_t>(a_.chosen.dim(1)) : position + 1;
        };
        for (int64_t i = 0; i < lanes; ++i) attention_.visible(block)[i] = sees(row + std::min(i, n_lanes - 1));
        attention_.blocks()[block] = {attention_.queries(block),
                                      attention_.visible(block),
                                      latents_ + (token * d_.heads + head) * d_.latent,
                                      d_.latent,
                                      part.run.sequence,
                                      sees(row + n_lanes - 1),
                                      n_lanes,
                                      0,
                                      0,
                                      part.chooses ? a_.chosen.row_as<int32_t>(token) : nullptr};
      }
    });
  }

  const LatentAttentionArgs& a_;
  const Dims d_;
  const AttentionKernels& kernels_;
  Carver shared_, own_;
  const int64_t n_blocks_;
  PagedAttention attention_;
  LatentProjections projections_;
  float* latents_;  ///< [T][H][C] weighted sums of the latents
  float* part_;     ///< [kTokens][part_stride]
  float* query_;    ///< [C + R]
  uint32_t* words_;
};

// ---- expanded ----

class Expanded {
 public:
  Expanded(const LatentAttentionArgs& a, const MatmulKernels& matmul, std::byte* shared_base, std::byte* own_base)
      : a_(a),
        d_(a),
        kernels_(attention_kernels(matmul.isa, a.cache.dtype)),
        shared_(shared_base),
        own_(own_base),
        longest_run_(longest_run(a)),
        used_(longest_run_ > 0),
        key_words_(word_count(kernels_, d_.query())),
        row_words_(key_words_ + word_count(kernels_, d_.value)),
        n_panels_(div_up(d_.nope + d_.value, kernels_.lanes)),
        n_steps_(word_count(kernels_, d_.latent)),
        max_blocks_(div_up(longest_run_, kernels_.lanes) * d_.heads),
        latents_(kernels_, a.cache, a.step, d_.latent, 0, own_),
        projections_(a, matmul, 1, own_),
        scratch_(kernels_, own_) {
    weights_ = shared_.take<uint32_t>(used_ ? d_.heads * n_panels_ * n_steps_ * kernels_.lanes : 0);
    rows_ = shared_.take<uint32_t>(used_ ? d_.heads * kStretch * row_words_ : 0);
    state_ = shared_.take<float>(max_blocks_ * 2 * kernels_.lanes);
    queries_ = shared_.take<uint32_t>(max_blocks_ * key_words_ * kernels_.lanes);
    product_ = own_.take<float>(kExpandRows * n_panels_ * kernels_.lanes);
    key_ = own_.take<float>(d_.query() + kSpanSlack);
    words_ = own_.take<uint32_t>(key_words_);
    visible_ = own_.take<int32_t>(kernels_.lanes);
    partial_ = own_.take<float>(PartialResult::floats(kernels_, d_.value));
    pointers_ = own_.take<RowPointers>(1);
    zeros_ = own_.take<std::byte>(4 * (d_.value + kSpanSlack));
  }

  Workspace workspace() const { return used_ ? Workspace{shared_.used(), own_.used()} : Workspace{}; }

  void run(Worker& worker) {
    if (!used_) return;
    latents_.prepare();
    std::fill_n(zeros_, 4 * (d_.value + kSpanSlack), std::byte{0});
    worker.share(d_.heads, 1, [&](int64_t h, int64_t) { projections_.pack_head(h, kernels_, head_weights(h)); });
    worker.barrier();
    for_each_expanded(a_, [&](const SequenceRun& run) {
      const int64_t n_blocks = div_up(run.n_tokens, kernels_.lanes);
      const auto chunk = [&](int64_t n_jobs) { return std::clamp<int64_t>(n_jobs / (8 * worker.count()), 1, 8); };
      for (int64_t first = 0; first < run.n_visible; first += kStretch) {
        const int64_t n = std::min(kStretch, run.n_visible - first), n_expand = d_.heads * div_up(n, kExpandRows);
        const int64_t n_jobs = n_expand + (first == 0 ? d_.heads * n_blocks : 0);
        worker.share(n_jobs, chunk(n_jobs), [&](int64_t job, int64_t end) {
          for (; job < std::min(end, n_expand);
               ++job) {  // heads of the same rows are neighbours: conversions are shared
            const int64_t begin = job / d_.heads * kExpandRows;
            expand(run, job % d_.heads, first, begin, std::min(kExpandRows, n - begin));
          }
          for (; job < end; ++job) pack_queries(run, (job - n_expand) / n_blocks, (job - n_expand) % n_blocks);
        });
        worker.barrier();
        worker.share(d_.heads * n_blocks, chunk(d_.heads * n_blocks), [&](int64_t job, int64_t end) {
          for (; job < end; ++job) attend(run, job / n_blocks, job % n_blocks, first, n);
        });
        worker.barrier();
      }
    });
  }

 private:
  static int64_t longest_run(const LatentAttentionArgs& a) {
    int64_t n = 0;
    for_each_expanded(a, [&](const SequenceRun& run) { n = std::max(n, run.n_tokens); });
    return n;
  }

  uint32_t* head_weights(int64_t h) const { return weights_ + h * n_panels_ * n_steps_ * kernels_.lanes; }
  /// Words of an expanded row: its key [N + R], then its value [V].
  uint32_t* expanded_row(int64_t h, int64_t i) const { return rows_ + (h * kStretch + i) * row_words_; }

  /// Keys and values of head h for rows first + begin .. of a sequence, into rows begin .. of the stretch.
  void expand(const SequenceRun& run, int64_t h, int64_t first, int64_t begin, int64_t n) {
    const RowPointers& latents = latents_.load(run.sequence, first + begin, n, 0, 0);
    const int64_t width = n_panels_ * kernels_.lanes;
    multiply_rows(kernels_, latents, n, head_weights(h), n_panels_, n_steps_, product_, width, kernels_.lanes);
    for (int64_t i = 0; i < n; ++i) {
      const std::byte* cached = cached_row(a_.cache, a_.step, run.sequence, first + begin + i);
      uint32_t* row = expanded_row(h, begin + i);
      decode_span(kernels_, a_.cache.dtype, cached, d_.latent, key_ + d_.nope, d_.rope);
      std::copy_n(product_ + i * width, d_.nope, key_);
      kernels_.pack_words(key_, 1.0F, row, d_.query());
      kernels_.pack_words(product_ + i * width + d_.nope, 1.0F, row + key_words_, d_.value);
    }
  }

  uint32_t* block_queries(const SequenceRun& run, int64_t h, int64_t block) const {
    return queries_ + (h * div_up(run.n_tokens, kernels_.lanes) + block) * key_words_ * kernels_.lanes;
  }

  void pack_queries(const SequenceRun& run, int64_t h, int64_t block) {
    const int64_t token = run.first_token + block * kernels_.lanes;
    const int64_t n_lanes = std::min<int64_t>(kernels_.lanes, run.first_token + run.n_tokens - token);
    for (int64_t i = 0; i < n_lanes; ++i) {
      kernels_.pack_words(a_.q.row_as<float>(token + i) + h * d_.query(), a_.scale, words_, d_.query());
      spread_words(words_, key_words_, i, kernels_.lanes, block_queries(run, h, block));
    }
  }

  /// Block `block` of the run's tokens at head h against the n expanded rows that begin with cached row `first`.
  void attend(const SequenceRun& run, int64_t h, int64_t block, int64_t first, int64_t n) {
    const int64_t lanes = kernels_.lanes, token = run.first_token + block * lanes;
    const int64_t n_lanes = std::min(lanes, run.first_token + run.n_tokens - token);
    const int32_t* positions = a_.step.positions.as<int32_t>() + token;
    const int64_t n_visible = positions[n_lanes - 1] + 1;
    if (n_visible <= first) return;
    for (int64_t i = 0; i < lanes; ++i) visible_[i] = positions[std::min(i, n_lanes - 1)] + 1;
    float* out = a_.out.row_as<float>(token) + h * d_.value;
    const QueryBlock query{
        block_queries(run, h, block), visible_, out, a_.out.dim(1), run.sequence, n_visible, n_lanes, 0, 0};
    const PartialResult part(kernels_, d_.value, partial_);
    float* state = state_ + (h * div_up(run.n_tokens, lanes) + block) * 2 * lanes;
    for (int64_t begin = 0; begin < n && first + begin < n_visible; begin += kSliceRows) {
      const int64_t n_rows = std::min({kSliceRows, n - begin, n_visible - first - begin});
      for (int64_t i = 0; i < n_rows; ++i) {
        const uint32_t* row = expanded_row(h, begin + i);
        pointers_->keys[i] = reinterpret_cast<const std::byte*>(row);
        pointers_->values[i] = reinterpret_cast<const std::byte*>(row + key_words_);
      }
      pointers_->values[n_rows] = zeros_;
      pointers_->keys_ahead = pointers_->values_ahead = nullptr;
      attend_slice(kernels_, query, *pointers_, first + begin, n_rows, d_.query(), d_.value, scratch_, part);
      kernels_.fold({state, state + lanes, out, a_.out.dim(1), part.max, part.sum, part.out, part.out_stride, d_.value,
                     n_lanes, first + begin == 0, first + begin + n_rows == n_visible});
    }
  }

  const LatentAttentionArgs& a_;
  const Dims d_;
  const AttentionKernels& kernels_;
  Carver shared_, own_;
  const int64_t longest_run_;
  const bool used_;
  const int64_t key_words_, row_words_, n_panels_, n_steps_, max_blocks_;
  CachedRows latents_;
  LatentProjections projections_;
  SliceScratch scratch_;
  uint32_t* weights_;  ///< [H][panels][C steps][lanes] W_UK and W_UV as right operands
  uint32_t* rows_;     ///< [H][kStretch][row_words]
  float* state_;       ///< [blocks][2][lanes] running maximum and sum
  uint32_t* queries_;  ///< [H][blocks of a run][N + R words][lanes]
  float* product_;     ///< [kExpandRows][panels * lanes]
  float* key_;         ///< [N + R]
  uint32_t* words_;
  int32_t* visible_;
  float* partial_;
  RowPointers* pointers_;
  std::byte* zeros_;
};

}  // namespace

Workspace latent_attention_workspace(const LatentAttentionArgs& a, const MatmulKernels& kernels, int n_threads) {
  const Workspace absorbed = Absorbed(a, kernels, n_threads, nullptr, nullptr).workspace(),
                  expanded = Expanded(a, kernels, nullptr, nullptr).workspace();
  return {std::max(absorbed.shared_bytes, expanded.shared_bytes),
          std::max(absorbed.per_thread_bytes, expanded.per_thread_bytes)};
}

void latent_attention(const LatentAttentionArgs& a, OpContext& c) {
  Absorbed(a, *c.matmul, c.worker.count(), c.shared, c.own).run(c.worker);
  Expanded(a, *c.matmul, c.shared, c.own).run(c.worker);
}

}  // namespace fathom::cpu::fast
