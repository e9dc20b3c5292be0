#define FATHOM_ISA portable
#include "core/quant/encoders.h"

namespace fathom::quant {

constinit const Encoders portable::encoders = portable::make_encoders("portable");

const EncoderList& usable_encoders() {
  static const EncoderList list = [] {
    EncoderList l{};
#ifdef __x86_64__
    const bool has_avx2 = __builtin_cpu_supports("avx2");
    if (has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512bw"))
      l.sets[l.n++] = &avx512::encoders;
    if (has_avx2) l.sets[l.n++] = &avx2::encoders;
#endif
    l.sets[l.n++] = &portable::encoders;
    return l;
  }();
  return list;
}

}  // namespace fathom::quant
