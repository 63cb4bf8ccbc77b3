#include "operation.h"

#include "../blocks.h"
#include "spec.h"

namespace tersegrad::quantize {

bool encode(const Entries& x, float* residual, DType dtype, const Layout& layout, const Noise* noise, uint8_t* body) {
  const Kernels& kernels = active();
  const int from = dtype_slot(x.dtype), width = bits_slot(layout.bits);
  uint8_t* codes = body + layout.scale_bytes(x.count);
  LargestKey largest;
  for_each_chunk(x.count, layout.block_size, [&](size_t chunk_begin, size_t chunk_end) {
    for (size_t begin = chunk_begin; begin < chunk_end; begin += layout.block_size) {
      size_t end = std::min(chunk_end, begin + layout.block_size);
      uint32_t key = residual ? kernels.accumulate[from](x.at(begin), residual + begin, end - begin)
                              : kernels.max_key[from](x.at(begin), end - begin);
      largest.add(key);
      if (!is_finite_key(key)) key = 0;
      float scale = quantize_scale(key, layout.bits), inverse = quantize_inverse(key, layout.bits);
      put_scale(body, begin / layout.block_size, scale);
      for_each_piece(begin, end, [&](size_t i, size_t n) {
        float scratch[kPiece];
        const float* a = residual ? residual + i : float_entries(x, i, n, scratch);
        uint8_t* piece = codes + i * static_cast<size_t>(layout.bits) / 8;
        kernels.quantize[width](a, n, inverse, noise, i, piece);
        if (residual == nullptr) return;
        kernels.dequantize[width](piece, scale, scratch, n);
        if (needs_rounding(dtype, scale)) kernels.round[dtype_slot(dtype)](scratch, n);
        kernels.subtract(residual + i, scratch, n);
      });
    }
  });
  return largest.is_finite();
}

Fault check(const uint8_t* body, const Layout& layout, size_t n) {
  if (!scales_are_valid(body, layout.blocks(n))) return "a scale is negative, infinite or not a number";
  bool padded = padding_is_zero(body + layout.scale_bytes(n), n * static_cast<size_t>(layout.bits));
  return padded ? nullptr : "padding bits after the codes are set";
}

void decode(const uint8_t* body, DType dtype, const Layout& layout, const Output& out) {
  const size_t n = out.count;
  const uint8_t* codes = body + layout.scale_bytes(n);
  const Kernels& kernels = active();
  const int width = bits_slot(layout.bits);
  for_each_chunk(n, layout.block_size, [&](size_t chunk_begin, size_t chunk_end) {
    for (size_t begin = chunk_begin; begin < chunk_end; begin += layout.block_size) {
      float scale = get_scale(body, begin / layout.block_size);
      bool rounding = needs_rounding(dtype, scale);
      for_each_piece(begin, std::min(chunk_end, begin + layout.block_size), [&](size_t i, size_t length) {
        float scratch[kPiece];
        bool direct = out.is_plain();
        float* values = direct ? static_cast<float*>(out.at(i)) : scratch;
        kernels.dequantize[width](codes + i * static_cast<size_t>(layout.bits) / 8, scale, values, length);
        if (rounding) kernels.round[dtype_slot(dtype)](values, length);
        if (!direct) out.emit(i, values, length);
      });
    }
  });
}

}  // namespace tersegrad::quantize
