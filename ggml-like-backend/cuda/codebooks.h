// Device copies of the tables of core/quant/codebooks.h; kernels for IQ types alone look at them.
#pragma once

#include <cstdint>

namespace fathom::cuda {

struct Codebooks {
  const uint64_t* iq2_xxs;
  const uint64_t* iq2_xs;
  const uint64_t* iq2_s;
  const uint32_t* iq3_xxs;
  const uint32_t* iq3_s;
  const uint64_t* iq1;
};

}  // namespace fathom::cuda
