// On the device: docs/format.md, codec 15. A warp codes 256 entries. Bodies add a word at a time.
#pragma once

#include "../cuda/blocks.cuh"
#include "spec.h"

namespace tersegrad::cuda {

struct IntegersCall {
  Input in;
  DType dtype;
  IntegerGrid grid;
  RoundingNoise noise;
  uint8_t* codes;
  Header* header;
};

__device__ inline void store_integer(uint8_t* codes, int bits, size_t i, int32_t code) {
  if (bits == 32 && is_aligned(codes, 4)) {
    reinterpret_cast<int32_t*>(codes)[i] = code;
  } else if (bits == 16 && is_aligned(codes, 2)) {
    reinterpret_cast<int16_t*>(codes)[i] = static_cast<int16_t>(code);
  } else {
    put_integer(codes, bits, i, code);
  }
}

__device__ inline int32_t load_integer(const uint8_t* codes, int bits, size_t i) {
  if (bits == 32 && is_aligned(codes, 4)) return reinterpret_cast<const int32_t*>(codes)[i];
  if (bits == 16 && is_aligned(codes, 2)) return reinterpret_cast<const int16_t*>(codes)[i];
  return get_integer(codes, bits, i);
}

template <int bits>
static __global__ void __launch_bounds__(kThreads) encode_integers(IntegersCall call) {
  if (verdict_before(*call.header) != kSent) return;
  const Block part(static_cast<size_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp, kStride, call.in.n);
  if (part.length == 0) return;
  BlockEntries<ForNoise> entries(call.in, part, true);
  entries.read(0);
  uint32_t noise[kPerLane], key = 0;
  lane_noise(call.noise, call.noise.step.get(), part.first, noise);
  TERSEGRAD_UNROLL
  for (int j = 0; j < kPerLane; ++j) {
    if (entries.place(j) >= part.length) continue;
    key = larger(key, key_of(entries.value[j]));
    const float units = to_grid(entries.value[j], call.grid);
    const int32_t code = call.noise.stochastic ? stochastic_integer(units, noise[j]) : nearest_integer(units);
    store_integer(call.codes, bits, part.first + entries.place(j), code);
    entries.settle(0, j, round_to(call.dtype, integer_entry(code, call.grid.scale)));
  }
  if (!is_finite_key(key)) atomicOr(&call.header->late, 1);
}

inline void launch_integers(const IntegersCall& call, int bits, Stream stream) {
  auto kernel = bits == 8 ? encode_integers<8> : bits == 16 ? encode_integers<16> : encode_integers<32>;
  launch(kernel, (call.in.n + kWarps * kStride - 1) / (kWarps * kStride), kThreads, stream, call);
}

// --- Sums of bodies. ---

constexpr size_t kMostAddends = 16;  // of one launch; backend.py knows

struct AddIntegersCall {
  const uint8_t* body[kMostAddends];
  size_t count;
  size_t bytes;      // of a body
  int64_t* partial;  // sums of launches before, and for the next
  bool first, last;
  uint8_t* total;
  uint32_t* beyond;  // set where a sum leaves its bits; or null, to let it wrap
};

template <int bits>
static __global__ void __launch_bounds__(kThreads) add_integers_of(AddIntegersCall call) {
  constexpr int kCodes = 32 / bits;
  constexpr uint32_t kMask = 0xffffffffu >> (32 - bits);
  const size_t word = static_cast<size_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (word * 4 >= call.bytes) return;
  int64_t* partial = call.partial + word * kCodes;
  int64_t sum[kCodes];
  for (int c = 0; c < kCodes; ++c) sum[c] = call.first ? 0 : partial[c];
  for (size_t i = 0; i < call.count; ++i) {
    const uint32_t codes = get_word(call.body[i], word * 4, call.bytes);
    for (int c = 0; c < kCodes; ++c) sum[c] += signed_integer(codes >> (c * bits) & kMask, bits);
  }
  if (!call.last) {
    for (int c = 0; c < kCodes; ++c) partial[c] = sum[c];
    return;
  }
  uint32_t packed = 0;
  bool beyond = false;
  for (int c = 0; c < kCodes; ++c) {
    const uint32_t code = static_cast<uint32_t>(sum[c]) & kMask;
    packed |= code << (c * bits);
    beyond |= sum[c] != signed_integer(code, bits);
  }
  put_bytes(call.total + word * 4, packed, call.bytes - word * 4);
  if (beyond && call.beyond != nullptr) atomicOr(call.beyond, 1);
}

// As add_integers of codec.h.
inline void launch_add_integers(const uint8_t* const* bodies, size_t count, int bits, size_t bytes, uint8_t* total,
                                int64_t* partial, uint32_t* beyond, Stream stream) {
  auto kernel = bits == 8 ? add_integers_of<8> : bits == 16 ? add_integers_of<16> : add_integers_of<32>;
  for (size_t begin = 0; begin < count; begin += kMostAddends) {
    AddIntegersCall call{};
    call.count = count - begin < kMostAddends ? count - begin : kMostAddends;
    for (size_t i = 0; i < call.count; ++i) call.body[i] = bodies[begin + i];
    call.bytes = bytes;
    call.partial = partial;
    call.first = begin == 0;
    call.last = begin + call.count == count;
    call.total = total;
    call.beyond = beyond;
    launch(kernel, (bytes + 4 * kThreads - 1) / (4 * kThreads), kThreads, stream, call);
  }
}

}  // namespace tersegrad::cuda
