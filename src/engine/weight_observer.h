// What passes through a model's weights while it reads: for importance matrices and for finding experts that do little.
#pragma once

#include <cstdint>
#include <string>

namespace fathom {

/// Rows that one matrix of a tensor is multiplied with.
struct MatrixInputs {
  const std::string& tensor;  ///< its name in the file
  int64_t matrix;             ///< of its slowest dimension: the expert or the head; 0 for plain matrices
  int64_t n_matrices;
  int64_t n_rows, width;
  const float* rows;  ///< row i begins at rows + i * stride
  int64_t stride;

  const float* row(int64_t i) const { return rows + i * stride; }
};

/// What a routed expert gave for the tokens that chose it.
struct ExpertOutputs {
  const std::string& tensor;  ///< its down matrices: "blk.7.ffn_down_exps.weight"
  int64_t expert, n_experts;
  int64_t n_rows, width;
  const float* rows;            ///< [n_rows, width] before weighting
  const float* router_weights;  ///< [n_rows]
};

/// Told from the thread that runs the steps; the rows are gone afterwards.
class WeightObserver {
 public:
  virtual ~WeightObserver() = default;
  virtual void inputs(const MatrixInputs& seen) = 0;
  virtual void expert_outputs(const ExpertOutputs& seen) = 0;
};

}  // namespace fathom
