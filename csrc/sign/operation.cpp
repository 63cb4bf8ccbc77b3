#include "operation.h"

#include "../blocks.h"
#include "spec.h"

namespace tersegrad::sign {

// A block is summed in one go, so 2-byte entries are widened into a buffer of a whole block.
constexpr size_t kLargestBlock = 64 * 1024;

bool encode(const Entries& x, float* residual, DType dtype, const Layout& layout, uint8_t* body) {
  const Kernels& kernels = active();
  const int from = dtype_slot(x.dtype);
  uint8_t* bits = body + layout.scale_bytes(x.count);
  LargestKey largest;
  for_each_chunk(x.count, layout.block_size, [&](size_t chunk_begin, size_t chunk_end) {
    for (size_t begin = chunk_begin; begin < chunk_end; begin += layout.block_size) {
      size_t n = std::min(chunk_end - begin, layout.block_size);
      float widened[kLargestBlock];
      const float* a;
      if (residual != nullptr) {
        largest.add(kernels.accumulate[from](x.at(begin), residual + begin, n));
        a = residual + begin;
      } else {
        largest.add(kernels.max_key[from](x.at(begin), n));
        a = float_entries(x, begin, n, widened);
      }
      float scale = sign_scale(kernels.sum_magnitude(a, n), n);
      put_scale(body, begin / layout.block_size, scale);
      kernels.pack_signs(a, n, bits + begin / 8);
      if (residual == nullptr) continue;
      kernels.unpack_signs(bits + begin / 8, round_to(dtype, scale), widened, n);
      kernels.subtract(residual + begin, widened, n);
    }
  });
  return largest.is_finite();
}

Fault check(const uint8_t* body, const Layout& layout, size_t n) {
  if (!scales_are_valid(body, layout.blocks(n))) return "a scale is negative, infinite or not a number";
  return padding_is_zero(body + layout.scale_bytes(n), n) ? nullptr : "padding bits after the signs are set";
}

void decode(const uint8_t* body, DType dtype, const Layout& layout, const Output& out) {
  const size_t n = out.count;
  const uint8_t* bits = body + layout.scale_bytes(n);
  const Kernels& kernels = active();
  for_each_chunk(n, layout.block_size, [&](size_t chunk_begin, size_t chunk_end) {
    for (size_t begin = chunk_begin; begin < chunk_end; begin += layout.block_size) {
      float scale = round_to(dtype, get_scale(body, begin / layout.block_size));
      for_each_piece(begin, std::min(chunk_end, begin + layout.block_size), [&](size_t i, size_t length) {
        float scratch[kPiece];
        bool direct = out.is_plain();
        float* values = direct ? static_cast<float*>(out.at(i)) : scratch;
        kernels.unpack_signs(bits + i / 8, scale, values, length);
        if (!direct) out.emit(i, values, length);
      });
    }
  });
}

}  // namespace tersegrad::sign
