// On the device: docs/format.md section 3, and the way of values to and from the indices. A writer makes each word of a
// stream from the indices that fall into it, found by bisection: no two threads write the same byte. Readers stay
// inside what they are given whatever a stream holds: missing indices become n, which nothing is stored for.
#pragma once

#include "../cuda/call.cuh"
#include "../philox.h"
#include "../topk/cuda.cuh"
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

__device__ inline size_t thread_number() { return static_cast<size_t>(blockIdx.x) * kThreads + threadIdx.x; }
__device__ inline size_t thread_total() { return static_cast<size_t>(gridDim.x) * kThreads; }

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

struct StreamCall {
  const uint8_t* stream;
  size_t n, k;
  uint32_t* index;
  uint32_t* counts;  // of tiles or ranges, then the sums before
};

constexpr size_t kTileBytes = 4 * kThreads;  // of a bit vector: a word for each thread

// The bit vector of a stream: its bytes, and how many of its bits count.
struct Ones {
  const uint8_t* section;
  uint64_t bytes;
};
__device__ inline Ones ones_of(const StreamCall& call, IndexForm form) {
  if (form == IndexForm::bitmap) return {call.stream, (call.n + 7) / 8};
  const EliasFano layout = elias_fano_layout(call.n, call.k);
  return {call.stream + layout.low_bytes, layout.high_bytes};
}

static __global__ void __launch_bounds__(kThreads) count_ones(StreamCall call, IndexForm form) {
  __shared__ uint32_t shared[32];
  const Ones ones = ones_of(call, form);
  const uint64_t at = blockIdx.x * kTileBytes + 4 * threadIdx.x;
  uint32_t all;
  block_sum_before(static_cast<uint32_t>(__popc(get_word(ones.section, at, ones.bytes))), shared, &all);
  if (threadIdx.x == 0) call.counts[blockIdx.x] = all;
}

// One block.
static __global__ void __launch_bounds__(kWideThreads) sum_counts(uint32_t* counts, size_t n) {
  __shared__ uint32_t shared[32];
  sum_before_in_place(counts, n, shared);
}

static __global__ void __launch_bounds__(kThreads) read_ones(StreamCall call, IndexForm form) {
  __shared__ uint32_t shared[32];
  const Ones ones = ones_of(call, form);
  const uint64_t at = blockIdx.x * kTileBytes + 4 * threadIdx.x;
  uint32_t word = get_word(ones.section, at, ones.bytes), all;
  uint64_t j = call.counts[blockIdx.x] + block_sum_before(static_cast<uint32_t>(__popc(word)), shared, &all);
  const EliasFano layout = elias_fano_layout(call.n, call.k);
  const auto low = static_cast<uint64_t>(layout.low_bits);
  for (; word != 0 && j < call.k; word &= word - 1, ++j) {
    const uint64_t bit = 8 * at + static_cast<uint64_t>(__popc((word & (0 - word)) - 1));
    uint64_t index = bit;
    if (form == IndexForm::elias_fano) {
      const uint64_t first = j * low, mask = (uint64_t{1} << low) - 1;
      const uint64_t part = get_bytes(call.stream, first / 8, layout.low_bytes) >> (first % 8) & mask;
      index = (bit - j) << low | part;
    }
    call.index[j] = static_cast<uint32_t>(index < call.n ? index : call.n);
  }
}

static __global__ void fill_missing(StreamCall call) {
  for (size_t j = thread_number(); j < call.k; j += thread_total()) call.index[j] = static_cast<uint32_t>(call.n);
}

static __global__ void read_range_counts(StreamCall call, size_t ranges) {
  for (size_t range = thread_number(); range < ranges; range += thread_total()) {
    const uint32_t count = get_word(call.stream, 4 * range, 4 * ranges);
    call.counts[range] = count < kU16Range ? count : kU16Range;  // the sum of forged ones must not wrap
  }
}

static __global__ void read_offsets(StreamCall call, size_t ranges) {
  const uint8_t* offsets = call.stream + 4 * ranges;
  const uint32_t* starts = call.counts;
  for (size_t j = thread_number(); j < call.k; j += thread_total()) {
    // The last range that starts at or before j.
    const size_t range =
        first_at_least([starts](size_t r) { return static_cast<uint64_t>(starts[r]); }, ranges, j + 1) - 1;
    const uint64_t index = range * kU16Range + (offsets[2 * j] | static_cast<uint32_t>(offsets[2 * j + 1]) << 8);
    call.index[j] = static_cast<uint32_t>(index < call.n ? index : call.n);
  }
}

static __global__ void draw_indices(size_t n, size_t k, uint64_t seed, Step step, uint32_t* index) {
  const uint32_t now = step.get();
  for (size_t j = thread_number(); j < k; j += thread_total()) {
    index[j] = stratum_index(n, k, j, philox(seed, j, now, kRandomMask).word[0]);
  }
}

// --- Survivors. ---

// After the residual was added, if there is one.
static __global__ void gather_survivors(Input in, const uint32_t* index, size_t k, float* value, const Header* header) {
  if (verdict_after(*header) != kSent) return;
  for (size_t j = thread_number(); j < k; j += thread_total()) {
    value[j] = in.residual != nullptr ? in.residual[index[j]] : load_aligned(in.x, in.dtype, index[j]);
  }
}

// Where nothing is to be sent, the survivors are those of zeros: the first k, of each chunk or of all.
static __global__ void replace_survivors(const Header* header, uint32_t* index, bool replace_index, float* value,
                                         size_t k, size_t per_chunk, size_t chunk, uint32_t* status) {
  const uint32_t verdict = verdict_after(*header);
  if (blockIdx.x == 0 && threadIdx.x == 0) *status = verdict;
  if (verdict == kSent) return;
  for (size_t j = thread_number(); j < k; j += thread_total()) {
    if (replace_index) index[j] = static_cast<uint32_t>(j / per_chunk * chunk + j % per_chunk);
    value[j] = 0.0f;
  }
}

inline size_t grid_of(size_t threads) {
  constexpr size_t kMost = 64 * 1024;
  const size_t blocks = (threads + kThreads - 1) / kThreads;
  return blocks == 0 ? 1 : blocks < kMost ? blocks : kMost;
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

// How many counts a reader needs room for.
inline size_t stream_counts(IndexForm form, size_t n, size_t k) {
  if (form == IndexForm::u16) return (n + kU16Range - 1) / kU16Range;
  const size_t bytes = form == IndexForm::bitmap ? (n + 7) / 8 : elias_fano_layout(n, k).high_bytes;
  return (bytes + kTileBytes - 1) / kTileBytes;
}

inline void decode_index(IndexForm form, const StreamCall& call, Stream queue) {
  const size_t counts = stream_counts(form, call.n, call.k);
  if (form == IndexForm::u16) {
    launch(read_range_counts, grid_of(counts), kThreads, queue, call, counts);
    launch(sum_counts, 1, kWideThreads, queue, call.counts, counts);
    launch(read_offsets, grid_of(call.k), kThreads, queue, call, counts);
    return;
  }
  launch(fill_missing, grid_of(call.k), kThreads, queue, call);
  launch(count_ones, counts, kThreads, queue, call, form);
  launch(sum_counts, 1, kWideThreads, queue, call.counts, counts);
  launch(read_ones, counts, kThreads, queue, call, form);
}

}  // namespace tersegrad::cuda
