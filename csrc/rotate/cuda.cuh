// On the device: docs/format.md, codec 10, a tile by each block of threads.
#pragma once

#include "../cuda/values.cuh"
#include "tile.cuh"

namespace tersegrad::cuda {

// Blocks of threads that a multiprocessor holds at least; with a fourth registers would spill.
constexpr unsigned kResident = 3;

struct RotatedEncoding {
  RotatedLayout layout;
  Input in;
  DType dtype;
  bool unbiased;
  uint8_t* scales;
  uint8_t* codes;
  Header* header;
};

struct RotatedDecoding {
  RotatedLayout layout;
  DType dtype;
  const uint8_t* scales;
  const uint8_t* codes;
  Target to;
};

// What each code stands for. One thread does it: with constant indices the grid takes no memory.
template <int bits>
__device__ inline void fill_level_table(float (&level)[1 << bits]) {
  constexpr RotationGrid grid = rotation_grid(bits);
  TERSEGRAD_UNROLL
  for (uint32_t code = 0; code < 1u << bits; ++code) {
    if (threadIdx.x == 0) level[code] = rotation_level(code, bits, grid);
  }
}

// Calls each(block) for the blocks of a tile, each by one warp.
template <class Each>
__device__ inline void for_each_block_by_warp(const RotatedTile& tile, Each&& each) {
  for (unsigned block = threadIdx.x / kWarp; block < tile.blocks; block += blockDim.x / kWarp) each(block);
}

// The entries of a tile, which the residual holds afterwards, and the largest key of each block.
__device__ inline void take_entries(const Input& in, const RotatedTile& tile, uint32_t* largest) {
  for (unsigned row = 0; row < tile.entries; row += 4 * blockDim.x) {
    const unsigned i = row + 4 * threadIdx.x;
    uint32_t key = 0;
    if (i < tile.entries) {
      float a[4];
      in.get_four(tile.first + i, a);
      if (in.residual != nullptr) store_four(in.residual, DType::float32, tile.first + i, in.n, a);
      for (unsigned j = 0; j < 4 && i + j < tile.entries; ++j) {
        tile.at(i + j) = a[j];
        key = larger(key, key_of(a[j]));
      }
    }
    // Sixteen threads have the 64 entries that every block has at least.
    for (unsigned half = 8; half > 0; half /= 2) key = larger(key, __shfl_xor_sync(kWholeWarp, key, half));
    if (threadIdx.x % 16 == 0 && i < tile.entries) atomicMax(largest + tile.block_of(i), key);
  }
}

// Codes of the rotated values, eight by a thread, in whose places the products with their levels remain.
template <int bits>
__device__ inline void put_codes(const RotatedTile& tile, const uint32_t* largest, const float* squares,
                                 const float* level, uint8_t* codes) {
  constexpr RotationGrid grid = rotation_grid(bits);
  const unsigned kept = tile.of.kept, eights = (kept + 7) / 8;
  for (unsigned group = threadIdx.x; group < eights * tile.blocks; group += blockDim.x) {
    const unsigned block = group / eights, begin = group % eights * 8;
    const float deviation = sqrtf(squares[block] / static_cast<float>(kept));
    float limit[kMostLevels];
    TERSEGRAD_UNROLL
    for (int t = 0; t + 1 < rotation_levels(bits); ++t) limit[t] = grid.limit[t] * deviation;
    uint32_t packed = 0;
    TERSEGRAD_UNROLL
    for (unsigned j = 0; j < 8; ++j) {
      if (begin + j >= kept) continue;
      float& z = tile.at(tile.start_of(block) + begin + j);
      const uint32_t code = rotation_code(z, limit, bits);
      packed |= code << (j * bits);
      z = level[code & ((1u << (bits - 1)) - 1)] * float_of(key_of(z));
    }
    const unsigned first = begin / 8 * bits, rest = tile.of.bytes - first;
    put_bytes(codes + block * tile.of.bytes + first, largest[block] == 0 ? 0 : packed, rest < bits ? rest : bits);
  }
}

template <int bits, bool is_long>
static __global__ void __launch_bounds__(is_long ? kLongThreads : kThreads, is_long ? 1 : kResident)
    encode_rotated(RotatedEncoding call) {
  __shared__ RotatedMemory<is_long> memory;
  __shared__ uint32_t largest[kTileBlocks];
  __shared__ float squares[kTileBlocks], scale[kTileBlocks], level[1 << bits];
  if (verdict_before(*call.header) != kSent) return;
  const unsigned lane = threadIdx.x % kWarp;
  fill_level_table<bits>(level);
  RotatedTile tile = memory.tile(call.layout);
  for (size_t number = blockIdx.x; number < tile_count(call.layout); number += gridDim.x) {
    tile.begin(number);
    const unsigned kept = tile.of.kept;
    uint8_t* codes = call.codes + tile.first_block * call.layout.whole.bytes;
    if (threadIdx.x < tile.blocks) largest[threadIdx.x] = 0;
    __syncthreads();
    take_entries(call.in, tile, largest);
    __syncthreads();
    if (threadIdx.x < tile.blocks && !is_finite_key(largest[threadIdx.x])) atomicOr(&call.header->late, 1);
    tile.forward(largest);
    if (kept < tile.of.length) tile.keep_drawn();
    for_each_block_by_warp(tile, [&](unsigned block) {
      const unsigned start = tile.start_of(block);
      const float sum = lane_sum(kept, [&](size_t j) { return tile.at(start + j) * tile.at(start + j); });
      if (lane == 0) squares[block] = sum;
    });
    __syncthreads();
    put_codes<bits>(tile, largest, squares, level, codes);
    __syncthreads();
    for_each_block_by_warp(tile, [&](unsigned block) {
      const unsigned start = tile.start_of(block);
      const uint8_t* own = codes + block * tile.of.bytes;
      const RotationSums sums{squares[block], lane_sum(kept, [&](size_t j) { return tile.at(start + j); })};
      const float levels = call.unbiased ? 0.0f : lane_sum(kept, [&](size_t j) {
        const float l = level[get_rotated<bits>(own, j)];
        return l * l;
      });
      if (lane != 0) return;
      const uint32_t key = largest[block];
      const float share = static_cast<float>(tile.of.length) / static_cast<float>(kept);
      scale[block] = key == 0        ? 0.0f
                     : call.unbiased ? unbiased_scale(sums, share, rotation_exponent(key))
                                     : least_error_scale(sums, levels, rotation_exponent(key));
      put_scale(call.scales, tile.first_block + block, scale[block]);
    });
    __syncthreads();
    if (call.in.residual == nullptr) continue;
    tile.put_levels<bits>(codes, level);
    tile.backward();
    for (unsigned i = 4 * threadIdx.x; i < tile.entries; i += 4 * blockDim.x) {
      float left[4];
      load_four(call.in.residual, DType::float32, tile.first + i, call.in.n, left);
      for (unsigned j = 0; j < 4 && i + j < tile.entries; ++j) {
        left[j] = left[j] - round_to(call.dtype, tile.entry(i + j, scale[tile.block_of(i + j)]));
      }
      store_four(call.in.residual, DType::float32, tile.first + i, call.in.n, left);
    }
    __syncthreads();
  }
}

template <int bits, bool is_long>
static __global__ void __launch_bounds__(is_long ? kLongThreads : kThreads, is_long ? 1 : kResident)
    decode_rotated(RotatedDecoding call) {
  __shared__ RotatedMemory<is_long> memory;
  __shared__ float level[1 << bits];
  fill_level_table<bits>(level);
  RotatedTile tile = memory.tile(call.layout);
  for (size_t number = blockIdx.x; number < tile_count(call.layout); number += gridDim.x) {
    tile.begin(number);
    __syncthreads();
    tile.put_levels<bits>(call.codes + tile.first_block * call.layout.whole.bytes, level);
    tile.backward();
    for (unsigned i = 4 * threadIdx.x; i < tile.entries; i += 4 * blockDim.x) {
      const float scale = get_scale(call.scales, tile.first_block + tile.block_of(i));
      float decoded[4];
      for (unsigned j = 0; j < 4; ++j) {
        decoded[j] = i + j < tile.entries ? round_to(call.dtype, tile.entry(i + j, scale)) : 0.0f;
      }
      emit_four(call.to, tile.first + i, decoded);
    }
    __syncthreads();
  }
}

template <class Call>
void launch_rotated(const Call& call, void (*kernel)(Call), void (*long_kernel)(Call), Stream stream) {
  const size_t tiles = tile_count(call.layout);
  if (has_long_tiles(call.layout)) {
    launch(long_kernel, std::min(tiles, kLongTiles), kLongThreads, stream, call);
  } else {
    launch(kernel, tiles, kThreads, stream, call);
  }
}

inline void launch_encode_rotated(const RotatedEncoding& call, int bits, Stream stream) {
  if (bits == 1) launch_rotated(call, encode_rotated<1, false>, encode_rotated<1, true>, stream);
  if (bits == 2) launch_rotated(call, encode_rotated<2, false>, encode_rotated<2, true>, stream);
  if (bits == 3) launch_rotated(call, encode_rotated<3, false>, encode_rotated<3, true>, stream);
  if (bits == 4) launch_rotated(call, encode_rotated<4, false>, encode_rotated<4, true>, stream);
}

inline void launch_decode_rotated(const RotatedDecoding& call, int bits, Stream stream) {
  if (bits == 1) launch_rotated(call, decode_rotated<1, false>, decode_rotated<1, true>, stream);
  if (bits == 2) launch_rotated(call, decode_rotated<2, false>, decode_rotated<2, true>, stream);
  if (bits == 3) launch_rotated(call, decode_rotated<3, false>, decode_rotated<3, true>, stream);
  if (bits == 4) launch_rotated(call, decode_rotated<4, false>, decode_rotated<4, true>, stream);
}

}  // namespace tersegrad::cuda
