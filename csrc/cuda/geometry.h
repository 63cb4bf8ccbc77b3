// Sizes that are arithmetic on the host: where things lie in a workspace, how many entries are expected to reach a
// sampled threshold.
#pragma once

#include <cmath>

#include "../codec.h"
#include "../rotate/tile.cuh"
#include "values.cuh"

namespace tersegrad::cuda {

// Enough blocks to fill any device, few enough that their one atomic each costs nothing.
constexpr size_t kLookGrid = 4096;

// Five standard deviations and a few above the mean: the sample's key of this rank misses the k-th key of all about
// once in 10^7 calls. Beyond the sample, it says that every entry is a candidate.
inline size_t sample_rank(size_t n, size_t k) {
  if (n <= kSamples) return k;
  const double share = double(k) / double(n), mean = share * double(kSamples);
  return static_cast<size_t>(mean + 5 * std::sqrt(mean * (1 - share))) + 8;
}

// Twice what is expected, and a tile.
inline size_t candidate_capacity(size_t n, size_t k) {
  const size_t samples = std::min(n, kSamples), rank = sample_rank(n, k);
  if (rank >= samples) return n;
  return std::min(n, static_cast<size_t>(2.0 * double(rank) / double(samples) * double(n)) + kTile);
}

// Counts and places; with a null memory it only counts.
struct Workspace {
  Header* header = nullptr;
  Header* values_header = nullptr;
  uint32_t* survivor = nullptr;
  float* survivor_value = nullptr;
  uint32_t* sample = nullptr;
  uint32_t* tiles[4] = {};
  uint32_t* index = nullptr;
  float* value = nullptr;
  uint32_t* counts = nullptr;   // in decode
  float* long_tiles = nullptr;  // of rotated
  size_t bytes = 0;

  Workspace(const Codec& codec, size_t n, void* memory) : memory_(static_cast<char*>(memory)) {
    take(header, 1);
    if (codec.values.kind == ValueCodec::Kind::rotated) take(long_tiles, floats_of_long_tiles(codec.values.rotated, n));
    if (codec.selection == Codec::Selection::all || n == 0) return;
    const size_t kept = codec.survivors(n);
    take(values_header, 1);
    take(survivor, kept);
    take(survivor_value, kept);
    if (codec.has_index_stream()) take(counts, stream_counts(codec.index_form(n), n, kept));
    if (codec.selection != Codec::Selection::topk) return;
    take(sample, std::min(n, kSamples));
    for (uint32_t*& tile : tiles) take(tile, (n + kTile - 1) / kTile);
    const size_t capacity = candidate_capacity(n, kept);
    take(index, capacity);
    take(value, capacity);
  }

 private:
  template <class T>
  void take(T*& at, size_t count) {
    if (memory_ != nullptr) at = reinterpret_cast<T*>(memory_ + bytes);
    bytes += (count * sizeof(T) + 15) / 16 * 16;
  }
  char* memory_;
};

}  // namespace tersegrad::cuda
