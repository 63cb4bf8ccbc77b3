// Launch geometry: how many blocks of threads a kernel gets, how tensors are cut into tiles, how many entries are
// expected to reach a sampled threshold. Plain arithmetic on the host; tests call it for sizes that no machine holds.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>

namespace tersegrad::cuda {

constexpr unsigned kWarp = 32;
constexpr unsigned kThreads = 256;  // of a block
constexpr unsigned kWarps = kThreads / kWarp;
constexpr unsigned kWideThreads = 1024;       // of a kernel that is one block
constexpr size_t kLargestGrid = 0x7fffffffu;  // blocks that CUDA takes in one launch

constexpr size_t kTile = 8192;  // entries of a block of threads in the pass of top-k
constexpr size_t kSamples = 16 * 1024;
constexpr size_t kSampleRun = 16;             // neighbours, of one cache line or two
constexpr size_t kStreamTile = 4 * kThreads;  // bytes of a bit vector: a word for each thread
constexpr size_t kTargetTile = 16 * 1024;     // entries that one block sums up from several bodies
constexpr size_t kBodies = 16;                // that one launch sums up

// Enough blocks to fill any device, few enough that their one atomic each costs nothing.
constexpr size_t kLookGrid = 4096;
constexpr size_t kDigitGrid = 512;

// Parts of `size` that cover n.
inline size_t parts_of(size_t n, size_t size) { return n / size + (n % size != 0); }

// Of kernels whose threads go on in strides where there are more items than threads.
inline size_t grid_of(size_t items) { return std::clamp<size_t>(parts_of(items, kThreads), 1, 64 * 1024); }
inline size_t dense_grid(size_t n) { return grid_of(parts_of(n, 4)); }  // four entries to a thread
inline size_t look_grid(size_t n) { return std::min(dense_grid(n), kLookGrid); }

inline size_t tiles_of(size_t n) { return parts_of(n, kTile); }
inline size_t digit_grid(size_t n) { return std::min(tiles_of(n), kDigitGrid); }
// A warp for each tile.
inline size_t place_grid(size_t n) { return parts_of(tiles_of(n), kWarps); }

// A block for each chunk of a ChunkTopK.
inline size_t chunk_grid(size_t n, size_t chunk) { return std::min(parts_of(n, chunk), kLargestGrid); }

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

}  // namespace tersegrad::cuda
