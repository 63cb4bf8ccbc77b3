#include "operation.h"

#include "../blocks.h"
#include "../levels/pack.h"

namespace tersegrad::smallfloat {

bool encode(const Entries& x, float* residual, DType dtype, const Layout& layout, const Noise* noise, uint8_t* body) {
  const Kernels& kernels = active();
  const int slot = small_slot(layout.format);
  const float most = kSmallFormats[slot].largest;
  const bool packed = small_bits(layout.format) == 4;
  const CodePacker packer(4);
  uint8_t* codes = body + layout.scale_bytes(x.count);
  LargestKey largest;
  for_each_chunk(x.count, layout.block_size, [&](size_t chunk_begin, size_t chunk_end) {
    float scratch[kLargestBlock];
    uint8_t unpacked[kLargestBlock];
    for_each_blocks(chunk_begin, chunk_end, layout.block_size, [&](size_t i, size_t n) {
      const float* a = float_entries(x, residual, i, n, scratch);
      uint32_t key = kernels.max_key[dtype_slot(DType::float32)](a, n);
      largest.add(key);
      if (!is_finite_key(key)) {  // the body is of no use, but defined
        put_scale(body, i / layout.block_size, 0);
        memset(codes + layout.code_bytes(i), 0, layout.code_bytes(n));
        return;
      }
      const float scale = small_scale(key, layout.format, most);
      put_scale(body, i / layout.block_size, scale);
      uint8_t* own = packed ? unpacked : codes + i;
      kernels.to_small[slot](a, n, small_inverse(key, scale, layout.format, most), noise, i, own);
      if (packed) packer.pack(own, n, codes + layout.code_bytes(i));
      if (residual == nullptr) return;
      kernels.from_small[slot](own, n, scale, scratch);
      if (dtype != DType::float32) kernels.round[dtype_slot(dtype)](scratch, n);
      kernels.subtract(residual + i, scratch, n);
    });
  });
  return largest.is_finite();
}

Fault check(const uint8_t* body, const Layout& layout, size_t n) {
  if (!scales_are_valid(body, layout.blocks(n))) return "a scale is negative, infinite or not a number";
  const uint64_t bits = n * static_cast<uint64_t>(small_bits(layout.format));
  return padding_is_zero(body + layout.scale_bytes(n), bits) ? nullptr : "padding bits after the codes are set";
}

void decode(const uint8_t* body, DType dtype, const Layout& layout, size_t n, size_t begin, const Output& out) {
  const uint8_t* scales = body + layout.scale_bytes(begin);
  const uint8_t* codes = body + layout.scale_bytes(n) + layout.code_bytes(begin);
  const int slot = small_slot(layout.format);
  const bool packed = small_bits(layout.format) == 4;
  const CodePacker packer(4);
  const Kernels& kernels = active();
  for_each_chunk(out.count, layout.block_size, [&](size_t chunk_begin, size_t chunk_end) {
    float scratch[kPiece];
    uint8_t unpacked[kPiece];
    for_each_blocks(chunk_begin, chunk_end, layout.block_size, [&](size_t block, size_t length) {
      const float scale = get_scale(scales, block / layout.block_size);
      for_each_piece(block, block + length, [&](size_t i, size_t count) {
        const bool direct = out.is_direct();
        float* values = direct ? static_cast<float*>(out.at(i)) : scratch;
        if (packed) packer.unpack(codes + layout.code_bytes(i), count, unpacked);
        kernels.from_small[slot](packed ? unpacked : codes + i, count, scale, values);
        if (dtype != DType::float32) kernels.round[dtype_slot(dtype)](values, count);
        if (!direct) out.emit(i, values, count);
      });
    });
  });
}

}  // namespace tersegrad::smallfloat
