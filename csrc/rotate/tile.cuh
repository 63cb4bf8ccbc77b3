// A block of threads rotates a tile: 4096 entries in shared memory, which are one block of the format or several, or
// the shorter last one. Longer blocks are tiles of their own, in the workspace. Stages of a transform pass through
// registers four at a time: whatever is grouped, every sum has the same two terms.
#pragma once

#include "../cuda/call.cuh"
#include "operation.h"
#include "spec.h"

namespace tersegrad::cuda {

constexpr size_t kRotatedTile = 4096;
constexpr size_t kTileBlocks = kRotatedTile / 64;  // at most
constexpr size_t kTileWords = kRotatedTile / kSignGroup * kSignWords;
constexpr size_t kLongTiles = 256;  // in the workspace; a block of threads has one
constexpr unsigned kLongThreads = 512;

// A word of padding after every sixteen: threads that take sixteen neighbours each find theirs in different banks.
TG_SPEC constexpr size_t padded(size_t i) { return i + i / 16; }

// Blocks of one length, of whose entries so many are sent, in so many bytes.
struct RotatedBlocks {
  unsigned length, kept, bytes;
};

struct RotatedLayout {
  size_t n;
  RotatedBlocks whole, last;  // without entries if all are whole
  unsigned log2_length;       // of a whole one
  uint64_t seed;
  Step step;
  float* long_tiles;  // or null
};

TG_SPEC bool has_long_tiles(const RotatedLayout& layout) { return layout.whole.length > kRotatedTile; }
TG_SPEC size_t entries_of_tiles(const RotatedLayout& layout) {
  return has_long_tiles(layout) ? layout.whole.length : kRotatedTile;
}
TG_SPEC size_t tile_count(const RotatedLayout& layout) {
  const size_t most = entries_of_tiles(layout), whole = layout.n - layout.last.length;
  return (whole + most - 1) / most + (layout.last.length > 0 ? 1 : 0);
}

// What the threads of a block work on: entries of a tile, which turn into rotated values, levels and entries again.
class RotatedTile {
 public:
  __device__ RotatedTile(const RotatedLayout& layout, float* values, uint32_t* words)
      : layout_(layout), values_(values), words_(words), step_(layout.step.get()) {}

  __device__ __forceinline__ void begin(size_t number) {
    const size_t whole = layout_.n - layout_.last.length, most = entries_of_tiles(layout_), start = number * most;
    const bool is_last = start >= whole;
    of = is_last ? layout_.last : layout_.whole;
    first = is_last ? whole : start;
    entries = static_cast<unsigned>(is_last ? layout_.n - whole : whole - start < most ? whole - start : most);
    blocks = entries / of.length;
    first_block = first >> layout_.log2_length;
    rotation_ = rotation_passes(of.length);
    covered_ = rotation_.offset == 0 ? entries : static_cast<unsigned>(rotation_.power);
    draw_signs(0);
  }

  __device__ float& at(size_t i) const { return values_[padded(i)]; }
  __device__ unsigned block_of(size_t i) const { return static_cast<unsigned>(i >> layout_.log2_length); }
  __device__ unsigned start_of(unsigned block) const { return block << layout_.log2_length; }

  // From entries to rotated values, over the power of two of their block's largest key.
  __device__ __forceinline__ void forward(const uint32_t* largest) const {
    for (unsigned pass = 0; pass < passes(); ++pass) {
      const size_t begin = pass * rotation_.offset;
      if (pass > 0) {
        draw_signs(kSecondPass);
        __syncthreads();
      }
      for (unsigned i = threadIdx.x; i < (pass == 0 ? entries : covered_); i += blockDim.x) {
        const float factor = pass == 0 ? power_of_two(-rotation_exponent(largest[block_of(i)])) : 1.0f;
        float& z = at(begin + i);
        z = i < covered_ ? rotated_entry(z, sign(i), rotation_.norm * factor) : z * factor;
      }
      __syncthreads();
      transform(begin);
    }
  }

  // From rotated values to what `entry` makes entries of.
  __device__ __forceinline__ void backward() const {
    for (unsigned pass = passes(); pass-- > 0;) {
      const size_t begin = pass * rotation_.offset;
      if (rotation_.offset != 0) {
        draw_signs(pass * kSecondPass);
        __syncthreads();
      }
      transform(begin);
      if (pass == 0) return;
      for (unsigned i = threadIdx.x; i < covered_; i += blockDim.x) {
        float& z = at(begin + i);
        z = unrotated_entry(z, sign(i), rotation_.norm, 1.0f);
      }
      __syncthreads();
    }
  }
  __device__ float entry(unsigned i, float scale) const {
    if (scale == 0.0f) return 0.0f;
    return i < covered_ ? unrotated_entry(at(i), sign(i), rotation_.norm, scale) : saturate(at(i) * scale);
  }

  // The values that are sent move to the front of their blocks. The j-th comes from place j or one behind it, so a
  // round finds what it moves where it was.
  __device__ __forceinline__ void keep_drawn() const {
    const unsigned fours = (of.kept + 3) / 4;
    for (unsigned round = 0; round < fours * blocks; round += blockDim.x) {
      const unsigned group = round + threadIdx.x, block = group / fours, four = group % fours;
      float value[4] = {};
      if (block < blocks) for_each_drawn(block, four, [&](unsigned c, unsigned, unsigned i) { value[c] = at(i); });
      __syncthreads();
      for (unsigned c = 0; c < 4; ++c) {
        if (block < blocks && 4 * four + c < of.kept) at(start_of(block) + 4 * four + c) = value[c];
      }
    }
    __syncthreads();
  }

  // What the codes of the tile stand for.
  template <int bits>
  __device__ __forceinline__ void put_levels(const uint8_t* codes, const float* level) const {
    const bool all = of.kept == of.length;
    for (unsigned i = threadIdx.x; i < entries; i += blockDim.x) {
      const unsigned block = block_of(i);
      at(i) = all ? level[get_rotated<bits>(codes + block * of.bytes, i - start_of(block))] : 0.0f;
    }
    __syncthreads();
    if (all) return;
    const unsigned fours = (of.kept + 3) / 4;
    for (unsigned group = threadIdx.x; group < fours * blocks; group += blockDim.x) {
      const uint8_t* own = codes + group / fours * of.bytes;
      for_each_drawn(group / fours, group % fours,
                     [&](unsigned, unsigned j, unsigned i) { at(i) = level[get_rotated<bits>(own, j)]; });
    }
    __syncthreads();
  }

  RotatedBlocks of;
  size_t first, first_block;  // of the tensor
  unsigned entries, blocks;

 private:
  __device__ unsigned passes() const { return rotation_.offset == 0 ? 1 : 2; }
  __device__ uint32_t sign(unsigned i) const { return sign_at(words_, first % kSignGroup + i); }

  // Nobody may be reading those of another pass, and a barrier comes before they are read.
  __device__ __forceinline__ void draw_signs(uint32_t pass) const {
    const uint32_t counter = first_sign_counter(first / kSignGroup, pass);
    const size_t groups = (first % kSignGroup + entries + kSignGroup - 1) / kSignGroup;
    for (unsigned j = threadIdx.x; j < 16 * groups; j += blockDim.x) {
      put_sign_words(layout_.seed, step_, counter + j / 16 * 16, j % 16, words_ + j / 16 * kSignWords);
    }
  }

  // Calls each(c, j, i) for the draws j = 4 four + c of a block, which share a call of Philox; i is the entry of the
  // tile that was drawn.
  template <class Each>
  __device__ __forceinline__ void for_each_drawn(unsigned block, unsigned four, Each&& each) const {
    const uint64_t number = first + start_of(block) + 4 * four;
    const PhiloxWords words = philox(layout_.seed, number / 4, step_, kRotationDraw);
    TERSEGRAD_UNROLL
    for (unsigned c = 0; c < 4; ++c) {
      const unsigned j = 4 * four + c;
      if (j < of.kept) {
        each(c, j, start_of(block) + static_cast<unsigned>(drawn_entry(words.word[c], j, of.length, of.kept)));
      }
    }
  }

  // Transforms side by side. Barriers stand before and after.
  __device__ __forceinline__ void transform(size_t begin) const {
    unsigned log2 = 0;
    if (begin == 0) {
      for (; rotation_.power >> log2 >= 16; log2 += 4) four_stages(log2);
    }
    for (; rotation_.power >> log2 > 1; ++log2) one_stage(begin, log2);
  }

  // Those from h = 2^log2 on, a power of 16. A thread takes sixteen entries that are h apart; padding or not, their
  // places are equally far apart.
  __device__ __forceinline__ void four_stages(unsigned log2) const {
    const unsigned h = 1u << log2;
    const size_t apart = padded(h);
    for (unsigned group = threadIdx.x; group < covered_ / 16; group += blockDim.x) {
      float* place = &at((group >> log2 << (log2 + 4)) + (group & (h - 1)));
      float z[16];
      TERSEGRAD_UNROLL
      for (unsigned j = 0; j < 16; ++j) z[j] = place[j * apart];
      TERSEGRAD_UNROLL
      for (unsigned stage = 0; stage < 4; ++stage) {
        TERSEGRAD_UNROLL
        for (unsigned j = 0; j < 16; ++j) {
          if ((j >> stage & 1) != 0) continue;
          const float a = z[j], b = z[j + (1u << stage)];
          z[j] = a + b;
          z[j + (1u << stage)] = a - b;
        }
      }
      TERSEGRAD_UNROLL
      for (unsigned j = 0; j < 16; ++j) place[j * apart] = z[j];
    }
    __syncthreads();
  }

  __device__ __forceinline__ void one_stage(size_t begin, unsigned log2) const {
    const unsigned h = 1u << log2;
    for (unsigned pair = threadIdx.x; pair < covered_ / 2; pair += blockDim.x) {
      const size_t i = begin + (pair >> log2 << (log2 + 1)) + (pair & (h - 1));
      const float a = at(i), b = at(i + h);
      at(i) = a + b;
      at(i + h) = a - b;
    }
    __syncthreads();
  }

  const RotatedLayout& layout_;
  float* values_;
  uint32_t* words_;
  const uint32_t step_;
  RotationPasses rotation_;
  unsigned covered_;  // entries, by either pass
};

// Of the workspace. The signs lie behind the values.
TG_SPEC size_t floats_of_long_tile(size_t length) { return padded(length) + length / kSignGroup * kSignWords; }

// What a block of threads has of each tile: in shared memory, or in the workspace.
template <bool is_long>
struct RotatedMemory {
  float values[is_long ? 1 : padded(kRotatedTile)];
  uint32_t words[is_long ? 1 : kTileWords];

  __device__ RotatedTile tile(const RotatedLayout& layout) {
    if (!is_long) return {layout, values, words};
    const size_t length = layout.whole.length;
    float* own = layout.long_tiles + blockIdx.x * floats_of_long_tile(length);
    return {layout, own, reinterpret_cast<uint32_t*>(own + padded(length))};
  }
};

inline RotatedLayout rotated_layout(const rotate::Layout& layout, size_t n, uint64_t seed, const Step& step,
                                    float* long_tiles) {
  auto blocks_of = [&](size_t length) {
    return RotatedBlocks{static_cast<unsigned>(length), static_cast<unsigned>(layout.kept_of(length)),
                         static_cast<unsigned>(layout.block_bytes(length))};
  };
  unsigned log2 = 0;
  while (layout.block_size >> log2 > 1) ++log2;
  return {n, blocks_of(layout.block_size), blocks_of(n % layout.block_size), log2, seed, step, long_tiles};
}

// Of the workspace.
inline size_t floats_of_long_tiles(const rotate::Layout& layout, size_t n) {
  if (layout.block_size <= kRotatedTile) return 0;
  return std::min(layout.blocks(n), kLongTiles) * floats_of_long_tile(layout.block_size);
}

}  // namespace tersegrad::cuda
