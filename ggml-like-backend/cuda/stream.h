// Names of the CUDA runtime that host headers need, without its headers.
#pragma once

struct CUstream_st;

namespace fathom::cuda {

using Stream = CUstream_st*;  ///< what the runtime calls cudaStream_t

}  // namespace fathom::cuda
