// What the blockwise codecs share on a device: the entries of a block of the format, which a warp or a team of warps
// takes 256 at a time, eight to a lane; noise for them; sums in the order of the format; codes, side by side.
#pragma once

#include "../quantize/spec.h"
#include "../sign/spec.h"
#include "call.cuh"

namespace tersegrad::cuda {

constexpr size_t kStride = 256;
constexpr int kPerLane = 8;

// The j-th entry of a lane: 32 apart, so that a lane meets the entries of two of the 64 lanes of a sum in their order;
struct InRows {
  __device__ static size_t at(unsigned lane, int j) { return lane + kWarp * static_cast<size_t>(j); }
};
// or 16 apart, because these share the words of one Philox call, in two runs of 64 entries.
struct ForNoise {
  __device__ static size_t at(unsigned lane, int j) {
    return lane / 16 * 128 + lane % 16 + 16 * static_cast<size_t>(j);
  }
};

// A block of the format, or its rest at the end of a tensor.
struct Block {
  size_t number, first, length;

  __device__ Block(size_t its_number, size_t block_size, size_t n) : number(its_number), first(number * block_size) {
    const size_t rest = first < n ? n - first : 0;
    length = rest < block_size ? rest : block_size;
  }
};

// Its entries, x + residual, for as many passes as a kernel needs. If `kept`, all that a lane meets fits into its
// registers; else the residual holds the sums after the first pass, and entries are read again, from cache.
template <class Place>
class BlockEntries {
 public:
  float value[kPerLane];  // of the 256 entries that were read last; zero behind the end

  __device__ BlockEntries(const Input& in, const Block& block, bool kept) : in_(in), block_(block), kept_(kept) {}

  __device__ static size_t place(int j) { return Place::at(threadIdx.x % kWarp, j); }

  // The first pass.
  __device__ void read(size_t at) {
    TERSEGRAD_UNROLL
    for (int j = 0; j < kPerLane; ++j) {
      const size_t i = at + place(j);
      value[j] = i < block_.length ? in_.get(block_.first + i) : 0.0f;
      if (!kept_ && in_.residual != nullptr && i < block_.length) in_.residual[block_.first + i] = value[j];
    }
  }
  __device__ void read_again(size_t at) {
    if (kept_) return;
    TERSEGRAD_UNROLL
    for (int j = 0; j < kPerLane; ++j) {
      const size_t i = at + place(j);
      value[j] = i < block_.length ? entry(i) : 0.0f;
    }
  }

  // Any entry after the first pass and before its residual is settled.
  __device__ float entry(size_t i) const {
    if (kept_) return in_.get(block_.first + i);
    return in_.residual != nullptr ? in_.residual[block_.first + i] : load_aligned(in_.x, in_.dtype, block_.first + i);
  }

  // What is left of the j-th entry.
  __device__ void settle(size_t at, int j, float decoded) const {
    if (in_.residual != nullptr) in_.residual[block_.first + at + place(j)] = value[j] - decoded;
  }

 private:
  const Input in_;
  const Block block_;
  const bool kept_;
};

struct RoundingNoise {
  bool stochastic;
  uint64_t seed;
  Step step;
};

// Sixteen bits for each entry of a lane from `first` on, a multiple of 64; or what rounds to nearest.
__device__ inline void lane_noise(const RoundingNoise& from, uint32_t step, uint64_t first,
                                  uint32_t (&noise)[kPerLane]) {
  if (!from.stochastic) {
    for (int j = 0; j < kPerLane; ++j) noise[j] = kRoundToNearest;
    return;
  }
  const unsigned lane = threadIdx.x % kWarp;
  const uint64_t base = first + lane / 16 * 128;
  PhiloxWords words = philox(from.seed, base / 128 * 16 + lane % 16, step, kRoundingNoise);
  const bool odd = base / 64 % 2 != 0;
  for (int j = 0; j < 4; ++j) noise[j] = odd ? words.word[j] >> 16 : words.word[j] & 0xffffu;
  if (odd) words = philox(from.seed, (base + 64) / 128 * 16 + lane % 16, step, kRoundingNoise);
  for (int j = 0; j < 4; ++j) noise[4 + j] = odd ? words.word[j] & 0xffffu : words.word[j] >> 16;
}

// Writes `n` codes of `bits` bits, which lie in a byte each, side by side and the lowest first. What lies between the
// last and the end of a word must be zero.
__device__ inline void pack_codes(const uint8_t (&code)[kStride], int bits, size_t n, uint8_t* out) {
  const auto width = static_cast<unsigned>(bits);
  const size_t bytes = (n * width + 7) / 8;
  const uint32_t mask = (1u << width) - 1;
  __syncwarp();
  for (unsigned word = threadIdx.x % kWarp; word * 4 < bytes; word += kWarp) {
    const unsigned begin = 32 * word;
    uint32_t packed = 0;
    // The first may have begun in the word before.
    for (unsigned j = begin / width; j * width < begin + 32; ++j) {
      const uint32_t part = code[j] & mask;
      packed |= j * width >= begin ? part << (j * width - begin) : part >> (begin - j * width);
    }
    put_bytes(out + word * 4, packed, bytes - word * 4);
  }
  __syncwarp();
}

}  // namespace tersegrad::cuda
