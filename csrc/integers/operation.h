// A whole tensor on a shared grid of integers: docs/format.md, codec 15.
#pragma once

#include "../tensor.h"
#include "spec.h"

namespace tersegrad::integers {

struct Layout {
  int bits;  // of a code on the wire: 8, 16 or 32
  IntegerGrid grid;

  size_t code_bytes(size_t n) const { return n * static_cast<size_t>(bits) / 8; }
};

// Writes the codes to body; noise null rounds to nearest. With a residual: a = x + residual, and residual becomes a
// minus what a payload of dtype `dtype` decodes to, what the limit cut off included. False when an entry is not finite.
bool encode(const Entries& x, float* residual, DType dtype, const Layout& layout, const Noise* noise, uint8_t* body);

// The entries from `begin` on, as many as `out` takes. Every code is valid: sums use the whole width.
void decode(const uint8_t* body, DType dtype, const Layout& layout, size_t begin, const Output& out);

}  // namespace tersegrad::integers
