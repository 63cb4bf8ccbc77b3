// On the device: docs/format.md, codec 3. A warp, or for large blocks the eight warps of a CUDA block, codes a block of
// the format; 256 entries at a time, eight to a lane.
#pragma once

#include "../cuda/call.cuh"
#include "spec.h"

namespace tersegrad::cuda {

// From this block size on eight warps share a block.
constexpr size_t kSharedBlock = 2048;
constexpr size_t kStride = 256;
constexpr int kPerLane = 8;

struct QuantizeCall {
  Input in;
  DType dtype;
  size_t block_size;
  bool stochastic;
  uint64_t seed;
  Step step;
  uint8_t* scales;
  uint8_t* codes;
  Header* header;
};

// The j-th entry of a lane: 16 apart, because these share the words of one Philox call, in two runs of 64 entries.
__device__ inline size_t quantize_position(unsigned lane, int j) {
  return lane / 16 * 128 + lane % 16 + 16 * static_cast<size_t>(j);
}

// Sixteen bits of noise for each entry of a lane, or what rounds to nearest. `first` is a multiple of 64.
__device__ inline void lane_noise(const QuantizeCall& call, uint32_t step, uint64_t first,
                                  uint32_t (&noise)[kPerLane]) {
  if (!call.stochastic) {
    for (int j = 0; j < kPerLane; ++j) noise[j] = kRoundToNearest;
    return;
  }
  const unsigned lane = threadIdx.x % kWarp;
  const uint64_t base = first + lane / 16 * 128;
  PhiloxWords words = philox(call.seed, base / 128 * 16 + lane % 16, step, kRoundingNoise);
  const bool odd = base / 64 % 2 != 0;
  for (int j = 0; j < 4; ++j) noise[j] = odd ? words.word[j] >> 16 : words.word[j] & 0xffffu;
  if (odd) words = philox(call.seed, (base + 64) / 128 * 16 + lane % 16, step, kRoundingNoise);
  for (int j = 0; j < 4; ++j) noise[4 + j] = odd ? words.word[j] & 0xffffu : words.word[j] >> 16;
}

template <int bits, unsigned team>
static __global__ void __launch_bounds__(kThreads) encode_quantize(QuantizeCall call) {
  __shared__ uint8_t staged[kWarps][kStride];
  __shared__ uint32_t largest[kWarps];
  if (verdict_before(*call.header) != kSent) return;
  const unsigned lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, within = team == 1 ? 0 : warp;
  const size_t block = (static_cast<size_t>(blockIdx.x) * kWarps + warp) / team, first = block * call.block_size;
  if (first >= call.in.n) return;  // all of a team
  const size_t rest = call.in.n - first, length = rest < call.block_size ? rest : call.block_size;
  float* residual = call.in.residual;

  // The largest key. What fits into the registers stays there; the rest is read again, from cache.
  const bool kept = length <= team * kStride;
  float value[kPerLane];
  uint32_t key = 0;
  for (size_t at = within * kStride; at < length; at += team * kStride) {
    for (int j = 0; j < kPerLane; ++j) {
      const size_t i = at + quantize_position(lane, j);
      value[j] = i < length ? call.in.get(first + i) : 0.0f;
      if (!kept && residual != nullptr && i < length) residual[first + i] = value[j];
      key = larger(key, key_of(value[j]));
    }
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
  const float scale = quantize_scale(key, bits), inverse = quantize_inverse(key, bits);
  if (within == 0 && lane == 0) put_scale(call.scales, block, scale);

  const uint32_t step = call.step.get();
  for (size_t at = within * kStride; at < length; at += team * kStride) {
    uint32_t noise[kPerLane];
    lane_noise(call, step, first + at, noise);
    for (int j = 0; j < kPerLane; ++j) {
      const size_t i = at + quantize_position(lane, j);
      if (!kept && i < length) {
        value[j] = residual != nullptr ? residual[first + i] : load_aligned(call.in.x, call.in.dtype, first + i);
      }
      const int32_t code = i < length ? quantize_entry(value[j], inverse, noise[j]) : 0;
      staged[warp][i - at] = static_cast<uint8_t>(code);
      if (residual != nullptr && i < length) {
        residual[first + i] = value[j] - round_to(call.dtype, dequantize_entry(code, scale));
      }
    }
    __syncwarp();
    const size_t here = length - at < kStride ? length - at : kStride, bytes = (here * bits + 7) / 8;
    uint8_t* out = call.codes + (first + at) / 8 * bits;
    for (unsigned word = lane; word * 4 < bytes; word += kWarp) {
      uint32_t packed = 0;
      for (unsigned j = 0; j < 32 / bits; ++j) {
        packed |= (staged[warp][word * (32 / bits) + j] & ((1u << bits) - 1)) << (j * bits);
      }
      put_bytes(out + word * 4, packed, bytes - word * 4);
    }
    __syncwarp();
  }
}

inline void launch_quantize(const QuantizeCall& call, int bits, Stream stream) {
  const size_t blocks = (call.in.n + call.block_size - 1) / call.block_size;
  const bool shared = call.block_size >= kSharedBlock;
  const size_t grid = shared ? blocks : (blocks + kWarps - 1) / kWarps;
  auto kernel = bits == 8   ? (shared ? encode_quantize<8, kWarps> : encode_quantize<8, 1>)
                : bits == 4 ? (shared ? encode_quantize<4, kWarps> : encode_quantize<4, 1>)
                            : (shared ? encode_quantize<2, kWarps> : encode_quantize<2, 1>);
  launch(kernel, grid, kThreads, stream, call);
}

}  // namespace tersegrad::cuda
