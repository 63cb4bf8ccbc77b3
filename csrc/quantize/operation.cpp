#include "operation.h"

#include "../blocks.h"
#include "spec.h"

namespace tersegrad::quantize {

bool encode(const Entries& x, float* residual, DType dtype, const Layout& layout, const Noise* noise, uint8_t* body) {
  const Kernels& kernels = active();
  const int width = bits_slot(layout.bits);
  uint8_t* codes = body + layout.scale_bytes(x.count);
  LargestKey largest;
  for_each_chunk(x.count, layout.block_size, [&](size_t chunk_begin, size_t chunk_end) {
    float scratch[kLargestBlock];
    uint32_t key = 0;
    size_t step = residual ? layout.block_size : blocks_at_once(layout.block_size);
    for_each_blocks(chunk_begin, chunk_end, step, [&](size_t i, size_t n) {
      uint8_t* scales = body + layout.scale_bytes(i);
      const float* a = float_entries(x, residual, i, n, scratch);
      float* lost = residual != nullptr && dtype == DType::float32 ? residual + i : nullptr;
      key = std::max(key, kernels.quantize[width](a, n, layout.block_size, layout.by_norm, noise, i, scales,
                                                  codes + layout.code_bytes(i), lost));
      if (residual == nullptr || lost != nullptr) return;
      kernels.dequantize[width](codes + layout.code_bytes(i), scales, layout.block_size, scratch, n);
      kernels.round[dtype_slot(dtype)](scratch, n);
      kernels.subtract(residual + i, scratch, n);
    });
    largest.add(key);
  });
  return largest.is_finite();
}

Fault check(const uint8_t* body, const Layout& layout, size_t n) {
  if (!scales_are_valid(body, layout.blocks(n))) return "a scale is negative, infinite or not a number";
  bool padded = padding_is_zero(body + layout.scale_bytes(n), n * static_cast<size_t>(layout.bits));
  return padded ? nullptr : "padding bits after the codes are set";
}

void decode(const uint8_t* body, DType dtype, const Layout& layout, size_t n, size_t begin, const Output& out) {
  const uint8_t* scales = body + layout.scale_bytes(begin);
  const uint8_t* codes = body + layout.scale_bytes(n) + layout.code_bytes(begin);
  const Kernels& kernels = active();
  const int width = bits_slot(layout.bits);
  for_each_chunk(out.count, layout.block_size, [&](size_t chunk_begin, size_t chunk_end) {
    float scratch[kLargestBlock];
    for_each_blocks(chunk_begin, chunk_end, blocks_at_once(layout.block_size), [&](size_t i, size_t length) {
      float* values = out.is_direct() ? static_cast<float*>(out.at(i)) : scratch;
      kernels.dequantize[width](codes + layout.code_bytes(i), scales + layout.scale_bytes(i), layout.block_size, values,
                                length);
      if (dtype != DType::float32) kernels.round[dtype_slot(dtype)](values, length);
      if (!out.is_direct()) out.emit(i, values, length);
    });
  });
}

}  // namespace tersegrad::quantize
