#include "operation.h"

#include "../blocks.h"

namespace tersegrad::integers {
namespace {

// The noise of 128 entries comes from one call.
constexpr size_t kUnit = 128;

}  // namespace

bool encode(const Entries& x, float* residual, DType dtype, const Layout& layout, const Noise* noise, uint8_t* body) {
  const Kernels& kernels = active();
  const int width = integer_slot(layout.bits);
  LargestKey largest;
  for_each_chunk(x.count, kUnit, [&](size_t chunk_begin, size_t chunk_end) {
    uint32_t key = 0;
    for_each_piece(chunk_begin, chunk_end, [&](size_t i, size_t n) {
      float scratch[kPiece];
      uint8_t* codes = body + layout.code_bytes(i);
      const float* a = float_entries(x, residual, i, n, scratch);
      float* lost = residual != nullptr && dtype == DType::float32 ? residual + i : nullptr;
      key = std::max(key, kernels.to_integers[width](a, n, layout.grid, noise, i, codes, lost));
      if (residual == nullptr || lost != nullptr) return;
      kernels.from_integers[width](codes, layout.grid.scale, scratch, n);
      kernels.round[dtype_slot(dtype)](scratch, n);
      kernels.subtract(residual + i, scratch, n);
    });
    largest.add(key);
  });
  return largest.is_finite();
}

void decode(const uint8_t* body, DType dtype, const Layout& layout, size_t begin, const Output& out) {
  const Kernels& kernels = active();
  const int width = integer_slot(layout.bits);
  for_each_chunk(out.count, 1, [&](size_t chunk_begin, size_t chunk_end) {
    for_each_piece(chunk_begin, chunk_end, [&](size_t i, size_t n) {
      float scratch[kPiece];
      float* values = out.is_direct() ? static_cast<float*>(out.at(i)) : scratch;
      kernels.from_integers[width](body + layout.code_bytes(begin + i), layout.grid.scale, values, n);
      if (dtype != DType::float32) kernels.round[dtype_slot(dtype)](values, n);
      if (!out.is_direct()) out.emit(i, values, n);
    });
  });
}

}  // namespace tersegrad::integers
