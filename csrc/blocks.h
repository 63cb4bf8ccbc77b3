// What the blockwise codecs share: their scales, and the entries of a few blocks as float32.
#pragma once

#include "tensor.h"

namespace tersegrad {

// Finite, and with a clear sign bit: as bits, at most the largest finite float.
inline bool scales_are_valid(const uint8_t* scales, size_t blocks) {
  bool valid = true;
  for (size_t block = 0; block < blocks; ++block) valid &= bits_of(get_scale(scales, block)) <= kLargest;
  return valid;
}

// Blocks are taken a few at a time, or one by one where they are long; entries of 2 bytes are widened into scratch of
// this size.
constexpr size_t kLargestBlock = 64 * 1024;
inline size_t blocks_at_once(size_t block_size) { return std::max(block_size, kPiece / block_size * block_size); }

// Calls body(begin, length) over [begin, end) in steps of whole blocks.
template <class Body>
void for_each_blocks(size_t begin, size_t end, size_t step, Body&& body) {
  for (size_t i = begin; i < end; i += step) body(i, std::min(step, end - i));
}

// The entries of [i, i + n) as float32: x + residual, which the residual then holds, or x itself, widened into scratch
// if need be.
inline const float* float_entries(const Entries& x, float* residual, size_t i, size_t n, float* scratch) {
  const Kernels& kernels = active();
  if (residual != nullptr) {
    kernels.accumulate[dtype_slot(x.dtype)](x.at(i), residual + i, n);
    return residual + i;
  }
  if (x.dtype == DType::float32) return x.floats() + i;
  kernels.widen[dtype_slot(x.dtype)](x.at(i), scratch, n);
  return scratch;
}

}  // namespace tersegrad
