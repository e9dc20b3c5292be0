// Matrix product: every token's activations are quantized once, then tasks of weight rows run over all tokens.
#include "cpu/fast/fast.h"
#include "cpu/fast/matmul_tasks.h"

namespace fathom::cpu::fast {
namespace {

struct Layout {
  std::byte* acts;  ///< quantized rows
  const void** act_rows;
  float** out_rows;
  size_t act_bytes, total_bytes;

  /// `n` rows of activations, each for one row of x or a group's part of one.
  Layout(const Tensor& weight, int64_t n, const MatmulKernels& k, std::byte* base) {
    act_bytes = k.act_row_bytes(weight.dtype, weight.dim(1));
    Carver carver(base);
    acts = carver.take<std::byte>(n * static_cast<int64_t>(act_bytes));
    act_rows = carver.take<const void*>(n);
    out_rows = carver.take<float*>(n);
    total_bytes = carver.used();
  }
};

}  // namespace

Workspace linear_workspace(const LinearArgs& a, const MatmulKernels& kernels) {
  return {Layout(a.weight, a.x.dim(0), kernels, nullptr).total_bytes, 0};
}

void linear(const LinearArgs& a, OpContext& c) {
  const MatmulKernels& kernels = *c.matmul;
  const int64_t n_tokens = a.x.dim(0), k = a.weight.dim(1);
  const DType type = a.weight.dtype;
  const Layout l(a.weight, n_tokens, kernels, c.shared);
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

Workspace grouped_linear_workspace(const GroupedLinearArgs& a, const MatmulKernels& kernels) {
  return {Layout(a.weight, a.x.dim(0) * a.n_groups(), kernels, nullptr).total_bytes, 0};
}

void grouped_linear(const GroupedLinearArgs& a, OpContext& c) {
  const MatmulKernels& kernels = *c.matmul;
  const int64_t n_tokens = a.x.dim(0), k = a.weight.dim(1), n_groups = a.n_groups(), rows = a.weight.dim(0) / n_groups;
  const DType type = a.weight.dtype;
  const Layout l(a.weight, n_tokens * n_groups, kernels, c.shared);
  c.worker.share(n_tokens * n_groups, 1, [&](int64_t i, int64_t) {
    const int64_t group = i / n_tokens, t = i % n_tokens;
    std::byte* act = l.acts + static_cast<size_t>(i) * l.act_bytes;
    kernels.quantize_act(type, a.x.row_as<float>(t) + group * k, act, k);
    l.act_rows[i] = act;
    l.out_rows[i] = a.out.row_as<float>(t);
  });
  c.worker.barrier();
  // A task is some rows of one group; the kernels write row r of the whole matrix to column r of the output.
  const int64_t stride = a.weight.strides_bytes[0];
  const int64_t unit = std::min(rows, rows_per_task(a.weight.dim(0), stride, c.worker.count()));
  const int64_t tasks_per_group = (rows + unit - 1) / unit, n_tasks = n_groups * tasks_per_group;
  const auto first_row = [&](int64_t task) { return task / tasks_per_group * rows + task % tasks_per_group * unit; };
  c.worker.share_ahead(n_tasks, 1, [&](int64_t task, int64_t end, int64_t next_piece) {
    for (; task < end; ++task) {
      const int64_t group = task / tasks_per_group, begin = first_row(task);
      const int64_t next = task + 1 < end ? task + 1 : next_piece;
      const std::byte* next_w = next < n_tasks ? a.weight.data + first_row(next) * stride : nullptr;
      kernels.matmul(
          type, {a.weight.data, stride, begin, std::min(begin + unit, (group + 1) * rows), k,
                 l.act_rows + group * n_tokens, static_cast<int>(n_tokens), l.out_rows + group * n_tokens, next_w});
    }
  });
}

}  // namespace fathom::cpu::fast
