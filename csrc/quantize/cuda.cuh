// On the device: docs/format.md, codec 3.
#pragma once

#include "../cuda/scaled.cuh"
#include "spec.h"

namespace tersegrad::cuda {

template <int bits, bool by_norm>
struct QuantizeCoder {
  static constexpr int kBits = bits;
  static constexpr bool kByNorm = by_norm;
  float scale, inverse;

  __device__ explicit QuantizeCoder(uint32_t key)
      : scale(quantize_scale(key, bits)), inverse(quantize_inverse(key, bits)) {}
  __device__ uint32_t code(float value, uint32_t noise, bool) const {
    return static_cast<uint32_t>(quantize_entry(value, inverse, noise));
  }
  __device__ float entry(uint32_t code) const { return dequantize_entry(static_cast<int32_t>(code), scale); }
};

template <bool by_norm>
void launch_quantize_by(const ScaledCall& call, int bits, Stream stream) {
  if (bits == 8) {
    launch_scaled<QuantizeCoder<8, by_norm>>(call, stream);
  } else if (bits == 4) {
    launch_scaled<QuantizeCoder<4, by_norm>>(call, stream);
  } else {
    launch_scaled<QuantizeCoder<2, by_norm>>(call, stream);
  }
}

inline void launch_quantize(const ScaledCall& call, int bits, bool by_norm, Stream stream) {
  by_norm ? launch_quantize_by<true>(call, bits, stream) : launch_quantize_by<false>(call, bits, stream);
}

}  // namespace tersegrad::cuda
