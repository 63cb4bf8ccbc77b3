#include "operation.h"

#include "../blocks.h"
#include "spec.h"

namespace tersegrad::sign {

bool encode(const Entries& x, float* residual, DType dtype, const Layout& layout, uint8_t* body) {
  const Kernels& kernels = active();
  uint8_t* bits = body + layout.scale_bytes(x.count);
  LargestKey largest;
  for_each_chunk(x.count, layout.block_size, [&](size_t chunk_begin, size_t chunk_end) {
    float scratch[kLargestBlock];
    for (size_t i = chunk_begin; i < chunk_end; i += layout.block_size) {
      size_t n = std::min(chunk_end - i, layout.block_size);
      const float* a = float_entries(x, residual, i, n, scratch);
      SignSummary summary = kernels.pack_signs(a, n, bits + i / 8);
      largest.add(summary.max_key);
      float scale = sign_scale(summary.sum, n);
      put_scale(body, i / layout.block_size, scale);
      if (residual == nullptr) continue;
      kernels.unpack_signs(bits + i / 8, round_to(dtype, scale), scratch, n);
      kernels.subtract(residual + i, scratch, n);
    }
  });
  return largest.is_finite();
}

Fault check(const uint8_t* body, const Layout& layout, size_t n) {
  if (!scales_are_valid(body, layout.blocks(n))) return "a scale is negative, infinite or not a number";
  return padding_is_zero(body + layout.scale_bytes(n), n) ? nullptr : "padding bits after the signs are set";
}

void decode(const uint8_t* body, DType dtype, const Layout& layout, size_t n, size_t begin, const Output& out) {
  const uint8_t* scales = body + layout.scale_bytes(begin);
  const uint8_t* bits = body + layout.scale_bytes(n) + begin / 8;
  const Kernels& kernels = active();
  for_each_chunk(out.count, layout.block_size, [&](size_t chunk_begin, size_t chunk_end) {
    for (size_t block = chunk_begin; block < chunk_end; block += layout.block_size) {
      float scale = round_to(dtype, get_scale(scales, block / layout.block_size));
      for_each_piece(block, std::min(chunk_end, block + layout.block_size), [&](size_t i, size_t length) {
        float scratch[kPiece];
        bool direct = out.is_direct();
        float* values = direct ? static_cast<float*>(out.at(i)) : scratch;
        kernels.unpack_signs(bits + i / 8, scale, values, length);
        if (!direct) out.emit(i, values, length);
      });
    }
  });
}

}  // namespace tersegrad::sign
