// Whether the compiled kernels are for the current device.
#pragma once

namespace fathom::cuda {

bool kernels_run_here();

}  // namespace fathom::cuda
