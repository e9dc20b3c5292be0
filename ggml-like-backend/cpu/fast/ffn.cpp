// Gated feed-forward networks, one or a mixture of experts, in two phases of tasks: gate and up with SiLU, then down.
//
// A dense network is a mixture with one expert that every token uses, so both run the same code. Tokens are grouped by
// expert once; each token's activations are quantized once for each weight type that meets them; a task is a range of
// weight rows of one expert with all the expert's tokens. Between the phases the hidden rows are quantized for the down
// matrices; the weighted sum over a token's experts is taken in order of choice, so a token's result does not depend on
// its company in the batch.
#include "core/host_memory.h"
#include "cpu/expert_groups.h"
#include "cpu/fast/fast.h"
#include "cpu/fast/matmul_tasks.h"

namespace fathom::cpu::fast {
namespace {

/// The mixture as tasks see it: experts 0..E-1 of the stack, and after them the shared network as expert E.
struct Mixture {
  Tensor x, out;
  const GatedFfnWeights* experts;  ///< null: only the shared network
  const GatedFfnWeights* shared;   ///< null: none
  const int32_t* expert_ids;       ///< [T * K]
  const float* expert_weights;     ///< [T * K]
  int64_t n_used;                  ///< K, 0 without experts
  float clamp, shared_clamp;

  int64_t n_tokens() const { return x.dim(0); }
  int64_t hidden_size() const { return x.dim(1); }
  int64_t n_experts() const { return experts ? experts->gate.dim(0) : 0; }
  int64_t n_routes() const { return n_tokens() * n_used; }
  /// Hidden rows: one for each route, then one a token for the shared network.
  int64_t n_hidden_rows() const { return n_routes() + (shared ? n_tokens() : 0); }
  int64_t expert_width() const { return experts ? experts->gate.dim(1) : 0; }
  int64_t shared_width() const { return shared ? shared->gate.dim(0) : 0; }
};

struct Layout {
  std::byte* groups;
  std::byte* acts[4];  ///< x quantized for experts.gate, experts.up, shared.gate, shared.up; equal formats share
  size_t act_bytes[4];
  std::byte* down_acts;  ///< [hidden rows] quantized for the down matrices
  size_t down_act_bytes;
  float* outputs;          ///< [hidden rows, D]
  const void** act_rows;   ///< [gate, up][hidden rows] in group order
  const void** down_rows;  ///< [hidden rows] in group order
  float** output_rows;     ///< [hidden rows] in group order: where down results go
  size_t total_bytes;

  Layout(const Mixture& m, const MatmulKernels& k, std::byte* base) {
    const int64_t rows = m.n_hidden_rows();
    Carver carver(base);
    groups = carver.take<std::byte>(static_cast<int64_t>(ExpertGroups::bytes(m.n_experts(), m.n_routes())));
    const Tensor* weights[4] = {m.experts ? &m.experts->gate : nullptr, m.experts ? &m.experts->up : nullptr,
                                m.shared ? &m.shared->gate : nullptr, m.shared ? &m.shared->up : nullptr};
    for (int i = 0; i < 4; ++i) {
      acts[i] = nullptr;
      act_bytes[i] = 0;
      if (weights[i] == nullptr) continue;
      for (int j = 0; j < i; ++j) {
        if (weights[j] != nullptr && k.same_activations(weights[j]->dtype, weights[i]->dtype)) {
          acts[i] = acts[j];
          act_bytes[i] = act_bytes[j];
        }
      }
      if (act_bytes[i] != 0) continue;
      act_bytes[i] = k.act_row_bytes(weights[i]->dtype, m.hidden_size());
      acts[i] = carver.take<std::byte>(m.n_tokens() * static_cast<int64_t>(act_bytes[i]));
    }
    down_act_bytes = std::max(m.experts ? k.act_row_bytes(m.experts->down.dtype, m.expert_width()) : 0,
                              m.shared ? k.act_row_bytes(m.shared->down.dtype, m.shared_width()) : 0);
    down_acts = carver.take<std::byte>(rows * static_cast<int64_t>(down_act_bytes));
    outputs = carver.take<float>(rows * m.hidden_size());
    act_rows = carver.take<const void*>(2 * rows);
    down_rows = carver.take<const void*>(rows);
    output_rows = carver.take<float*>(rows);
    total_bytes = carver.used();
  }
};

/// Where a thread has a piece of its task's gate and up results until they are quantized for the down matrix: they need
/// never leave its second-level cache, of which they take a quarter of 1 MiB.
struct Piece {
  static constexpr int64_t kFloats = 32 * 1024;
  static constexpr int64_t kColumns = kFloats / 32;  ///< the most tokens of a piece
  float* gate;                                       ///< [tokens][rows] silu(gate) * up
  float* up;                                         ///< [tokens][rows]
  float** gate_rows;                                 ///< [tokens]
  float** up_rows;
  size_t total_bytes;

  explicit Piece(std::byte* base) {
    Carver carver(base);
    gate = carver.take<float>(kFloats);
    up = carver.take<float>(kFloats);
    gate_rows = carver.take<float*>(kColumns);
    up_rows = carver.take<float*>(kColumns);
    total_bytes = carver.used();
  }

  /// Divides n_rows of so many tokens into pieces of almost equal height; returns it, a multiple of 32.
  int64_t divide(int64_t n_tokens, int64_t n_rows) const {
    const int64_t most = kFloats / n_tokens / 32 * 32, n_pieces = (n_rows + most - 1) / most;
    const int64_t height = ((n_rows + n_pieces - 1) / n_pieces + 31) / 32 * 32;
    for (int64_t i = 0; i < n_tokens; ++i) gate_rows[i] = gate + i * height, up_rows[i] = up + i * height;
    return height;
  }
};

/// A range of weight rows of one expert, of `expert_at` tasks each.
struct TaskGrid {
  int64_t rows_per_task, shared_rows_per_task, tasks_per_expert, shared_tasks, n_tasks;

  TaskGrid(int64_t n_active, int64_t expert_rows, int64_t expert_row_bytes, int64_t shared_rows,
           int64_t shared_row_bytes, int n_threads) {
    // Routed experts are many and small: tasks of an expert need not feed all threads by themselves.
    const int64_t sharing = std::max<int64_t>(1, n_active);
    rows_per_task = fast::rows_per_task(expert_rows * sharing, expert_row_bytes, n_threads);
    rows_per_task = std::min(rows_per_task, std::max<int64_t>(32, (expert_rows + 31) / 32 * 32));
    shared_rows_per_task = fast::rows_per_task(shared_rows, shared_row_bytes, n_threads);
    tasks_per_expert = expert_rows == 0 ? 0 : (expert_rows + rows_per_task - 1) / rows_per_task;
    shared_tasks = shared_rows == 0 ? 0 : (shared_rows + shared_rows_per_task - 1) / shared_rows_per_task;
    n_tasks = n_active * tasks_per_expert + shared_tasks;
  }
};

Workspace mixture_workspace(const Mixture& m, const MatmulKernels& kernels) {
  return {Layout(m, kernels, nullptr).total_bytes, Piece(nullptr).total_bytes};
}

/// Experts whose weights are on disk, asked for a stretch before they are multiplied: a disk that has many requests
/// before it reads several times as fast as one that waits for every page fault. An expert has two parts, gate with up
/// and down; the parts come in the order of their use.
class ReadAhead {
 public:
  ReadAhead(const Mixture& m, const ExpertGroups& groups, OpContext& c)
      : m_(m), groups_(groups), n_active_(c.reads_ahead && m.experts ? *groups.n_active : 0), c_(c) {}

  /// The first parts, by all threads together.
  void begin() {
    if (n_active_ == 0) return;
    for (int64_t part = c_.worker.index(); part < std::min(kParts, 2 * n_active_); part += c_.worker.count()) ask(part);
  }
  /// Expert number i of the active ones is multiplied now.
  void uses_gate_up(int64_t i) { ask(i + kParts); }
  void uses_down(int64_t i) { ask(n_active_ + i + kParts); }

 private:
  /// All parts of 16 experts: a token's. 0.1 GB of V2-Lite's, 0.4 GB of V3's.
  static constexpr int64_t kParts = 32;

  void ask(int64_t part) {
    if (part >= 2 * n_active_) return;
    const int64_t expert = groups_.active[part % n_active_];
    const auto read = [&](const Tensor& stack) {
      const Tensor matrix = stack.slab(expert);
      read_soon(matrix.data, matrix.size_bytes());
    };
    if (part < n_active_) {
      read(m_.experts->gate);
      read(m_.experts->up);
    } else {
      read(m_.experts->down);
    }
  }

  const Mixture& m_;
  const ExpertGroups& groups_;
  const int64_t n_active_;
  OpContext& c_;
};

void run_mixture(const Mixture& m, OpContext& c) {
  const MatmulKernels& kernels = *c.matmul;
  const Layout l(m, kernels, c.shared);
  const Piece results(c.own);
  const ExpertGroups groups = ExpertGroups::at(l.groups, m.n_experts(), m.n_routes());
  const int64_t n_tokens = m.n_tokens(), hidden_size = m.hidden_size();
  const Tensor* const gates[2] = {m.experts ? &m.experts->gate : nullptr, m.shared ? &m.shared->gate : nullptr};

  // 1. Group the routes (one thread, a few thousand integers) beside quantizing the activations.
  const bool few = m.n_hidden_rows() <= 64;  // one thread does more than that in the time two threads take to meet
  if (c.worker.index() == 0) groups.fill(m.expert_ids, m.n_routes(), m.n_experts());
  const auto quantize_token = [&](int64_t t, int64_t) {
    for (int i = 0; i < 4; ++i) {
      const GatedFfnWeights* w = i < 2 ? m.experts : m.shared;
      if (w == nullptr) continue;
      bool done = false;
      for (int j = 0; j < i; ++j) done = done || l.acts[j] == l.acts[i];
      if (done) continue;
      const DType type = i % 2 == 0 ? w->gate.dtype : w->up.dtype;
      kernels.quantize_act(type, m.x.row_as<float>(t), l.acts[i] + static_cast<size_t>(t) * l.act_bytes[i],
                           hidden_size);
    }
  };
  c.worker.share(n_tokens, 1, quantize_token);
  if (!few) c.worker.barrier();

  // 2. Addresses of each group's rows, in group order. Position p < routes is route order[p]; the rest are shared rows.
  const int64_t n_routes = m.n_routes();
  const auto place_rows = [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      const bool routed = p < n_routes;
      const int64_t row = routed ? groups.order[p] : p;
      const int64_t token = routed ? row / m.n_used : p - n_routes;
      for (int i = 0; i < 2; ++i) {
        const int slot = (routed ? 0 : 2) + i;
        l.act_rows[i * m.n_hidden_rows() + p] = l.acts[slot] + static_cast<size_t>(token) * l.act_bytes[slot];
      }
      l.down_rows[p] = l.down_acts + static_cast<size_t>(row) * l.down_act_bytes;
      l.output_rows[p] = l.outputs + row * hidden_size;
    }
  };
  if (!few) {
    c.worker.share(m.n_hidden_rows(), 64, place_rows);
  } else if (c.worker.index() == 0) {
    place_rows(0, m.n_hidden_rows());
  }
  c.worker.barrier();
  const int64_t n_active = m.experts ? *groups.n_active : 0;
  ReadAhead ahead(m, groups, c);
  ahead.begin();

  // A task: rows [begin, end) of a matrix of one network (an expert, or kShared) times the tokens of its group.
  constexpr int64_t kShared = -1;
  struct Task {
    int64_t expert, first, count, begin, end;
    int64_t active = 0;  // which of the active experts
    bool is_first() const { return expert != kShared && begin == 0; }
  };
  auto task_at = [&](const TaskGrid& grid, int64_t expert_rows, int64_t shared_rows, int64_t task) -> Task {
    // The shared network first: its tasks are the longest, and the short ones of the experts fill the end evenly.
    if (task < grid.shared_tasks) {
      const int64_t begin = task * grid.shared_rows_per_task;
      return {kShared, n_routes, n_tokens, begin, std::min(shared_rows, begin + grid.shared_rows_per_task)};
    }
    const int64_t active = (task - grid.shared_tasks) / grid.tasks_per_expert;
    const int64_t expert = groups.active[active];
    const int64_t begin = (task - grid.shared_tasks) % grid.tasks_per_expert * grid.rows_per_task;
    const int64_t first = groups.first[expert];
    return {expert, first, groups.first[expert + 1] - first, begin, std::min(expert_rows, begin + grid.rows_per_task),
            active};
  };
  // Calls fn(task, first weights of the thread's next task in the matrix that `matrix_of` names, or null) for every
  // task.
  auto each_task = [&](const TaskGrid& grid, int64_t expert_rows, int64_t shared_rows, auto&& matrix_of, auto&& fn) {
    c.worker.share_ahead(grid.n_tasks, 1, [&](int64_t begin, int64_t end, int64_t next_piece) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t next = task + 1 < end ? task + 1 : next_piece;
        const std::byte* next_w = nullptr;
        if (next < grid.n_tasks) {
          const Task following = task_at(grid, expert_rows, shared_rows, next);
          const Tensor matrix = matrix_of(following.expert);
          next_w = matrix.data + following.begin * matrix.strides_bytes[0];
        }
        fn(task_at(grid, expert_rows, shared_rows, task), next_w);
      }
    });
  };

  // 3. gate and up, then SiLU(gate) * up over the piece just made, which is still in this core's cache, quantized for
  // the down matrix: the activation format is local to blocks of 32.
  auto stride = [](const Tensor* t) { return t ? t->strides_bytes[static_cast<size_t>(t->shape.rank - 2)] : 0; };
  const TaskGrid gate_grid(n_active, m.expert_width(), stride(gates[0]), m.shared_width(), stride(gates[1]),
                           c.worker.count());
  auto gate_of = [&](int64_t expert) { return expert == kShared ? m.shared->gate : m.experts->gate.slab(expert); };
  each_task(gate_grid, m.expert_width(), m.shared_width(), gate_of, [&](const Task& t, const std::byte* next_w) {
    if (t.is_first()) ahead.uses_gate_up(t.active);
    const Tensor gate = gate_of(t.expert);
    const Tensor up = t.expert == kShared ? m.shared->up : m.experts->up.slab(t.expert);
    const DType down_type = t.expert == kShared ? m.shared->down.dtype : m.experts->down.dtype;
    const float clamp = t.expert == kShared ? m.shared_clamp : m.clamp;
    for (int64_t first = t.first, n; first < t.first + t.count; first += n) {
      n = std::min(t.first + t.count - first, Piece::kColumns);
      const int64_t height = results.divide(n, t.end - t.begin);
      for (int64_t begin = t.begin, rows; begin < t.end; begin += rows) {
        rows = std::min(t.end - begin, height);
        const std::byte *gate_w = gate.row(begin), *up_w = up.row(begin);
        const bool last = begin + rows == t.end;
        kernels.matmul(gate.dtype, {gate_w, gate.strides_bytes[0], 0, rows, hidden_size, l.act_rows + first,
                                    static_cast<int>(n), results.gate_rows, up_w});
        kernels.matmul(up.dtype,
                       {up_w, up.strides_bytes[0], 0, rows, hidden_size, l.act_rows + m.n_hidden_rows() + first,
                        static_cast<int>(n), results.up_rows, last ? next_w : gate.row(begin + rows)});
        const size_t act_offset = kernels.act_offset_bytes(down_type, begin);
        for (int64_t i = 0; i < n; ++i) {
          c.elements->silu_times(results.gate_rows[i], results.up_rows[i], clamp, rows);
          kernels.quantize_act(down_type, results.gate_rows[i],
                               static_cast<std::byte*>(const_cast<void*>(l.down_rows[first + i])) + act_offset, rows);
        }
      }
    }
  });
  c.worker.barrier();

  // 4. down.
  const TaskGrid down_grid(n_active, m.experts ? hidden_size : 0, m.experts ? stride(&m.experts->down) : 0,
                           m.shared ? hidden_size : 0, m.shared ? stride(&m.shared->down) : 0, c.worker.count());
  auto down_of = [&](int64_t expert) { return expert == kShared ? m.shared->down : m.experts->down.slab(expert); };
  each_task(down_grid, hidden_size, hidden_size, down_of, [&](const Task& t, const std::byte* next_w) {
    if (t.is_first()) ahead.uses_down(t.active);
    const Tensor down = down_of(t.expert);
    kernels.matmul(down.dtype, {down.data, down.strides_bytes[0], t.begin, t.end, down.dim(1), l.down_rows + t.first,
                                static_cast<int>(t.count), l.output_rows + t.first, next_w});
  });
  c.worker.barrier();

  // 5. Weighted sum over each token's experts, in order of choice, then the shared network.
  const int64_t columns = 256;
  const int64_t pieces = (hidden_size + columns - 1) / columns;
  c.worker.share(n_tokens * pieces, 4, [&](int64_t piece_begin, int64_t piece_end) {
    for (int64_t piece = piece_begin; piece < piece_end; ++piece) {
      const int64_t t = piece / pieces, d0 = piece % pieces * columns, d1 = std::min(hidden_size, d0 + columns);
      float* out = m.out.row_as<float>(t);
      const float* shared = m.shared ? l.outputs + (n_routes + t) * hidden_size : nullptr;
      for (int64_t d = d0; d < d1; ++d) out[d] = shared ? shared[d] : 0.0F;
      for (int64_t k = 0; k < m.n_used; ++k) {
        const float weight = m.expert_weights[t * m.n_used + k];
        const float* y = l.outputs + (t * m.n_used + k) * hidden_size;
        c.elements->add_scaled(y + d0, weight, out + d0, d1 - d0);
      }
    }
  });
}

Mixture mixture_of(const GatedFfnArgs& a) {
  return {a.x, a.out, nullptr, &a.weights, nullptr, nullptr, 0, kNoClamp, a.clamp};
}

Mixture mixture_of(const MoeFfnArgs& a) {
  return {a.x,
          a.out,
          &a.experts,
          a.shared.gate ? &a.shared : nullptr,
          a.expert_ids.as<int32_t>(),
          a.expert_weights.as<float>(),
          a.expert_ids.dim(1),
          a.clamp,
          a.shared_clamp};
}

}  // namespace

Workspace gated_ffn_workspace(const GatedFfnArgs& a, const MatmulKernels& kernels) {
  return mixture_workspace(mixture_of(a), kernels);
}
void gated_ffn(const GatedFfnArgs& a, OpContext& c) { run_mixture(mixture_of(a), c); }
Workspace moe_ffn_workspace(const MoeFfnArgs& a, const MatmulKernels& kernels) {
  return mixture_workspace(mixture_of(a), kernels);
}
void moe_ffn(const MoeFfnArgs& a, OpContext& c) { run_mixture(mixture_of(a), c); }

}  // namespace fathom::cpu::fast
