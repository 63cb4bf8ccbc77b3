// Blockwise quantization of a whole tensor: docs/format.md, codec 3.
#pragma once

#include "../tensor.h"

namespace tersegrad::quantize {

struct Layout {
  int bits;              // 8, 4 or 2
  size_t block_size;     // entries, a multiple of 64
  bool by_norm = false;  // the encoder's: the scale is made from the block's norm

  size_t blocks(size_t n) const { return (n + block_size - 1) / block_size; }
  size_t scale_bytes(size_t n) const { return blocks(n) * sizeof(float); }
  size_t code_bytes(size_t n) const { return (n * static_cast<size_t>(bits) + 7) / 8; }
};

// Writes scales and codes to body; noise null rounds to nearest. With a residual: a = x + residual, and residual
// becomes a minus what a payload of dtype `dtype` decodes to. False when an entry is not finite.
bool encode(const Entries& x, float* residual, DType dtype, const Layout& layout, const Noise* noise, uint8_t* body);

// What is wrong with a body of `n` entries, if anything; decode takes bodies that passed.
Fault check(const uint8_t* body, const Layout& layout, size_t n);
// The entries from `begin`, a multiple of the block size, of `n`: as many as `out` takes.
void decode(const uint8_t* body, DType dtype, const Layout& layout, size_t n, size_t begin, const Output& out);

}  // namespace tersegrad::quantize
