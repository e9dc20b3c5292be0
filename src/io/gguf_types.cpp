#include "io/gguf_types.h"

#include <array>
#include <cctype>
#include <iterator>
#include <optional>

namespace fathom {
namespace {

struct NamedType {
  uint32_t type;
  std::string_view name;
};

// Numbers that appear in files but not in DType.
constexpr std::array kForeign = {
    NamedType{4, "Q4_2, withdrawn"},
    NamedType{5, "Q4_3, withdrawn"},
    NamedType{9, "Q8_1, not a storage type"},
    NamedType{15, "Q8_K, not a storage type"},
    NamedType{31, "Q4_0_4_4, withdrawn"},
    NamedType{32, "Q4_0_4_8, withdrawn"},
    NamedType{33, "Q4_0_8_8, withdrawn"},
    NamedType{34, "TQ1_0"},
    NamedType{35, "TQ2_0"},
    NamedType{36, "IQ4_NL_4_4, withdrawn"},
    NamedType{37, "IQ4_NL_4_8, withdrawn"},
    NamedType{38, "IQ4_NL_8_8, withdrawn"},
    NamedType{40, "NVFP4"},
    NamedType{41, "Q1_0"},
    NamedType{42, "Q2_0"},
};
constexpr std::array kOfIk = {
    NamedType{133, "Q6_0"},    NamedType{137, "IQ2_K"},  NamedType{138, "IQ3_K"},  NamedType{139, "IQ4_K"},
    NamedType{140, "IQ5_K"},   NamedType{141, "IQ6_K"},  NamedType{144, "IQ4_KS"}, NamedType{145, "IQ2_KS"},
    NamedType{146, "IQ4_KSS"}, NamedType{152, "IQ5_KS"}, NamedType{153, "IQ2_KT"}, NamedType{154, "IQ3_KT"},
    NamedType{155, "IQ4_KT"},  NamedType{156, "IQ3_KS"}, NamedType{157, "IQ2_KL"}, NamedType{158, "IQ1_KT"},
};

template <size_t N> std::optional<std::string> name_in(const std::array<NamedType, N>& table, uint32_t type) {
  for (const NamedType& t : table) {
    if (t.type == type) return std::string(t.name);
  }
  return std::nullopt;
}

std::optional<std::string> name_of(uint32_t type) {
  if (const std::optional<DType> known = dtype_from_gguf(type)) {
    std::string name(dtype_name(*known));
    for (char& c : name) c = static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
    return name;
  }
  if (auto name = name_in(kForeign, type)) return name;
  if (auto name = name_in(kOfIk, type)) return *name + " of ik_llama.cpp";
  // ik_llama.cpp numbers the row-interleaved form of a type 200 above the type itself.
  if (type >= 200 && type < 400) {
    std::optional<std::string> base = name_in(kOfIk, type - 200);
    if (!base) base = name_of(type - 200);
    if (base) return *base + " with interleaved rows of ik_llama.cpp";
  }
  return std::nullopt;
}

}  // namespace

std::string_view gguf_value_type_name(GgufValueType type) {
  constexpr std::string_view kNames[kGgufValueTypeCount] = {"u8",   "i8",     "u16",   "i16", "u32", "i32", "f32",
                                                            "bool", "string", "array", "u64", "i64", "f64"};
  return kNames[static_cast<uint32_t>(type)];
}

uint64_t gguf_value_min_bytes(GgufValueType type) {
  constexpr uint8_t kBytes[kGgufValueTypeCount] = {1, 1, 2, 2, 4, 4, 4, 1, 8, 12, 8, 8, 8};
  return kBytes[static_cast<uint32_t>(type)];
}

std::string gguf_tensor_type_text(uint32_t type) {
  return std::to_string(type) + " (" + name_of(type).value_or("unknown") + ")";
}

std::optional<std::string_view> gguf_file_type_name(int64_t file_type) {
  constexpr std::string_view kNames[] = {
      "f32",    "f16",    "q4_0",   "q4_1",    "",       "",       "",       "q8_0",   "q5_0",  "q5_1",
      "q2_k",   "q3_k_s", "q3_k_m", "q3_k_l",  "q4_k_s", "q4_k_m", "q5_k_s", "q5_k_m", "q6_k",  "iq2_xxs",
      "iq2_xs", "q2_k_s", "iq3_xs", "iq3_xxs", "iq1_s",  "iq4_nl", "iq3_s",  "iq3_m",  "iq2_s", "iq2_m",
      "iq4_xs", "iq1_m",  "bf16",   "",        "",       "",       "tq1_0",  "tq2_0",  "mxfp4",
  };
  if (file_type < 0 || file_type >= static_cast<int64_t>(std::size(kNames))) return std::nullopt;
  const std::string_view name = kNames[file_type];
  return name.empty() ? std::nullopt : std::optional(name);
}

}  // namespace fathom
