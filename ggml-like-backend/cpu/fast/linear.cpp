// Matrix product: every token's activations are quantized once, then tasks of weight rows run over all tokens.
#include "cpu/fast/fast.h"
#include "cpu/fast/matmul_tasks.h"

namespace fathom::cpu::fast {
namespace {

struct Layout {
  std::byte* acts;        ///< [T] quantized rows
  const void** act_rows;  ///< [T]
  float** out_rows;       ///< [T]
  size_t act_bytes, total_bytes;

  Layout(const LinearArgs& a, const MatmulKernels& k, std::byte* base) {
    const int64_t n_tokens = a.x.dim(0);
    act_bytes = k.act_row_bytes(a.weight.dtype, a.weight.dim(1));
    Carver carver(base);
    acts = carver.take<std::byte>(n_tokens * static_cast<int64_t>(act_bytes));
    act_rows = carver.take<const void*>(n_tokens);
    out_rows = carver.take<float*>(n_tokens);
    total_bytes = carver.used();
  }
};

}  // namespace

Workspace linear_workspace(const LinearArgs& a, const MatmulKernels& kernels) {
  return {Layout(a, kernels, nullptr).total_bytes, 0};
}

void linear(const LinearArgs& a, OpContext& c) {
  const MatmulKernels& kernels = *c.matmul;
  const int64_t n_tokens = a.x.dim(0), k = a.weight.dim(1);
  const DType type = a.weight.dtype;
  const Layout l(a, kernels, c.shared);
  c.worker.share(n_tokens, 1, [&](int64_t t, int64_t) {
    std::byte* act = l.acts + static_cast<size_t>(t) * l.act_bytes;
    kernels.quantize_act(type, a.x.row_as<float>(t), act, k);
    l.act_rows[t] = act;
    l.out_rows[t] = a.out.row_as<float>(t);
  });
  c.worker.barrier();
  const int64_t stride = a.weight.strides_bytes[0];
  const int64_t n_rows = a.weight.dim(0);
  c.worker.share_ahead(
      n_rows, rows_per_task(n_rows, stride, c.worker.count()), [&](int64_t begin, int64_t end, int64_t next) {
        const std::byte* next_w = next < n_rows ? a.weight.data + next * stride : nullptr;
        kernels.matmul(
            type, {a.weight.data, stride, begin, end, k, l.act_rows, static_cast<int>(n_tokens), l.out_rows, next_w});
      });
}

}  // namespace fathom::cpu::fast
