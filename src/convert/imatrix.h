// Importance matrices: mean squares of the activations that each weight column meets, by tensor and expert.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "core/tensor.h"

namespace fathom {

/// Read from llama.cpp's files, of both forms:
///   binary: i32 entries; each i32 name length, name, i32 calls, i32 values, f32 values times calls; then, optional,
///   i32 chunks,
///     i32 length and the text file's name;
///   GGUF: general.type "imatrix", tensors NAME.in_sum2 [columns x matrices] and NAME.counts [matrices].
class ImportanceMatrix {
 public:
  /// Throws Error{kModel} naming path and entry for files that are damaged, foreign, or hold what no importance is.
  static ImportanceMatrix read(const std::string& path);

  /// For `tensor` of that shape: values of its rows' columns by matrix of its slowest dimension, or null where the file
  /// has none. One set of values serves all matrices where the file has only one. Throws Error{kModel} where the sizes
  /// do not fit.
  const float* find(const std::string& tensor, const Shape& shape, int64_t matrix) const;

  /// Mean squares [n_matrices * width] under a tensor's name.
  void set(std::string tensor, std::vector<float> values) {
    values_.insert_or_assign(std::move(tensor), std::move(values));
  }

  const std::string& path() const { return path_; }
  const std::string& dataset() const { return dataset_; }
  int64_t n_chunks() const { return n_chunks_; }
  size_t size() const { return values_.size(); }

 private:
  std::string path_, dataset_;
  int64_t n_chunks_ = 0;
  std::map<std::string, std::vector<float>> values_;
};

/// Squares of what the matrices of one tensor were multiplied with, added up.
struct InputSquares {
  int64_t width = 0;
  std::vector<double> sums;     ///< [n_matrices * width]
  std::vector<int64_t> counts;  ///< rows that each matrix met
};

/// Where they came from.
struct ImportanceOrigin {
  std::string dataset;  ///< name of the text
  int64_t n_chunks = 0, chunk_tokens = 0;
};

/// Writes llama.cpp's GGUF form, whole or not at all. Throws Error{kRuntime} with the system's reason.
void write_importance_matrix(const std::string& path, const std::map<std::string, InputSquares>& tensors,
                             const ImportanceOrigin& origin);

}  // namespace fathom
