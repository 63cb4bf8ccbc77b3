// On the device: docs/format.md, codec 15. A warp codes 256 entries.
#pragma once

#include "../cuda/blocks.cuh"
#include "spec.h"

namespace tersegrad::cuda {

struct IntegersCall {
  Input in;
  DType dtype;
  IntegerGrid grid;
  RoundingNoise noise;
  uint8_t* codes;
  Header* header;
};

__device__ inline void store_integer(uint8_t* codes, int bits, size_t i, int32_t code) {
  if (bits == 32 && is_aligned(codes, 4)) {
    reinterpret_cast<int32_t*>(codes)[i] = code;
  } else if (bits == 16 && is_aligned(codes, 2)) {
    reinterpret_cast<int16_t*>(codes)[i] = static_cast<int16_t>(code);
  } else {
    put_integer(codes, bits, i, code);
  }
}

__device__ inline int32_t load_integer(const uint8_t* codes, int bits, size_t i) {
  if (bits == 32 && is_aligned(codes, 4)) return reinterpret_cast<const int32_t*>(codes)[i];
  if (bits == 16 && is_aligned(codes, 2)) return reinterpret_cast<const int16_t*>(codes)[i];
  return get_integer(codes, bits, i);
}

template <int bits>
static __global__ void __launch_bounds__(kThreads) encode_integers(IntegersCall call) {
  if (verdict_before(*call.header) != kSent) return;
  const Block part(static_cast<size_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp, kStride, call.in.n);
  if (part.length == 0) return;
  BlockEntries<ForNoise> entries(call.in, part, true);
  entries.read(0);
  uint32_t noise[kPerLane], key = 0;
  lane_noise(call.noise, call.noise.step.get(), part.first, noise);
  TERSEGRAD_UNROLL
  for (int j = 0; j < kPerLane; ++j) {
    if (entries.place(j) >= part.length) continue;
    key = larger(key, key_of(entries.value[j]));
    const float units = to_grid(entries.value[j], call.grid);
    const int32_t code = call.noise.stochastic ? stochastic_integer(units, noise[j]) : nearest_integer(units);
    store_integer(call.codes, bits, part.first + entries.place(j), code);
    entries.settle(0, j, round_to(call.dtype, integer_entry(code, call.grid.scale)));
  }
  if (!is_finite_key(key)) atomicOr(&call.header->late, 1);
}

inline void launch_integers(const IntegersCall& call, int bits, Stream stream) {
  auto kernel = bits == 8 ? encode_integers<8> : bits == 16 ? encode_integers<16> : encode_integers<32>;
  launch(kernel, (call.in.n + kWarps * kStride - 1) / (kWarps * kStride), kThreads, stream, call);
}

}  // namespace tersegrad::cuda
