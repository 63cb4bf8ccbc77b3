// Base-3 digits and block scales of a whole tensor: docs/format.md, codec 8.
#pragma once

#include "../tensor.h"
#include "spec.h"

namespace tersegrad::ternary {

struct Layout {
  size_t block_size;  // entries, a multiple of 64

  size_t blocks(size_t n) const { return (n + block_size - 1) / block_size; }
  size_t scale_bytes(size_t n) const { return blocks(n) * sizeof(float); }
  // The digits of a block fill whole bytes.
  size_t block_bytes() const { return digit_bytes(block_size); }
  size_t digits_bytes(size_t n) const { return n / block_size * block_bytes() + digit_bytes(n % block_size); }
};

// As the functions of sign/operation.h. Entries below `threshold` times the mean magnitude of their block become zero.
bool encode(const Entries& x, float* residual, DType dtype, const Layout& layout, float threshold, uint8_t* body);
Fault check(const uint8_t* body, const Layout& layout, size_t n);
void decode(const uint8_t* body, DType dtype, const Layout& layout, size_t n, size_t begin, const Output& out);

}  // namespace tersegrad::ternary
