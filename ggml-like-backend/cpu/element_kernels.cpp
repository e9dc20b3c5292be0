#include "cpu/element_kernels.h"

#include "core/error.h"

namespace fathom::cpu {

namespace avx2 {
extern const ElementKernels elements;
}
namespace avx512 {
extern const ElementKernels elements;
}

const ElementKernels* element_kernels(std::string_view isa) {
  if (isa == "avx512") return &avx512::elements;
  FATHOM_CHECK(isa == "avx2" || isa == "avx_vnni", "no element kernels for " + std::string(isa));
  return &avx2::elements;
}

}  // namespace fathom::cpu
