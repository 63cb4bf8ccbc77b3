// The order of top-k: larger key first, then lower index. The set of the first k entries is unique, so every algorithm
// that finds it agrees; collecting by a threshold key and an allowance for ties at it is how all of them do.
#pragma once

#include "../bits.h"

namespace tersegrad {

TG_SPEC bool is_candidate(float value, uint32_t threshold) { return key_of(value) >= threshold; }

// Whether an entry stays when the k-th largest key is `kth` and `ties` more entries with that key may stay.
TG_SPEC bool is_survivor(float value, uint32_t kth, size_t& ties) {
  uint32_t key = key_of(value);
  if (key == kth && ties > 0) {
    --ties;
    return true;
  }
  return key > kth;
}

}  // namespace tersegrad
