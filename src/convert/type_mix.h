// Which type each tensor of a file gets: the mixes people know by name, rules by tensor, and what may never be touched.
#pragma once

#include <cstdint>
#include <regex>
#include <string>
#include <vector>

#include "core/dtype.h"
#include "core/tensor.h"

namespace fathom {

/// What a mix must know of the model.
struct MixContext {
  int64_t n_layers = 0;  ///< blocks, MTP layers among them
  int64_t n_experts = 0;
  int64_t heads_per_kv_head = 1;  ///< of V1's attention
  bool has_importance = false;
};

/// "q4_k_m", "iq2_xxs", "f16" ...: a base type and where it is departed from. The rules are those of llama-quantize, so
/// that a name means what people expect of it, with two departures:
///   below four bits the tensors that every token passes (attention, shared experts, dense layers) get at least Q4_K:
///   in a model of 256 experts they are three percent of the bytes and most of the damage; routed experts that are
///   stored as FP4 stay MXFP4, bit for bit, where the mix would give them more bits than that.
class TypeMix {
 public:
  /// Throws Error{kUsage} listing the names.
  static TypeMix named(const std::string& name);
  static std::vector<std::string> names();

  const std::string& name() const { return name_; }
  /// general.file_type.
  int64_t file_type() const { return file_type_; }
  DType base() const { return base_; }
  /// Types that are chosen without an importance matrix at one's own risk.
  bool wants_importance() const;

  /// The mix's choice for a matrix, rows of any width; see fitting_type for those it does not fit.
  DType type_of(const std::string& tensor, const MixContext& context) const;

 private:
  DType ffn_down_type(int64_t layer, int64_t n_layers, bool has_importance) const;
  DType attn_v_type(int64_t layer, const MixContext& context) const;

  std::string name_;
  DType base_ = DType::kF16;
  int64_t file_type_ = 0;
};

/// "REGEX=TYPE" rules, the first that matches counts. ECMAScript, searched anywhere in the tensor's name.
class TensorTypeRules {
 public:
  /// Throws Error{kUsage} naming the rule: no '=', a bad expression, a type that cannot be written.
  explicit TensorTypeRules(const std::vector<std::string>& rules);
  const DType* find(const std::string& tensor);
  /// Throws Error{kUsage} for a rule that matched nothing.
  void check_all_used() const;

 private:
  struct Rule {
    std::string text;
    std::regex pattern;
    DType type;
    bool is_used = false;
  };
  std::vector<Rule> rules_;
};

/// Norms, routers, sinks and the like: vectors and small matrices that decide, always F32.
bool is_kept_f32(const std::string& tensor, const Shape& shape);

/// The nearest type whose blocks divide rows of `width`: the 256-wide ones fall back to 32-wide ones, these to F16.
DType fitting_type(DType type, int64_t width);

}  // namespace fathom
