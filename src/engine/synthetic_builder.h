// What makes a list of tensors for a synthetic model: names, types as converters choose them, shapes.
#pragma once

#include <string>

#include "core/error.h"
#include "core/quant/quantize.h"
#include "engine/engine.h"

namespace fathom {

/// What a converter writes where a row does not divide into blocks of 256.
inline DType with_fallback(DType type, int64_t row) {
  if (row % dtype_info(type).block_elements == 0) return type;
  switch (type) {
    case DType::kQ4_K: return DType::kQ5_0;
    case DType::kQ5_K: return DType::kQ5_1;
    case DType::kQ6_K: return DType::kQ8_0;
    default: return row % 32 == 0 ? DType::kIQ4_NL : DType::kF16;
  }
}

struct Types {
  DType main, attention, down, head;

  static Types of(const std::string& name) {
    if (name == "q4_k_m") return {DType::kQ4_K, DType::kQ4_K, DType::kQ6_K, DType::kQ6_K};
    const std::optional<DType> t = dtype_from_name(name);
    if (!t || (!can_quantize(*t) && *t != DType::kF32))
      throw Error(
          ErrorCode::kUsage,
          "--type: not a type for weights; expected q4_k_m or a name like q8_0, q6_k, iq4_xs, mxfp4, bf16, got '" +
              name + "'");
    if (*t == DType::kMXFP4) return {DType::kMXFP4, DType::kQ8_0, DType::kMXFP4, DType::kQ8_0};
    return {*t, *t, *t, *t};
  }
};

inline void check_layers(int64_t layers, int64_t most) {
  if (layers >= 1 && layers <= most) return;
  throw Error(ErrorCode::kUsage,
              "--layers: out of range; expected 1 to " + std::to_string(most) + ", got " + std::to_string(layers));
}

class Builder {
 public:
  explicit Builder(ModelSource& source) : source_(source) {}

  void add(const std::string& name, DType type, Shape shape) {
    Tensor t(type, shape, nullptr);
    source_.size_bytes += (t.size_bytes() + 63) / 64 * 64;
    source_.tensors.emplace(name, t);
  }
  void add_weight(const std::string& name, DType wanted, Shape shape) {
    add(name, with_fallback(wanted, shape.last()), shape);
  }
  void add_norm(const std::string& name, int64_t n) { add(name, DType::kF32, {n}); }

 private:
  ModelSource& source_;
};

}  // namespace fathom
