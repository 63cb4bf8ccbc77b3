// A scale for each block and a small float for each entry, of a whole tensor: docs/format.md, codecs 12 to 14.
#pragma once

#include "../tensor.h"
#include "spec.h"

namespace tersegrad::smallfloat {

struct Layout {
  SmallFloat format = SmallFloat::natural;
  size_t block_size = 256;  // entries, a multiple of 64

  size_t blocks(size_t n) const { return (n + block_size - 1) / block_size; }
  size_t scale_bytes(size_t n) const { return blocks(n) * sizeof(float); }
  size_t code_bytes(size_t n) const { return small_bits(format) == 8 ? n : (n + 1) / 2; }
  size_t body_bytes(size_t n) const { return scale_bytes(n) + code_bytes(n); }
};

// As the functions of quantize.
bool encode(const Entries& x, float* residual, DType dtype, const Layout& layout, const Noise* noise, uint8_t* body);
Fault check(const uint8_t* body, const Layout& layout, size_t n);
void decode(const uint8_t* body, DType dtype, const Layout& layout, size_t n, size_t begin, const Output& out);

}  // namespace tersegrad::smallfloat
