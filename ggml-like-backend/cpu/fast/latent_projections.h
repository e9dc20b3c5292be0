// W_UK and W_UV of one head out of either form the file has them in.
#pragma once

#include "cpu/fast/attention_isa.h"
#include "cpu/fast/matmul_tasks.h"
#include "cpu/op_context.h"

namespace fathom::cpu::fast {

/// Products of one head's projections with a few tokens' vectors. One for each thread.
class LatentProjections {
 public:
  /// Tokens that one call takes at most.
  static constexpr int64_t kTokens = 64;

  LatentProjections(const LatentAttentionArgs& a, const MatmulKernels& matmul, int n_threads, Carver& own);

  /// Columns of the latent that one job of latent_queries makes: whole blocks of every format. All of them where there
  /// are heads enough for all threads.
  int64_t part_columns() const { return part_columns_; }
  /// Floats of a row of latent_queries' result.
  int64_t part_stride() const { return part_columns_ + kSlack; }
  /// Where the weights of such a job begin.
  const std::byte* query_weights(int64_t h, int64_t begin) const;
  /// out[i, :] = (W_UK^T q_nope)[begin .. begin + part_columns()) of token first + i at head h, for n <= kTokens
  /// tokens; rows of part_stride() floats. `next`: the weights this thread reads next, or null.
  void latent_queries(int64_t h, int64_t begin, int64_t first, int64_t n, float* out, const std::byte* next);

  /// Where the weights of values `begin` on begin.
  const std::byte* value_weights(int64_t h, int64_t begin) const { return value_rows(h).row(begin); }
  /// out row (token) of head h, values [begin, end): W_UV times the latents of n tokens (rows first .. in `latents`
  /// [T][H][C]). `next`: the weights this thread reads next, or null.
  void values(int64_t h, int64_t begin, int64_t end, const float* latents, int64_t first, int64_t n,
              const std::byte* next);

  /// Both projections of head h as the right operand [C][N + V] of AttentionKernels::multiply: panels of `lanes`
  /// columns.
  void pack_head(int64_t h, const AttentionKernels& k, uint32_t* panels);

 private:
  static constexpr int64_t kSlack = 16;  ///< results come in whole vectors
  /// Rows of W_UK that are decoded together: for one tile of tokens so few that 512 columns of them stay in the
  /// first-level cache until they are multiplied, for more as many as make long sums; those stay in the second.
  static constexpr int64_t kDecodedRows = 8, kDecodedRowsOfMany = 64;
  static constexpr int64_t kManyTokens = 16;

  /// Products of `rows` [n_rows, k] with float vectors: int8 activations where the file's type has such a kernel.
  void multiply(const Tensor& rows, int64_t begin, int64_t end, const float* const* x, int64_t n, float* const* y,
                const std::byte* next);
  Tensor value_rows(int64_t h) const;

  const LatentAttentionArgs& a_;
  const MatmulKernels& matmul_;
  const AttentionKernels& floats_;
  const int64_t n_heads_, nope_dim_, value_dim_, latent_dim_;
  const int64_t part_columns_;
  float* decoded_;  ///< weights: [kDecodedRowsOfMany][part] panels, or rows of a type without a kernel
  float* queries_;  ///< [kTokens][query stride] parts of queries beside each other
  float* row_;      ///< one decoded row
  uint32_t* words_;
  std::byte* acts_;  ///< [kTokens] activations
  size_t act_bytes_;
};

}  // namespace fathom::cpu::fast
