#ifdef __x86_64__
#define FATHOM_ISA avx512
#include "core/quant/encoders.h"

namespace fathom::quant::avx512 {
constinit const Encoders encoders = make_encoders("avx512");
}
#endif
