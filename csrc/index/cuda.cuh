// On the device: docs/format.md section 3, and the way of values to and from the indices. A writer makes each word of a
// stream from the indices that fall into it, found by bisection: no two threads write the same byte. Readers stay
// inside what they are given whatever a stream holds: missing indices become n, which nothing is stored for.
#pragma once

#include "../cuda/call.cuh"
#include "../cuda/chain.cuh"
#include "../philox.h"
#include "spec.h"

namespace tersegrad::cuda {

// The first of the ascending positions that is at least `limit`.
template <class PositionAt>
__device__ inline size_t first_at_least(PositionAt position_at, size_t count, uint64_t limit) {
  size_t low = 0, high = count;
  while (low < high) {
    const size_t middle = low + (high - low) / 2;
    if (position_at(middle) < limit) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

// A bit vector of `bytes` in which the ascending positions of k ones are given.
template <class PositionAt>
__device__ inline void write_ones(PositionAt position_at, size_t k, uint8_t* out, uint64_t bytes) {
  for (size_t w = thread_number(); 4 * w < bytes; w += thread_total()) {
    uint32_t word = 0;
    for (size_t j = first_at_least(position_at, k, 32 * w); j < k && position_at(j) < 32 * (w + 1); ++j) {
      word |= 1u << (position_at(j) % 32);
    }
    put_bytes(out + 4 * w, word, bytes - 4 * w);
  }
}

static __global__ void encode_bitmap(const uint32_t* index, size_t n, size_t k, uint8_t* stream) {
  write_ones([index](size_t j) { return static_cast<uint64_t>(index[j]); }, k, stream, (n + 7) / 8);
}

static __global__ void encode_elias_fano(const uint32_t* index, size_t n, size_t k, uint8_t* stream) {
  const EliasFano layout = elias_fano_layout(n, k);
  const auto low = static_cast<unsigned>(layout.low_bits);
  const uint32_t mask = low == 0 ? 0 : (1u << low) - 1;
  for (size_t w = thread_number(); 4 * w < layout.low_bytes; w += thread_total()) {
    const uint64_t begin = 32 * w;
    uint64_t word = 0;
    // The first part may have begun in the word before.
    for (size_t j = begin / low; j < k && j * low < begin + 32; ++j) {
      const uint64_t part = index[j] & mask;
      word |= j * low >= begin ? part << (j * low - begin) : part >> (begin - j * low);
    }
    put_bytes(stream + 4 * w, static_cast<uint32_t>(word), layout.low_bytes - 4 * w);
  }
  write_ones([index, low](size_t j) { return (static_cast<uint64_t>(index[j]) >> low) + j; }, k,
             stream + layout.low_bytes, layout.high_bytes);
}

static __global__ void encode_u16(const uint32_t* index, size_t n, size_t k, uint8_t* stream) {
  const size_t ranges = (n + kU16Range - 1) / kU16Range;
  auto position = [index](size_t j) { return static_cast<uint64_t>(index[j]); };
  for (size_t range = thread_number(); range < ranges; range += thread_total()) {
    const size_t first = first_at_least(position, k, range * kU16Range);
    const size_t after = first_at_least(position, k, (range + 1) * kU16Range);
    put_bytes(stream + 4 * range, static_cast<uint32_t>(after - first), 4);
  }
  for (size_t j = thread_number(); j < k; j += thread_total()) {
    put_bytes(stream + 4 * ranges + 2 * j, index[j] % kU16Range, 2);
  }
}

// --- Reading. ---

// Streams of equal layout, one of each body.
struct StreamsCall {
  const uint8_t* stream[kBodies];
  size_t bodies, n, k;
  uint32_t* index;   // k of each
  uint64_t* chain;   // of read_ones: links for the parts of each
  uint32_t* starts;  // of u16: where each range begins
};

// The bit vector of a stream: its bytes, and how many of its bits count.
struct Ones {
  const uint8_t* section;
  uint64_t bytes;
};
__device__ inline Ones ones_of(const StreamsCall& call, size_t body, IndexForm form) {
  if (form == IndexForm::bitmap) return {call.stream[body], (call.n + 7) / 8};
  const EliasFano layout = elias_fano_layout(call.n, call.k);
  return {call.stream[body] + layout.low_bytes, layout.high_bytes};
}

// Before read_ones: no part has begun, and every index is missing.
static __global__ void begin_read(StreamsCall call, size_t words) {
  for (size_t i = thread_number(); i < words; i += thread_total()) call.chain[i] = 0;
  for (size_t j = thread_number(); j < call.bodies * call.k; j += thread_total()) {
    call.index[j] = static_cast<uint32_t>(call.n);
  }
}

// A part is a tile of the bit vector of a body. The rank of a one among all of them tells which index it is.
static __global__ void __launch_bounds__(kThreads) read_ones(StreamsCall call, size_t tiles, IndexForm form) {
  __shared__ uint32_t shared[32], part_number, sum_before;
  const size_t part = begin_part(call.chain, &part_number), body = part / tiles, tile = part % tiles;
  const Ones ones = ones_of(call, body, form);
  const uint64_t at = tile * kStreamTile + 4 * threadIdx.x;
  uint32_t word = get_word(ones.section, at, ones.bytes), all;
  const uint32_t in_tile = block_sum_before(static_cast<uint32_t>(__popc(word)), shared, &all);
  uint64_t j = sum_of_parts_before(call.chain + 1 + body * tiles, tile, all, &sum_before);
  j += in_tile;
  const EliasFano layout = elias_fano_layout(call.n, call.k);
  const auto low = static_cast<uint64_t>(layout.low_bits);
  for (; word != 0 && j < call.k; word &= word - 1, ++j) {
    const uint64_t bit = 8 * at + lowest_one(word);
    uint64_t index = bit;
    if (form == IndexForm::elias_fano) {
      const uint64_t first = j * low, mask = (uint64_t{1} << low) - 1;
      const uint64_t part_of_it = get_bytes(call.stream[body], first / 8, layout.low_bytes) >> (first % 8) & mask;
      index = (bit - j) << low | part_of_it;
    }
    call.index[body * call.k + j] = static_cast<uint32_t>(index < call.n ? index : call.n);
  }
}

// One block for each body.
static __global__ void __launch_bounds__(kWideThreads) sum_ranges(StreamsCall call, size_t ranges) {
  __shared__ uint32_t shared[32];
  uint32_t* starts = call.starts + blockIdx.x * ranges;
  for (size_t range = threadIdx.x; range < ranges; range += blockDim.x) {
    const uint32_t count = get_word(call.stream[blockIdx.x], 4 * range, 4 * ranges);
    starts[range] = count < kU16Range ? count : kU16Range;  // the sum of forged ones must not wrap
  }
  __syncthreads();
  sum_before_in_place(starts, ranges, shared);
}

static __global__ void read_offsets(StreamsCall call, size_t ranges) {
  for (size_t i = thread_number(); i < call.bodies * call.k; i += thread_total()) {
    const size_t body = i / call.k, j = i % call.k;
    const uint8_t* offset = call.stream[body] + 4 * ranges + 2 * j;
    const uint32_t* starts = call.starts + body * ranges;
    // The last range that starts at or before j.
    const size_t range =
        first_at_least([starts](size_t r) { return static_cast<uint64_t>(starts[r]); }, ranges, j + 1) - 1;
    const uint64_t index = range * kU16Range + (offset[0] | static_cast<uint32_t>(offset[1]) << 8);
    call.index[i] = static_cast<uint32_t>(index < call.n ? index : call.n);
  }
}

// The indices of a RandomK, which a body does not hold.
struct Draw {
  size_t n, k;
  uint64_t seed;
  Step step;
  __device__ uint32_t index(size_t j, uint32_t now) const {
    return stratum_index(n, k, j, philox(seed, j, now, kRandomMask).word[0]);
  }
};

static __global__ void draw_indices(Draw draw, uint32_t* index) {
  const uint32_t now = draw.step.get();
  for (size_t j = thread_number(); j < draw.k; j += thread_total()) index[j] = draw.index(j, now);
}

// --- Survivors. ---

// After the residual was added, if there is one. Where nothing is to be sent, the values are zero.
static __global__ void draw_survivors(Draw draw, Input in, uint32_t* index, float* value, const Header* header,
                                      uint32_t* status) {
  const uint32_t verdict = verdict_after(*header), now = draw.step.get();
  if (thread_number() == 0) *status = verdict;
  for (size_t j = thread_number(); j < draw.k; j += thread_total()) {
    const uint32_t i = draw.index(j, now);
    index[j] = i;
    value[j] = verdict != kSent ? 0.0f : in.residual != nullptr ? in.residual[i] : load_aligned(in.x, in.dtype, i);
  }
}

// Where nothing is to be sent, the survivors are those of zeros: the first k of each chunk.
static __global__ void replace_survivors(const Header* header, uint32_t* index, float* value, size_t kept,
                                         size_t per_chunk, size_t chunk, uint32_t* status) {
  const uint32_t verdict = verdict_after(*header);
  if (thread_number() == 0) *status = verdict;
  if (verdict == kSent) return;
  for (size_t j = thread_number(); j < kept; j += thread_total()) {
    index[j] = static_cast<uint32_t>(j / per_chunk * chunk + j % per_chunk);
    value[j] = 0.0f;
  }
}

inline void encode_index(IndexForm form, const uint32_t* index, size_t n, size_t k, uint8_t* stream, Stream queue) {
  if (form == IndexForm::bitmap) {
    launch(encode_bitmap, grid_of(n / 32 + 1), kThreads, queue, index, n, k, stream);
  } else if (form == IndexForm::u16) {
    launch(encode_u16, grid_of(k), kThreads, queue, index, n, k, stream);
  } else {
    launch(encode_elias_fano, grid_of(k), kThreads, queue, index, n, k, stream);
  }
}

// What a reader needs room for: tiles of the bit vector of a body, or ranges.
inline size_t stream_tiles(IndexForm form, size_t n, size_t k) {
  if (form == IndexForm::u16) return 0;
  return parts_of(form == IndexForm::bitmap ? (n + 7) / 8 : elias_fano_layout(n, k).high_bytes, kStreamTile);
}
inline size_t stream_ranges(IndexForm form, size_t n) { return form == IndexForm::u16 ? parts_of(n, kU16Range) : 0; }

inline void decode_indices(IndexForm form, const StreamsCall& call, Stream queue) {
  if (form == IndexForm::u16) {
    const size_t ranges = stream_ranges(form, call.n);
    launch(sum_ranges, call.bodies, kWideThreads, queue, call, ranges);
    launch(read_offsets, grid_of(call.bodies * call.k), kThreads, queue, call, ranges);
    return;
  }
  const size_t tiles = stream_tiles(form, call.n, call.k), parts = call.bodies * tiles;
  launch(begin_read, grid_of(call.bodies * call.k), kThreads, queue, call, chain_words(parts));
  launch(read_ones, parts, kThreads, queue, call, tiles, form);
}

}  // namespace tersegrad::cuda
