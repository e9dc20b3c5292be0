#ifdef __x86_64__
#define FATHOM_ISA avx2
#include "core/quant/encoders.h"

namespace fathom::quant::avx2 {
constinit const Encoders encoders = make_encoders("avx2");
}
#endif
