// Philox4x32-7 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC'11). A counter goes in,
// four words come out: any entry's random bits follow from its index, on any thread and any device.
#pragma once

#include "bits.h"

namespace tersegrad {

constexpr uint32_t kPhiloxMultiplier0 = 0xD2511F53u;
constexpr uint32_t kPhiloxMultiplier1 = 0xCD9E8D57u;
constexpr uint32_t kPhiloxWeyl0 = 0x9E3779B9u;
constexpr uint32_t kPhiloxWeyl1 = 0xBB67AE85u;
constexpr int kPhiloxRounds = 7;

// What a stream is for; the last counter word.
enum PhiloxDomain : uint32_t { kRoundingNoise = 0, kRandomMask = 1, kRotationSigns = 2, kRotationDraw = 3 };

struct PhiloxWords {
  uint32_t word[4];
};

TG_SPEC PhiloxWords philox(uint64_t seed, uint64_t counter, uint32_t step, uint32_t domain) {
  uint32_t c0 = static_cast<uint32_t>(counter), c1 = static_cast<uint32_t>(counter >> 32);
  uint32_t c2 = step, c3 = domain;
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < kPhiloxRounds; ++round) {
    uint64_t p0 = static_cast<uint64_t>(kPhiloxMultiplier0) * c0;
    uint64_t p1 = static_cast<uint64_t>(kPhiloxMultiplier1) * c2;
    c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
    c1 = static_cast<uint32_t>(p1);
    c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c3 = static_cast<uint32_t>(p0);
    k0 += kPhiloxWeyl0;
    k1 += kPhiloxWeyl1;
  }
  return {{c0, c1, c2, c3}};
}

}  // namespace tersegrad
