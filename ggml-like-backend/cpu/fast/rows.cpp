// Row-wise operations over the element kernels.
#include "cpu/fast/fast.h"

namespace fathom::cpu::fast {

void add(const AddArgs& a, OpContext& c) {
  c.worker.share(a.out.dim(0), 4, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t)
      c.elements->add(a.a.row_as<float>(t), a.b.row_as<float>(t), a.out.row_as<float>(t), a.out.dim(1));
  });
}

void rms_norm(const RmsNormArgs& a, OpContext& c) {
  const float* weight = a.weight ? a.weight.as<float>() : nullptr;
  c.worker.share(a.x.dim(0), 4, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      c.elements->rms_norm(a.x.row_as<float>(t), weight, a.eps, a.out.row_as<float>(t), a.x.dim(1));
    }
  });
}

}  // namespace fathom::cpu::fast
