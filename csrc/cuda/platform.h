// Where kernels run: on a device under nvcc, in the emulation under any other compiler.
#pragma once

#include <type_traits>

#include "../bits.h"
#include "geometry.h"

#ifdef __CUDACC__
#include <cuda_runtime.h>
#define TERSEGRAD_UNROLL _Pragma("unroll")  // so that an array indexed in the loop lives in registers
#else
#include "emulate.h"
#define TERSEGRAD_UNROLL
#endif

namespace tersegrad::cuda {

using Stream = void*;  // a cudaStream_t

constexpr uint32_t kWholeWarp = 0xffffffffu;

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), size_t grid, unsigned threads, Stream stream,
            const Arguments&... arguments) {
  if (grid == 0) return;
#ifdef __CUDACC__
  kernel<<<static_cast<unsigned>(grid), threads, 0, static_cast<cudaStream_t>(stream)>>>(Parameters(arguments)...);
#else
  (void)stream;
  emulation::run(static_cast<unsigned>(grid), threads, [&] { kernel(Parameters(arguments)...); });
#endif
}

}  // namespace tersegrad::cuda
