// On the device: docs/format.md, codec 11. A warp codes a block: it looks for the bounds, tries the spacings, codes.
#pragma once

#include "../cuda/blocks.cuh"
#include "spec.h"

namespace tersegrad::cuda {

struct LevelsCall {
  Input in;
  DType dtype;
  int bits;
  size_t block_size;
  levels::Choice choice;
  uint8_t* bounds;
  uint8_t* codes;
  Header* header;
};

// Adds the square of what a grid loses of an entry.
__device__ inline void add_level_error(float value, const LevelGrid& grid, float& sum) {
  const float error = level_error(value, level_of(value, grid), grid);
  sum = sum + error * error;
}

static __global__ void __launch_bounds__(kThreads, 4) encode_levels(LevelsCall call) {
  __shared__ uint8_t staged[kWarps][kStride];
  if (verdict_before(*call.header) != kSent) return;
  const unsigned lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const Block block(static_cast<size_t>(blockIdx.x) * kWarps + warp, call.block_size, call.in.n);
  if (block.length == 0) return;
  BlockEntries<InRows> entries(call.in, block, block.length <= kStride);

  uint32_t largest = 0, complement = 0;  // the smallest key is the largest complement
  for (size_t at = 0; at < block.length; at += kStride) {
    entries.read(at);
    TERSEGRAD_UNROLL
    for (int j = 0; j < kPerLane; ++j) {
      if (at + entries.place(j) >= block.length) continue;
      largest = larger(largest, key_of(entries.value[j]));
      complement = larger(complement, key_of(entries.value[j]) ^ kMagnitude);
    }
  }
  largest = warp_largest(largest);
  uint32_t least = warp_largest(complement) ^ kMagnitude;
  if (!is_finite_key(largest)) {
    if (lane == 0) atomicOr(&call.header->late, 1);
    largest = least = 0;
  }

  const TriedSpacings tried = tried_spacings(call.choice, least);
  uint32_t bounds = pack_bounds(least, largest, tried.spacing[0]);
  LevelGrid grid = level_grid(bounds, call.bits);
  if (tried.count > 1) {
    const uint32_t other_bounds = pack_bounds(least, largest, tried.spacing[1]);
    const LevelGrid other = level_grid(other_bounds, call.bits);
    float sum[2] = {0.0f, 0.0f}, other_sum[2] = {0.0f, 0.0f};
    for (size_t at = 0; at < block.length; at += kStride) {
      entries.read_again(at);
      TERSEGRAD_UNROLL
      for (int j = 0; j < kPerLane; ++j) {
        if (at + entries.place(j) >= block.length) continue;
        add_level_error(entries.value[j], grid, sum[j % 2]);
        add_level_error(entries.value[j], other, other_sum[j % 2]);
      }
    }
    const float error = sum_of_lanes(sum);
    if (sum_of_lanes(other_sum) < error) {
      bounds = other_bounds;
      grid = other;
    }
  }
  if (lane == 0) put_bytes(call.bounds + block.number * sizeof bounds, bounds, sizeof bounds);

  for (size_t at = 0; at < block.length; at += kStride) {
    entries.read_again(at);
    TERSEGRAD_UNROLL
    for (int j = 0; j < kPerLane; ++j) {
      const float value = entries.value[j];
      const bool there = at + entries.place(j) < block.length;
      const uint32_t code = there ? level_code(value, level_of(value, grid), grid) : 0;
      staged[warp][entries.place(j)] = static_cast<uint8_t>(code);
      if (there) entries.settle(at, j, round_to(call.dtype, level_entry(code, grid)));
    }
    const size_t here = block.length - at < kStride ? block.length - at : kStride;
    pack_codes(staged[warp], call.bits, here, call.codes + (block.first + at) / 8 * static_cast<size_t>(call.bits));
  }
}

inline void launch_levels(const LevelsCall& call, Stream stream) {
  const size_t blocks = (call.in.n + call.block_size - 1) / call.block_size;
  launch(encode_levels, (blocks + kWarps - 1) / kWarps, kThreads, stream, call);
}

}  // namespace tersegrad::cuda
