// CRC-32C (Castagnoli, reflected). The register is a polynomial over GF(2) whose highest power is the lowest bit.
#pragma once

#include "../bits.h"

namespace tersegrad {

constexpr uint32_t kCrcPolynomial = 0x82F63B78u;

constexpr uint32_t crc_shift(uint32_t crc) { return (crc >> 1) ^ (crc & 1u ? kCrcPolynomial : 0u); }

// table[j][b] is byte b followed by j zero bytes: eight bytes are then eight look-ups ("slicing by 8").
struct CrcTable {
  uint32_t entry[8][256];
  constexpr CrcTable() : entry() {
    for (uint32_t byte = 0; byte < 256; ++byte) {
      uint32_t crc = byte;
      for (int bit = 0; bit < 8; ++bit) crc = crc_shift(crc);
      entry[0][byte] = crc;
    }
    for (int j = 1; j < 8; ++j) {
      for (uint32_t byte = 0; byte < 256; ++byte) {
        uint32_t crc = entry[j - 1][byte];
        entry[j][byte] = (crc >> 8) ^ entry[0][crc & 0xffu];
      }
    }
  }
};
constexpr CrcTable kCrcTable;

// a * b modulo the polynomial.
constexpr uint32_t crc_multiply(uint32_t a, uint32_t b) {
  uint32_t product = 0;
  for (int bit = 31; bit >= 0; --bit) {
    if (a >> bit & 1u) product ^= b;
    b = crc_shift(b);
  }
  return product;
}

// x^(8 * bytes): multiplying a register by it appends that many zero bytes.
constexpr uint32_t crc_zeros(uint64_t bytes) {
  uint32_t result = 0x80000000u, power = 0x00800000u;  // 1 and x^8
  for (; bytes != 0; bytes >>= 1) {
    if (bytes & 1) result = crc_multiply(result, power);
    power = crc_multiply(power, power);
  }
  return result;
}

}  // namespace tersegrad
