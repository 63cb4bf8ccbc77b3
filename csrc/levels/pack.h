// Codes of one byte each, packed to `bits` bits side by side, low bit first, and back: eight codes fill `bits` bytes.
#pragma once

#include "../bits.h"

namespace tersegrad {

// The low `width` bits of every `lane` bits.
TG_SPEC uint64_t lane_bits(int width, int lane) {
  uint64_t mask = 0;
  for (int at = 0; at < 64; at += lane) mask |= ((uint64_t{1} << width) - 1) << at;
  return mask;
}

// Code `i`, which may lie in two bytes.
TG_SPEC uint32_t packed_code(const uint8_t* packed, int bits, size_t i) {
  const size_t bit = i * static_cast<size_t>(bits), last = (bit + static_cast<size_t>(bits) - 1) / 8;
  uint32_t word = packed[bit / 8];
  if (last != bit / 8) word |= static_cast<uint32_t>(packed[last]) << 8;
  return word >> (bit % 8) & ((1u << bits) - 1);
}

// Neighbours meet in three steps: of bytes, of pairs, of fours. With three bits, a code being abc:
//   00000abc 00000def 00000ghi 00000jkl    bytes, the highest first
//   0000000000abcdef 0000000000ghijkl      after the first step
class CodePacker {
 public:
  explicit CodePacker(int bits) : bits_(bits) {
    for (int step = 0; step < 3; ++step) {
      low_[step] = lane_bits(bits << step, 16 << step);
      high_[step] = low_[step] << (bits << step);
    }
  }

  void pack(const uint8_t* codes, size_t n, uint8_t* out) const {
    const uint8_t* end = out + bytes_of(n);
    for (; n >= 8 && end - out >= 8; n -= 8, codes += 8, out += bits_) {  // what is written too far is written again
      uint64_t word;
      memcpy(&word, codes, 8);
      word = join(word);
      memcpy(out, &word, 8);
    }
    for (; n > 0; codes += 8, out += bits_) {
      const size_t taken = n < 8 ? n : 8;
      uint64_t word = 0;
      memcpy(&word, codes, taken);
      word = join(word);
      memcpy(out, &word, bytes_of(taken));
      n -= taken;
    }
  }

  void unpack(const uint8_t* packed, size_t n, uint8_t* codes) const {
    const uint8_t* end = packed + bytes_of(n);
    for (; n >= 8 && end - packed >= 8; n -= 8, codes += 8, packed += bits_) {
      uint64_t word;
      memcpy(&word, packed, 8);
      word = part(word);
      memcpy(codes, &word, 8);
    }
    for (; n > 0; codes += 8, packed += bits_) {
      const size_t taken = n < 8 ? n : 8;
      uint64_t word = 0;
      memcpy(&word, packed, bytes_of(taken));
      word = part(word);
      memcpy(codes, &word, taken);
      n -= taken;
    }
  }

 private:
  size_t bytes_of(size_t n) const { return (n * static_cast<size_t>(bits_) + 7) / 8; }

  uint64_t join(uint64_t word) const {
    for (int step = 0; step < 3; ++step) {
      word = (word & low_[step]) | (word >> ((8 - bits_) << step) & high_[step]);
    }
    return word;
  }
  uint64_t part(uint64_t word) const {
    for (int step = 2; step >= 0; --step) {
      word = (word & low_[step]) | (word & high_[step]) << ((8 - bits_) << step);
    }
    return word;
  }

  int bits_;
  uint64_t low_[3], high_[3];
};

}  // namespace tersegrad
