// Operations that treat each row by itself: embedding lookup, row choice, sum, norms.
#include <algorithm>
#include <cmath>

#include "core/quant/dequantize.h"
#include "cpu/reference/reference.h"

namespace fathom::cpu::reference {

void embed_rows(const EmbedRowsArgs& a, OpContext& c) {
  c.worker.share(a.ids.dim(0), 4, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      float* out = a.out.row_as<float>(t);
      const int64_t n = a.table.dim(1);
      dequantize_row(a.table.dtype, a.table.row(a.ids.as<int32_t>()[t]), out, n);
      for (int copy = 1; copy < a.copies; ++copy) std::copy_n(out, n, out + copy * n);
    }
  });
}

void take_rows(const TakeRowsArgs& a, OpContext& c) {
  c.worker.share(a.rows.dim(0), 4, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      std::copy_n(a.x.row_as<float>(a.rows.as<int32_t>()[p]), a.x.dim(1), a.out.row_as<float>(p));
    }
  });
}

void concat_rows(const ConcatRowsArgs& a, OpContext& c) {
  const int64_t n_a = a.a.dim(1), n_b = a.b.dim(1);
  c.worker.share(a.out.dim(0), 4, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      std::copy_n(a.a.row_as<float>(t), n_a, a.out.row_as<float>(t));
      std::copy_n(a.b.row_as<float>(t), n_b, a.out.row_as<float>(t) + n_a);
    }
  });
}

void add(const AddArgs& a, OpContext& c) {
  c.worker.share(a.out.dim(0), 4, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const float* x = a.a.row_as<float>(t);
      const float* y = a.b.row_as<float>(t);
      float* out = a.out.row_as<float>(t);
      for (int64_t i = 0; i < a.out.dim(1); ++i) out[i] = x[i] + y[i];
    }
  });
}

void rms_norm(const RmsNormArgs& a, OpContext& c) {
  const int64_t n = a.x.dim(1);
  const float* weight = a.weight ? a.weight.as<float>() : nullptr;
  c.worker.share(a.x.dim(0), 4, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const float* x = a.x.row_as<float>(t);
      float* out = a.out.row_as<float>(t);
      double squares = 0;
      for (int64_t i = 0; i < n; ++i) squares += static_cast<double>(x[i]) * x[i];
      const float scale =
          static_cast<float>(1.0 / std::sqrt(squares / static_cast<double>(n) + static_cast<double>(a.eps)));
      for (int64_t i = 0; i < n; ++i) out[i] = x[i] * scale * (weight ? weight[i] : 1.0F);
    }
  });
}

void layer_norm(const LayerNormArgs& a, OpContext& c) {
  const int64_t n = a.x.dim(1);
  c.worker.share(a.x.dim(0), 4, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const float* x = a.x.row_as<float>(t);
      float* out = a.out.row_as<float>(t);
      double sum = 0, squares = 0;
      for (int64_t i = 0; i < n; ++i) sum += static_cast<double>(x[i]);
      const double mean = sum / static_cast<double>(n);
      for (int64_t i = 0; i < n; ++i) {
        const double d = static_cast<double>(x[i]) - mean;
        squares += d * d;
      }
      const double scale = 1.0 / std::sqrt(squares / static_cast<double>(n) + static_cast<double>(a.eps));
      for (int64_t i = 0; i < n; ++i) {
        const double normed = (static_cast<double>(x[i]) - mean) * scale;
        out[i] = static_cast<float>(normed * static_cast<double>(a.weight.as<float>()[i]) +
                                    static_cast<double>(a.bias.as<float>()[i]));
      }
    }
  });
}

}  // namespace fathom::cpu::reference
