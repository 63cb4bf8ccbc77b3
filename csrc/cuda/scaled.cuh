// Codecs with a float32 scale for each block and a code for each entry, on a device: Quantize and the small floats. A
// warp, or for large blocks the eight warps of a CUDA block, codes a block of the format.
#pragma once

#include "blocks.cuh"

namespace tersegrad::cuda {

// From this block size on eight warps share a block.
constexpr size_t kSharedBlock = 2048;

struct ScaledCall {
  Input in;
  DType dtype;
  size_t block_size;
  RoundingNoise noise;
  uint8_t* scales;
  uint8_t* codes;
  Header* header;
};

// The key of the Euclidean norm, of a block that is neither zero nor infinite.
__device__ inline uint32_t norm_key_of(const BlockEntries<ForNoise>& entries, size_t length, uint32_t max_key) {
  const float inverse = 1.0f / float_of(max_key);
  __syncwarp();  // lanes read what others have left in the residual
  const float sum = lane_sum(length, [&](size_t i) {
    const float share = entries.entry(i) * inverse;
    return share * share;
  });
  return norm_key(max_key, sum);
}

// A Coder is made from the key that the scale stands for.
template <class Coder, unsigned team>
static __global__ void __launch_bounds__(kThreads, 4) encode_scaled(ScaledCall call) {
  __shared__ uint8_t staged[kWarps][kStride];
  __shared__ uint32_t largest[kWarps];
  if (verdict_before(*call.header) != kSent) return;
  const unsigned lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, within = team == 1 ? 0 : warp;
  const Block block((static_cast<size_t>(blockIdx.x) * kWarps + warp) / team, call.block_size, call.in.n);
  if (block.length == 0) return;  // all of a team
  BlockEntries<ForNoise> entries(call.in, block, block.length <= team * kStride);

  uint32_t key = 0;
  for (size_t at = within * kStride; at < block.length; at += team * kStride) {
    entries.read(at);
    TERSEGRAD_UNROLL
    for (int j = 0; j < kPerLane; ++j) key = larger(key, key_of(entries.value[j]));
  }
  key = warp_largest(key);
  if (team > 1) {
    if (lane == 0) largest[warp] = key;
    __syncthreads();
    for (unsigned w = 0; w < team; ++w) key = larger(key, largest[w]);
  }
  if (!is_finite_key(key)) {
    if (lane == 0) atomicOr(&call.header->late, 1);
    key = 0;
  }
  if constexpr (Coder::kByNorm) {
    if (key >= kQuantizeFloor) key = norm_key_of(entries, block.length, key);
  }
  const Coder coder(key);
  if (within == 0 && lane == 0) put_scale(call.scales, block.number, coder.scale);

  const uint32_t step = call.noise.step.get();
  for (size_t at = within * kStride; at < block.length; at += team * kStride) {
    uint32_t noise[kPerLane];
    lane_noise(call.noise, step, block.first + at, noise);
    entries.read_again(at);
    TERSEGRAD_UNROLL
    for (int j = 0; j < kPerLane; ++j) {
      const bool there = at + entries.place(j) < block.length;
      const uint32_t code = there ? coder.code(entries.value[j], noise[j], call.noise.stochastic) : 0;
      staged[warp][entries.place(j)] = static_cast<uint8_t>(code);
      if (there) entries.settle(at, j, round_to(call.dtype, coder.entry(code)));
    }
    const size_t here = block.length - at < kStride ? block.length - at : kStride;
    pack_codes(staged[warp], Coder::kBits, here, call.codes + (block.first + at) / 8 * Coder::kBits);
  }
}

template <class Coder>
void launch_scaled(const ScaledCall& call, Stream stream) {
  const size_t blocks = (call.in.n + call.block_size - 1) / call.block_size;
  if constexpr (!Coder::kByNorm) {  // whose sum is that of one warp
    if (call.block_size >= kSharedBlock) {
      launch(encode_scaled<Coder, kWarps>, blocks, kThreads, stream, call);
      return;
    }
  }
  launch(encode_scaled<Coder, 1>, (blocks + kWarps - 1) / kWarps, kThreads, stream, call);
}

}  // namespace tersegrad::cuda
