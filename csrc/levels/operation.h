// Values on levels that are fitted to each block, of a whole tensor: docs/format.md, codec 11.
#pragma once

#include "../tensor.h"
#include "spec.h"

namespace tersegrad::levels {

struct Layout {
  int bits = 4;                       // 2 to 8
  size_t block_size = 256;            // entries, a multiple of 64
  Choice choice = Choice::automatic;  // the encoder's; each block states what was taken

  size_t blocks(size_t n) const { return (n + block_size - 1) / block_size; }
  size_t bounds_bytes(size_t n) const { return blocks(n) * sizeof(uint32_t); }
  size_t code_bytes(size_t n) const { return (n * static_cast<size_t>(bits) + 7) / 8; }
  size_t body_bytes(size_t n) const { return bounds_bytes(n) + code_bytes(n); }
};

// As the functions of quantize.
bool encode(const Entries& x, float* residual, DType dtype, const Layout& layout, uint8_t* body);
Fault check(const uint8_t* body, const Layout& layout, size_t n);
void decode(const uint8_t* body, DType dtype, const Layout& layout, size_t n, size_t begin, const Output& out);

}  // namespace tersegrad::levels
