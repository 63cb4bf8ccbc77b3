// The order of top-k: larger key first, then lower index. The set of the first k entries is unique, so every algorithm
// that finds it agrees; collecting by a threshold key and an allowance for ties at it is how all of them do.
#pragma once

#include "../bits.h"

namespace tersegrad {

// From step to step the k-th key of a gradient moves by a few percent; a sixteenth of an octave below it is safe
// mostly.
constexpr uint32_t kDrift = 1u << 19;
// A threshold for entries like those of the last call, whose k-th key this is; zero where that tells nothing.
TG_SPEC uint32_t threshold_after(uint32_t last_key) {
  if (last_key <= kDrift) return 0;
  return (last_key < kInfinity ? last_key : kInfinity) - kDrift;
}

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
