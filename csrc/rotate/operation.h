// Rotated blocks of a whole tensor: docs/format.md, codec 10.
#pragma once

#include "../tensor.h"

namespace tersegrad::rotate {

struct Layout {
  int bits;           // 1 to 4
  size_t block_size;  // entries, a power of two from 64 to 65536
  size_t kept;        // of a whole block; 0 for all

  size_t blocks(size_t n) const { return (n + block_size - 1) / block_size; }
  size_t scale_bytes(size_t n) const { return blocks(n) * sizeof(float); }
  // How many entries of a block of `length` are sent; their codes fill whole bytes.
  size_t kept_of(size_t length) const {
    if (kept == 0 || length == 0) return length;
    return std::max<size_t>(1, (length * kept + block_size / 2) / block_size);
  }
  size_t block_bytes(size_t length) const { return (kept_of(length) * static_cast<size_t>(bits) + 7) / 8; }
  size_t code_bytes(size_t n) const { return n / block_size * block_bytes(block_size) + block_bytes(n % block_size); }
};

// As the functions of quantize/operation.h. The noise gives the signs, and the entries that are sent where not all are.
bool encode(const Entries& x, float* residual, DType dtype, const Layout& layout, bool unbiased, const Noise& noise,
            uint8_t* body);
Fault check(const uint8_t* body, const Layout& layout, size_t n);
void decode(const uint8_t* body, DType dtype, const Layout& layout, const Noise& noise, size_t n, size_t begin,
            const Output& out);

}  // namespace tersegrad::rotate
