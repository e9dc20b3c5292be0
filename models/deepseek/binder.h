// Finds a file's tensors by name and checks their shapes.
#pragma once

#include <initializer_list>
#include <map>
#include <string>

#include "core/error.h"
#include "core/quant/dequantize.h"
#include "deepseek/weights.h"

namespace fathom::deepseek {

class Binder {
 public:
  Binder(const Config& config, const std::map<std::string, Tensor>& tensors, Weights& weights)
      : c_(config), tensors_(tensors), weights_(weights) {}

  const Tensor* find(const std::string& name) const {
    const auto it = tensors_.find(name);
    return it == tensors_.end() ? nullptr : &it->second;
  }

  /// The tensor with this shape; other shapes of equal meaning are in `also` (same bytes, viewed as `shape`).
  Tensor take(const std::string& name, const Shape& shape, const Shape& also = {}) const {
    const Tensor* t = find(name);
    if (t == nullptr)
      throw Error(ErrorCode::kModel, "tensor '" + name + "': missing; expected shape " + shape.to_string() +
                                         ", got no such tensor; " + dialect());
    if (t->shape == shape) return *t;
    if (also.rank > 0 && t->shape == also) return t->reshaped(shape);
    throw Error(ErrorCode::kModel, "tensor '" + name + "': wrong shape; expected " + shape.to_string() + ", got " +
                                       t->shape.to_string() + "; try another copy of the file");
  }

  /// The same as f32, converted where the file holds another type.
  Tensor take_f32(const std::string& name, const Shape& shape) {
    const Tensor t = take(name, shape);
    if (t.dtype == DType::kF32) return t;
    if (t.dtype != DType::kF16 && t.dtype != DType::kBF16) {
      throw Error(ErrorCode::kModel, "tensor '" + name + "': wrong type; expected f32, f16 or bf16, got " +
                                         std::string(dtype_name(t.dtype)) + "; try another copy of the file");
    }
    Tensor copy = own_f32(shape, name);
    dequantize_row(t.dtype, t.data, copy.as<float>(), shape.n_elements());
    return copy;
  }

  Tensor own_f32(const Shape& shape, const std::string& what) {
    weights_.owned.push_back(allocate_heap(static_cast<size_t>(shape.n_elements()) * sizeof(float), what));
    return Tensor(DType::kF32, shape, weights_.owned.back()->data());
  }

  /// The name in `names` that the file has, else the first.
  std::string either(std::initializer_list<const char*> names, const std::string& prefix) const {
    for (const char* name : names) {
      if (find(prefix + name)) return prefix + name;
    }
    return prefix + *names.begin();
  }

  GatedFfnWeights mlp(const std::string& prefix, const std::string& suffix, int64_t width) const {
    return {take(prefix + "ffn_gate" + suffix, {width, c_.hidden_size}),
            take(prefix + "ffn_up" + suffix, {width, c_.hidden_size}),
            take(prefix + "ffn_down" + suffix, {c_.hidden_size, width})};
  }

  const Config& config() const { return c_; }

 protected:
  const Config& c_;

 private:
  std::string dialect() const {
    if (c_.attention == Attention::kCompressed) return "the file is of architecture deepseek4";
    if (c_.attention == Attention::kMultiHead) return "the file is of architecture deepseek (multi-head attention)";
    if (find("blk.0.attn_kv_b.weight")) return "the file has the legacy attn_kv_b dialect";
    if (find("blk.0.attn_k_b.weight")) return "the file has the split attn_k_b and attn_v_b dialect";
    return "the file has neither attn_kv_b nor attn_k_b and attn_v_b";
  }

  const std::map<std::string, Tensor>& tensors_;
  Weights& weights_;
};

}  // namespace fathom::deepseek
