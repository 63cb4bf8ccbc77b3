// What the readers of index streams share.
#pragma once

#include "../tensor.h"

namespace tersegrad::index {

constexpr Fault kWrongSize = "the index stream has not the size that its indices take";
constexpr Fault kWrongCount = "the index stream does not hold the number of indices that the header states";
constexpr Fault kOutOfRange = "an index lies outside the tensor";
constexpr Fault kPaddingSet = "padding bits of the index stream are set";

// Up to eight bytes, the missing ones zero.
inline uint64_t load_word(const uint8_t* p, size_t available) {
  uint64_t word = 0;
  if (available >= sizeof word) {
    memcpy(&word, p, sizeof word);  // of a known size: one instruction
  } else {
    memcpy(&word, p, available);
  }
  return word;
}

}  // namespace tersegrad::index
