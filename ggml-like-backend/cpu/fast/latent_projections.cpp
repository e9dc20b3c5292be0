#include "cpu/fast/latent_projections.h"

#include <algorithm>
#include <cstring>

#include "cpu/fast/paged_attention.h"

namespace fathom::cpu::fast {
namespace {

/// What a product with this weight runs on: floats decoded before where the type has no kernel.
DType kernel_type(const MatmulKernels& matmul, DType weight) { return matmul.supports(weight) ? weight : DType::kF32; }

}  // namespace

LatentProjections::LatentProjections(const LatentAttentionArgs& a, const MatmulKernels& matmul, int n_threads,
                                     Carver& own)
    : a_(a),
      matmul_(matmul),
      floats_(float_attention_kernels(matmul.isa)),
      n_heads_(a.n_heads()),
      nope_dim_(a.nope_dim()),
      value_dim_(a.value_dim()),
      latent_dim_(a.latent_dim()),
      part_columns_(n_heads_ < 2 * n_threads && latent_dim_ > 256 && latent_dim_ % 256 == 0 ? 256 : latent_dim_) {
  const DType k_type = a.kv_b ? a.kv_b.dtype : a.k_b.dtype, v_type = a.kv_b ? a.kv_b.dtype : a.v_b.dtype;
  act_bytes_ = std::max(matmul.act_row_bytes(kernel_type(matmul, v_type), latent_dim_),
                        a.kv_b ? 0 : matmul.act_row_bytes(kernel_type(matmul, k_type), nope_dim_));
  decoded_ =
      own.take<float>(std::max(kDecodedRowsOfMany * part_stride(), std::max(value_dim_, nope_dim_) * latent_dim_));
  queries_ = own.take<float>(a.kv_b ? kTokens * (nope_dim_ + kSlack) : 0);
  row_ = own.take<float>(std::max(latent_dim_, nope_dim_));
  words_ = own.take<uint32_t>(std::max(latent_dim_, nope_dim_));
  acts_ = own.take<std::byte>(kTokens * static_cast<int64_t>(act_bytes_));
}

const std::byte* LatentProjections::query_weights(int64_t h, int64_t begin) const {
  if (!a_.kv_b) return a_.k_b.slab(h).row(begin);
  const DTypeInfo& info = dtype_info(a_.kv_b.dtype);
  return a_.kv_b.row(h * (nope_dim_ + value_dim_)) + begin / info.block_elements * info.block_bytes;
}

void LatentProjections::latent_queries(int64_t h, int64_t begin, int64_t first, int64_t n, float* out,
                                       const std::byte* next) {
  const int64_t head_dim = a_.q.dim(2), columns = part_columns();
  if (!a_.kv_b) {
    const float* x[kTokens];
    float* y[kTokens];
    for (int64_t i = 0; i < n; ++i) {
      x[i] = a_.q.row_as<float>(first + i) + h * head_dim;
      y[i] = out + i * part_stride();
    }
    multiply(a_.k_b.slab(h).slice(begin, columns), 0, columns, x, n, y, next);
    return;
  }
  // The product is a sum of rows of W_UK, so lanes are columns of the latent. Rows are decoded a few at a time, and
  // those that follow are fetched meanwhile: a row's part is too short for the processor to foresee the next one.
  constexpr int64_t kRowsAhead = 16;
  const DTypeInfo& info = dtype_info(a_.kv_b.dtype);
  const int64_t stride = a_.kv_b.strides_bytes[0], part_bytes = columns / info.block_elements * info.block_bytes,
                lanes = floats_.lanes;
  const std::byte* rows = query_weights(h, begin);
  const auto fetch = [&](const std::byte* row) {
    for (int64_t at = 0; at < part_bytes; at += 64) __builtin_prefetch(row + at);
  };
  for (int64_t i = 0; i < std::min(kRowsAhead, nope_dim_); ++i) fetch(rows + i * stride);
  // Queries lie at multiples of a power of two, and so in a few sets of the first-level cache: a tile of them is
  // copied.
  const bool many = n >= kManyTokens;
  const float* x = a_.q.row_as<float>(first) + h * head_dim;
  int64_t x_stride = a_.q.strides_bytes[0] / 4;
  if (many) {
    for (int64_t i = 0; i < n; ++i) std::copy_n(x + i * x_stride, nope_dim_, queries_ + i * (nope_dim_ + kSlack));
    x = queries_, x_stride = nope_dim_ + kSlack;
  }
  const int64_t together = many ? kDecodedRowsOfMany : kDecodedRows;
  for (int64_t i = 0; i < nope_dim_; i += together) {
    const int64_t n_rows = std::min(together, nope_dim_ - i);
    for (int64_t r = 0; r < n_rows; ++r) {
      const int64_t ahead = i + r + kRowsAhead;
      if (ahead < nope_dim_) {
        fetch(rows + ahead * stride);
      } else if (next != nullptr) {
        fetch(next + (ahead - nope_dim_) * stride);
      }
      decode_row(floats_, a_.kv_b.dtype, rows + (i + r) * stride, decoded_ + r * part_stride(), columns);
    }
    floats_.multiply({reinterpret_cast<const std::byte*>(x + i), x_stride * 4,
                      reinterpret_cast<const uint32_t*>(decoded_), lanes, part_stride(), out, part_stride(), lanes, n,
                      (columns + lanes - 1) / lanes, n_rows, i > 0, nullptr, 0});
  }
}

void LatentProjections::multiply(const Tensor& rows, int64_t begin, int64_t end, const float* const* x, int64_t n,
                                 float* const* y, const std::byte* next) {
  const int64_t k = rows.dim(1);
  const DType type = kernel_type(matmul_, rows.dtype);
  const std::byte* w = rows.data;
  int64_t stride = rows.strides_bytes[0];
  if (type != rows.dtype) {
    for (int64_t r = begin; r < end; ++r) decode_row(floats_, rows.dtype, rows.row(r), decoded_ + r * k, k);
    w = reinterpret_cast<const std::byte*>(decoded_), stride = k * 4;
  }
  const void* acts[kTokens];
  for (int64_t i = 0; i < n; ++i) {
    std::byte* act = acts_ + static_cast<size_t>(i) * act_bytes_;
    matmul_.quantize_act(type, x[i], act, k);
    acts[i] = act;
  }
  matmul_.matmul(type, {w, stride, begin, end, k, acts, static_cast<int>(n), y, next});
}

Tensor LatentProjections::value_rows(int64_t h) const {
  return a_.kv_b ? a_.kv_b.slice(h * (nope_dim_ + value_dim_) + nope_dim_, value_dim_) : a_.v_b.slab(h);
}

void LatentProjections::values(int64_t h, int64_t begin, int64_t end, const float* latents, int64_t first, int64_t n,
                               const std::byte* next) {
  const float* x[kTokens];
  float* y[kTokens];
  for (int64_t i = 0; i < n; ++i) {
    x[i] = latents + ((first + i) * n_heads_ + h) * latent_dim_;
    y[i] = a_.out.row_as<float>(first + i) + h * value_dim_;
  }
  multiply(value_rows(h), begin, end, x, n, y, next);
}

void LatentProjections::pack_head(int64_t h, const AttentionKernels& k, uint32_t* panels) {
  const int64_t lanes = k.lanes, n_steps = word_count(k, latent_dim_);
  // Column j of the operand is a row of W_UK or W_UV: its words go down lane j % lanes of panel j / lanes.
  const auto put_row = [&](int64_t j, DType type, const std::byte* row) {
    decode_row(floats_, type, row, row_, latent_dim_);
    k.pack_words(row_, 1.0F, words_, latent_dim_);
    spread_words(words_, n_steps, j % lanes, lanes, panels + j / lanes * n_steps * lanes);
  };
  if (a_.kv_b) {
    for (int64_t j = 0; j < nope_dim_ + value_dim_; ++j)
      put_row(j, a_.kv_b.dtype, a_.kv_b.row(h * (nope_dim_ + value_dim_) + j));
    return;
  }
  const Tensor k_b = a_.k_b.slab(h);  // [C, N]: row i holds element i of every column
  const int64_t element_bytes = 4 / k.pack;
  for (int64_t i = 0; i < latent_dim_; ++i) {
    decode_row(floats_, k_b.dtype, k_b.row(i), row_, nope_dim_);
    k.pack_words(row_, 1.0F, words_, nope_dim_);
    for (int64_t j = 0; j < nope_dim_; ++j) {
      uint32_t* word = panels + (j / lanes * n_steps + i / k.pack) * lanes + j % lanes;
      std::memcpy(reinterpret_cast<std::byte*>(word) + i % k.pack * element_bytes,
                  reinterpret_cast<const std::byte*>(words_) + j * element_bytes, static_cast<size_t>(element_bytes));
    }
  }
  if (latent_dim_ % k.pack != 0) {  // the missing element of the last pairs
    for (int64_t j = 0; j < nope_dim_; ++j) panels[(j / lanes * n_steps + n_steps - 1) * lanes + j % lanes] &= 0xffffU;
  }
  for (int64_t j = 0; j < value_dim_; ++j) put_row(nope_dim_ + j, a_.v_b.dtype, a_.v_b.slab(h).row(j));
}

}  // namespace fathom::cpu::fast
