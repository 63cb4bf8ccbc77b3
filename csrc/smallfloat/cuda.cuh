// On the device: docs/format.md, codecs 12 to 14.
#pragma once

#include "../cuda/scaled.cuh"
#include "spec.h"

namespace tersegrad::cuda {

template <SmallFloat kind>
struct SmallCoder {
  static constexpr int kBits = small_bits(kind);
  static constexpr bool kByNorm = false;
  float scale, inverse;

  __device__ explicit SmallCoder(uint32_t key) {
    constexpr SmallFormat format = kSmallFormats[static_cast<int>(kind)];
    scale = small_scale(key, kind, format.largest);
    inverse = small_inverse(key, scale, kind, format.largest);
  }
  __device__ uint32_t code(float value, uint32_t noise, bool stochastic) const {
    if constexpr (kind == SmallFloat::nf4) {
      return normal_code(value, inverse);
    } else {
      constexpr SmallFormat format = kSmallFormats[static_cast<int>(kind)];
      const uint32_t added = stochastic ? small_noise(noise, format.dropped) : small_half(format.dropped);
      return small_code(value, inverse, added, format);
    }
  }
  __device__ float entry(uint32_t code) const {
    if constexpr (kind == SmallFloat::nf4) {
      return normal_entry(code, scale);
    } else {
      constexpr SmallFormat format = kSmallFormats[static_cast<int>(kind)];
      return small_entry(code, scale, format);
    }
  }
};

inline void launch_small(const ScaledCall& call, SmallFloat kind, Stream stream) {
  switch (kind) {
    case SmallFloat::natural:
      return launch_scaled<SmallCoder<SmallFloat::natural>>(call, stream);
    case SmallFloat::e4m3:
      return launch_scaled<SmallCoder<SmallFloat::e4m3>>(call, stream);
    case SmallFloat::e5m2:
      return launch_scaled<SmallCoder<SmallFloat::e5m2>>(call, stream);
    default:
      return launch_scaled<SmallCoder<SmallFloat::nf4>>(call, stream);
  }
}

}  // namespace tersegrad::cuda
