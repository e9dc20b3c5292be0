// The ways in which rows of checkpoint weights become rows of a GGUF tensor.
#pragma once

#include <memory>
#include <vector>

#include "convert/row_source.h"
#include "convert/source_matrix.h"
#include "core/tensor.h"

namespace fathom {

/// Matrices of one shape one after the other: a single weight, or the experts of a layer in order.
std::shared_ptr<const RowSource> stacked_rows(std::vector<SourceMatrix> parts);

/// V1's q and k: rows of a head paired (i, i + half) become neighbours (2i, 2i + 1), as GGUF's rotation pairs them.
std::shared_ptr<const RowSource> rotary_rows(SourceMatrix matrix, int64_t n_heads);

/// Of kv_b [n_heads * (nope + v), latent] the keys, each head transposed: [n_heads, latent, nope].
std::shared_ptr<const RowSource> transposed_keys(SourceMatrix kv_b, int64_t n_heads, int64_t nope);

/// Of the same the values: [n_heads, v, latent].
std::shared_ptr<const RowSource> value_rows(SourceMatrix kv_b, int64_t n_heads, int64_t nope);

/// Two matrices with equally many rows beside each other: row i is left's row i, then right's.
std::shared_ptr<const RowSource> side_by_side(SourceMatrix left, SourceMatrix right);

/// Integers [rows, cols] I32 or I64 as I32. Throws Error{kModel} naming `name` where one is outside [0, limit).
std::shared_ptr<const RowSource> integer_rows(const SafetensorsTensor& tensor, const std::string& name, int64_t limit);

}  // namespace fathom
