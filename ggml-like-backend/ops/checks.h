// What the contracts of operations are made of. A failed check is a bug of the caller.
#pragma once

#include <string>

#include "core/error.h"
#include "core/node.h"

namespace fathom {

inline void expect_f32(const Tensor& t, int rank, const char* what) {
  FATHOM_CHECK(t.dtype == DType::kF32 && t.shape.rank == rank,
               std::string(what) + " has to be f32 of rank " + std::to_string(rank) + ", is " + t.describe());
}

inline void expect_i32(const Tensor& t, int rank, const char* what) {
  FATHOM_CHECK(t.dtype == DType::kI32 && t.shape.rank == rank,
               std::string(what) + " has to be i32 of rank " + std::to_string(rank) + ", is " + t.describe());
}

inline void expect_shape(const Tensor& t, const Shape& shape, const char* what) {
  FATHOM_CHECK(t.shape == shape, std::string(what) + " has to be " + shape.to_string() + ", is " + t.describe());
}

inline void expect_step(const StepTensors& step, int64_t n_tokens) {
  expect_i32(step.positions, 1, "positions");
  expect_i32(step.sequence_of, 1, "sequence_of");
  expect_i32(step.page_table, 2, "page_table");
  FATHOM_CHECK(step.positions.dim(0) == n_tokens && step.sequence_of.dim(0) == n_tokens,
               "a position and a sequence for every token");
  if (step.expanded) {
    expect_i32(step.expanded, 1, "expanded");
    FATHOM_CHECK(step.expanded.dim(0) == step.page_table.dim(0), "a form for every sequence");
  }
}

inline void expect_ffn(const GatedFfnWeights& w, int64_t hidden, const char* what) {
  const int r = w.gate.shape.rank;
  FATHOM_CHECK(w.gate.shape.last() == hidden && w.up.shape == w.gate.shape && w.down.shape.rank == r &&
                   w.down.shape.last() == w.gate.dim(r - 2) && w.down.dim(r - 2) == hidden,
               std::string(what) + ": gate " + w.gate.describe() + ", up " + w.up.describe() + ", down " +
                   w.down.describe() + " do not fit a hidden size of " + std::to_string(hidden));
}

}  // namespace fathom
