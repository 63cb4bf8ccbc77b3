#pragma once

#include "../simd.h"
#include "spec.h"

namespace tersegrad {
namespace {

#if defined(__SSE4_2__)
// The instruction takes three cycles and one can start each cycle, so three stretches run side by side and are joined
// by multiplying with the power of x that the stretches behind them stand for.
uint32_t crc32c(uint32_t crc, const void* data, size_t bytes) {
  constexpr size_t kStretch = 1024;
  constexpr uint32_t kOne = crc_zeros(kStretch), kTwo = crc_zeros(2 * kStretch);
  auto p = static_cast<const uint8_t*>(data);
  auto word = [](const uint8_t* at) {
    uint64_t value;
    memcpy(&value, at, sizeof value);
    return value;
  };
  uint64_t state = ~crc;
  for (; bytes >= 3 * kStretch; bytes -= 3 * kStretch, p += 3 * kStretch) {
    uint64_t a = state, b = 0, c = 0;
    for (size_t i = 0; i < kStretch; i += 8) {
      a = _mm_crc32_u64(a, word(p + i));
      b = _mm_crc32_u64(b, word(p + kStretch + i));
      c = _mm_crc32_u64(c, word(p + 2 * kStretch + i));
    }
    state = crc_multiply(static_cast<uint32_t>(a), kTwo) ^ crc_multiply(static_cast<uint32_t>(b), kOne) ^ c;
  }
  for (; bytes >= 8; bytes -= 8, p += 8) state = _mm_crc32_u64(state, word(p));
  for (; bytes > 0; --bytes, ++p) state = _mm_crc32_u8(static_cast<uint32_t>(state), *p);
  return ~static_cast<uint32_t>(state);
}
#else
uint32_t crc32c(uint32_t crc, const void* data, size_t bytes) {
  auto p = static_cast<const uint8_t*>(data);
  crc = ~crc;
  for (; bytes >= 8; bytes -= 8, p += 8) {
    uint32_t low, high;
    memcpy(&low, p, 4);
    memcpy(&high, p + 4, 4);
    low ^= crc;
    crc = kCrcTable.entry[7][low & 0xff] ^ kCrcTable.entry[6][low >> 8 & 0xff] ^ kCrcTable.entry[5][low >> 16 & 0xff] ^
          kCrcTable.entry[4][low >> 24] ^ kCrcTable.entry[3][high & 0xff] ^ kCrcTable.entry[2][high >> 8 & 0xff] ^
          kCrcTable.entry[1][high >> 16 & 0xff] ^ kCrcTable.entry[0][high >> 24];
  }
  for (; bytes > 0; --bytes, ++p) crc = (crc >> 8) ^ kCrcTable.entry[0][(crc ^ *p) & 0xffu];
  return ~crc;
}
#endif

}  // namespace
}  // namespace tersegrad
