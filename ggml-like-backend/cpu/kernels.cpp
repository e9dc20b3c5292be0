#include "cpu/kernels.h"

#include <cstring>

#include "core/error.h"
#include "cpu/isa_tables.h"

namespace fathom::cpu {
namespace {

bool runs_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

bool runs_avx_vnni() { return runs_avx2() && __builtin_cpu_supports("avxvnni"); }

bool runs_avx512() {
  return runs_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("gfni");
}

/// Indexed by GGUF type id.
const MatmulKernel* const kAvx2Table[MatmulKernels::kTypeIds] = {
    &avx2::f32,   &avx2::f16,   &avx2::q4_0,    &avx2::q4_1,   nullptr,        nullptr,      &avx2::q5_0,
    &avx2::q5_1,  &avx2::q8_0,  nullptr,        &avx2::q2_k,   &avx2::q3_k,    &avx2::q4_k,  &avx2::q5_k,
    &avx2::q6_k,  nullptr,      &avx2::iq2_xxs, &avx2::iq2_xs, &avx2::iq3_xxs, &avx2::iq1_s, &avx2::iq4_nl,
    &avx2::iq3_s, &avx2::iq2_s, &avx2::iq4_xs,  nullptr,       nullptr,        nullptr,      nullptr,
    nullptr,      &avx2::iq1_m, &avx2::bf16,    nullptr,       nullptr,        nullptr,      nullptr,
    nullptr,      nullptr,      nullptr,        nullptr,       &avx2::mxfp4};
const MatmulKernel* const kAvxVnniTable[MatmulKernels::kTypeIds] = {&avx2::f32,
                                                                    &avx2::f16,
                                                                    &avx_vnni::q4_0,
                                                                    &avx_vnni::q4_1,
                                                                    nullptr,
                                                                    nullptr,
                                                                    &avx_vnni::q5_0,
                                                                    &avx_vnni::q5_1,
                                                                    &avx_vnni::q8_0,
                                                                    nullptr,
                                                                    &avx_vnni::q2_k,
                                                                    &avx_vnni::q3_k,
                                                                    &avx_vnni::q4_k,
                                                                    &avx_vnni::q5_k,
                                                                    &avx_vnni::q6_k,
                                                                    nullptr,
                                                                    &avx_vnni::iq2_xxs,
                                                                    &avx_vnni::iq2_xs,
                                                                    &avx_vnni::iq3_xxs,
                                                                    &avx_vnni::iq1_s,
                                                                    &avx_vnni::iq4_nl,
                                                                    &avx_vnni::iq3_s,
                                                                    &avx_vnni::iq2_s,
                                                                    &avx_vnni::iq4_xs,
                                                                    nullptr,
                                                                    nullptr,
                                                                    nullptr,
                                                                    nullptr,
                                                                    nullptr,
                                                                    &avx_vnni::iq1_m,
                                                                    &avx2::bf16,
                                                                    nullptr,
                                                                    nullptr,
                                                                    nullptr,
                                                                    nullptr,
                                                                    nullptr,
                                                                    nullptr,
                                                                    nullptr,
                                                                    nullptr,
                                                                    &avx_vnni::mxfp4};
const MatmulKernel* const kAvx512Table[MatmulKernels::kTypeIds] = {
    &avx512::f32,     &avx512::f16,   &avx512::q4_0,   &avx512::q4_1,  nullptr,          nullptr,
    &avx512::q5_0,    &avx512::q5_1,  &avx512::q8_0,   nullptr,        &avx512::q2_k,    &avx512::q3_k,
    &avx512::q4_k,    &avx512::q5_k,  &avx512::q6_k,   nullptr,        &avx512::iq2_xxs, &avx512::iq2_xs,
    &avx512::iq3_xxs, &avx512::iq1_s, &avx512::iq4_nl, &avx512::iq3_s, &avx512::iq2_s,   &avx512::iq4_xs,
    nullptr,          nullptr,        nullptr,         nullptr,        nullptr,          &avx512::iq1_m,
    &avx512::bf16,    nullptr,        nullptr,         nullptr,        nullptr,          nullptr,
    nullptr,          nullptr,        nullptr,         &avx512::mxfp4};

struct Isa {
  MatmulKernels kernels;
  bool (*runs)();
};

/// Best first.
const Isa kIsas[] = {
    {{"avx512", kAvx512Table}, runs_avx512},
    {{"avx_vnni", kAvxVnniTable}, runs_avx_vnni},
    {{"avx2", kAvx2Table}, runs_avx2},
};

const MatmulKernel& checked(const MatmulKernels& kernels, DType weight) {
  const MatmulKernel* kernel = kernels.find(weight);
  FATHOM_CHECK(kernel != nullptr, "no matrix kernel for " + std::string(dtype_name(weight)));
  return *kernel;
}

}  // namespace

const MatmulKernel* MatmulKernels::find(DType weight) const {
  const auto id = static_cast<uint32_t>(weight);
  return id < static_cast<uint32_t>(kTypeIds) ? table[id] : nullptr;
}

size_t MatmulKernels::act_offset_bytes(DType weight, int64_t k_begin) const {
  if (checked(*this, weight).act_format.kind == ActKind::kF32) return static_cast<size_t>(k_begin) * sizeof(float);
  return static_cast<size_t>(k_begin / 32) * sizeof(ActBlock);
}

size_t MatmulKernels::act_row_bytes(DType weight, int64_t k) const {
  return (act_offset_bytes(weight, k) + 63) / 64 * 64;
}

bool MatmulKernels::same_activations(DType a, DType b) const {
  const ActFormat x = checked(*this, a).act_format, y = checked(*this, b).act_format;
  return x.kind == y.kind && x.offset == y.offset;
}

void MatmulKernels::quantize_act(DType weight, const float* x, void* act, int64_t k) const {
  const MatmulKernel& kernel = checked(*this, weight);
  if (kernel.act_format.kind == ActKind::kF32) {
    std::memcpy(act, x, static_cast<size_t>(k) * sizeof(float));
  } else {
    kernel.quantize_act(kernel.act_format, x, act, k);
  }
}

void MatmulKernels::matmul(DType weight, const MatmulTask& task) const { checked(*this, weight).matmul(task); }

std::vector<std::string> matmul_isa_names() {
  std::vector<std::string> names;
  for (const Isa& isa : kIsas) {
    if (isa.runs()) names.emplace_back(isa.kernels.isa);
  }
  return names;
}

const MatmulKernels* matmul_kernels(std::string_view isa) {
  for (const Isa& candidate : kIsas) {
    if (candidate.kernels.isa == isa && candidate.runs()) return &candidate.kernels;
  }
  return nullptr;
}

}  // namespace fathom::cpu
