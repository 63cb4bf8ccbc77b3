// On the device: exact top-k in one pass over the entries and no word to the host. The k-th key of the last call, or a
// sample, suggests a threshold that a little more than k entries reach. One pass collects those; a radix selection
// among them finds the k-th key; they are put in order. Where there are too few or too many, the very same kernels run
// over all entries instead: launches do not depend on data, so a captured graph is right for any.
//
// Candidates of a tile lie together and in order, tiles wherever the counter put them. So one crowded tile needs no
// room of its own, and the order of tiles brings the order of indices back.
#pragma once

#include "../cuda/call.cuh"
#include "../cuda/chain.cuh"
#include "spec.h"

namespace tersegrad::cuda {

constexpr size_t kWarpPart = kTile / kWarps;  // of a tile, of which a warp takes neighbours,
constexpr size_t kRow = 4 * kWarp;            // four to a lane,
constexpr unsigned kRows = kWarpPart / kRow;  // so often

struct TopKCall {
  Input in;
  size_t k;
  size_t sample_rank;  // the sample's key of this rank is the threshold; beyond the sample it is zero
  size_t capacity;     // of the candidates
  uint32_t* sample;
  uint32_t* index;  // candidates
  float* value;
  uint32_t* tile_offset;  // of a tile's candidates,
  uint32_t* tile_count;   // and how many they are
  uint64_t* chain;        // of place_survivors, two links to a block: entries above the k-th key, then those at it
  size_t chain_words;
  uint32_t* survivor;
  float* survivor_value;
  Header* header;
  Header* values_header;
  const uint32_t* skip;  // or null
  uint32_t* last_key;    // or null: the k-th key of the last call on similar entries, then of this one; never trusted
  uint32_t* status;

  // Whether the candidates will not do.
  __device__ bool must_read_all() const { return header->candidates < k || header->candidates > capacity; }
  // An entry of x + residual after the pass.
  __device__ float settled(size_t i) const {
    return in.residual != nullptr ? in.residual[i] : load_aligned(in.x, in.dtype, i);
  }
};

// From the top, the first bin with which the count reaches `rank`; *above is what lies above it. All threads of the
// block call it and get the answer. `shared` has room for 34 words.
__device__ inline uint32_t pick_bin(const uint32_t* histogram, uint32_t rank, uint32_t* shared, uint32_t* above) {
  const unsigned each = kBins / blockDim.x, first = threadIdx.x * each;  // counted from the top
  uint32_t own = 0, all;
  for (unsigned j = 0; j < each; ++j) own += load_fresh(histogram + kBins - 1 - (first + j));
  uint32_t before = block_sum_before(own, shared, &all);
  if (before < rank && rank <= before + own) {
    unsigned bin = kBins - 1 - first;
    for (uint32_t here; before + (here = load_fresh(histogram + bin)) < rank; --bin) before += here;
    shared[32] = bin;
    shared[33] = before;
  }
  __syncthreads();
  const uint32_t bin = shared[32];
  *above = shared[33];
  __syncthreads();
  return bin;
}

// Adds the keys [begin, end) in strides to a histogram of the next digit; `key_at` gives them.
template <class KeyAt>
__device__ inline void count_digits(KeyAt key_at, size_t n, size_t first, size_t stride, unsigned digit,
                                    uint32_t prefix, uint32_t* histogram) {
  const unsigned shift = digit_shift(digit), width = digit_bits(digit);
  for (size_t i = first; i < n; i += stride) {
    const uint32_t digits = key_at(i) >> shift;
    if (digits >> width == prefix) atomicAdd(histogram + (digits & ((1u << width) - 1)), 1);
  }
}

__device__ inline void clear_bins(uint32_t* histogram) {
  for (unsigned bin = threadIdx.x; bin < kBins; bin += blockDim.x) histogram[bin] = 0;
}

// The key of a rank, counted from 1, among those that key_at gives, by one block.
template <class KeyAt>
__device__ inline uint32_t select_key(KeyAt key_at, size_t n, uint32_t rank, uint32_t* histogram, uint32_t* shared,
                                      uint32_t* above) {
  uint32_t prefix = 0;
  *above = 0;
  for (unsigned digit = 0; digit < kDigits; ++digit) {
    clear_bins(histogram);
    __syncthreads();
    count_digits(key_at, n, threadIdx.x, blockDim.x, digit, prefix, histogram);
    __syncthreads();
    uint32_t over;
    prefix = prefix << digit_bits(digit) | pick_bin(histogram, rank - *above, shared, &over);
    *above += over;
  }
  return prefix;
}

// The key of a rank in a sample of x + residual.
__device__ inline uint32_t sampled_threshold(const TopKCall& call, uint32_t* histogram, uint32_t* shared) {
  const size_t n = call.in.n;
  const bool whole = n <= kSamples;
  const size_t samples = whole ? n : kSamples, stride = whole ? 0 : n / (kSamples / kSampleRun);
  if (call.sample_rank > samples) return 0;
  for (size_t s = threadIdx.x; s < samples; s += blockDim.x) {
    size_t i = s;
    if (!whole) {  // uneven distances, so that no pattern hides between the samples
      const auto run = static_cast<uint32_t>(s / kSampleRun);
      const uint32_t shuffled = (run * 2654435769u ^ run >> 3) * 2246822519u >> 16;
      i = run * stride + (stride - kSampleRun) * shuffled / 65536 + s % kSampleRun;
    }
    call.sample[s] = key_of(call.in.get(i));
  }
  __syncthreads();
  uint32_t above;
  const uint32_t* sample = call.sample;
  const uint32_t key = select_key([sample](size_t i) { return sample[i]; }, samples,
                                  static_cast<uint32_t>(call.sample_rank), histogram, shared, &above);
  return key < kInfinity ? key : kInfinity;
}

// One block: nothing is known yet but the threshold. With the key of the last call it costs no look at the entries.
static __global__ void __launch_bounds__(kWideThreads) begin_topk(TopKCall call) {
  __shared__ uint32_t histogram[kBins], shared[34];
  clear(call.header);
  clear(call.values_header);
  clear(call.chain, call.chain_words);
  const bool absent = is_skipped(call.skip);
  uint32_t threshold = call.last_key == nullptr ? 0 : threshold_after(*call.last_key);
  if (threshold == 0 && !absent) threshold = sampled_threshold(call, histogram, shared);
  __syncthreads();
  if (threadIdx.x != 0) return;
  call.header->absent = absent;
  call.header->threshold = threshold;
}

// The pass: residual += x, and the entries that reach the threshold become candidates.
static __global__ void __launch_bounds__(kThreads) collect_candidates(TopKCall call) {
  __shared__ uint32_t counts[kWarps], bases[kWarps + 1];
  if (verdict_before(*call.header) != kSent) return;
  const unsigned lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const size_t n = call.in.n, tile = blockIdx.x, first = tile * kTile + warp * kWarpPart;
  const uint32_t threshold = call.header->threshold;

  float value[kRows][4];
  uint32_t reaching = 0, key = 0;  // four bits for each row
  TERSEGRAD_UNROLL
  for (unsigned row = 0; row < kRows; ++row) {
    const size_t i = first + row * kRow + 4 * lane;
    load_four(call.in.x, call.in.dtype, i, n, value[row]);
    if (call.in.residual != nullptr) {
      float r[4];
      load_four(call.in.residual, DType::float32, i, n, r);
      for (int j = 0; j < 4; ++j) value[row][j] = value[row][j] + r[j];
      store_four(call.in.residual, DType::float32, i, n, value[row]);
    }
    for (unsigned j = 0; j < 4; ++j) {
      key = larger(key, key_of(value[row][j]));
      if (i + j < n && is_candidate(value[row][j], threshold)) reaching |= 1u << (row * 4 + j);
    }
  }
  key = warp_largest(key);
  const uint32_t in_warp = warp_sum(static_cast<uint32_t>(__popc(reaching)));
  if (lane == 0) {
    counts[warp] = in_warp;
    if (!is_finite_key(key)) atomicOr(&call.header->late, 1);
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    uint32_t total = 0;
    for (unsigned w = 0; w < kWarps; ++w) total += counts[w];
    // The counter stops far above any capacity: it cannot wrap, as n is below 2^32.
    uint32_t base = atomicAdd(&call.header->candidates, total);
    call.tile_offset[tile] = base;
    call.tile_count[tile] = total;
    bases[kWarps] = base + total <= call.capacity && base + total >= base;
    for (unsigned w = 0; w < kWarps; ++w) {
      bases[w] = base;
      base += counts[w];
    }
  }
  __syncthreads();
  if (!bases[kWarps]) return;
  uint32_t at = bases[warp];
  TERSEGRAD_UNROLL
  for (unsigned row = 0; row < kRows; ++row) {
    uint32_t mine = reaching >> (row * 4) & 15u, before = 0, all = 0;
    for (unsigned j = 0; j < 4; ++j) {
      const uint32_t lanes = __ballot_sync(kWholeWarp, (mine >> j & 1u) != 0);
      before += static_cast<uint32_t>(__popc(lanes & lanes_before()));
      all += static_cast<uint32_t>(__popc(lanes));
    }
    uint32_t to = at + before;
    for (unsigned j = 0; j < 4; ++j) {
      if (mine >> j & 1u) {
        call.index[to] = static_cast<uint32_t>(first + row * kRow + 4 * lane + j);
        call.value[to++] = value[row][j];
      }
    }
    at += all;
  }
}

// Counts the next digit of the keys; the last block to finish adds it to the prefix.
static __global__ void __launch_bounds__(kThreads) select_digit(TopKCall call, unsigned digit) {
  __shared__ uint32_t histogram[kBins], shared[34];
  Header& header = *call.header;
  if (verdict_after(header) != kSent) return;
  clear_bins(histogram);
  __syncthreads();
  const bool all = call.must_read_all();
  const size_t first = static_cast<size_t>(blockIdx.x) * kThreads + threadIdx.x;
  const size_t stride = static_cast<size_t>(gridDim.x) * kThreads;
  const uint32_t prefix = header.prefix, above = header.above;
  if (all) {
    count_digits([&](size_t i) { return key_of(call.settled(i)); }, call.in.n, first, stride, digit, prefix, histogram);
  } else {
    count_digits([&](size_t i) { return key_of(call.value[i]); }, header.candidates, first, stride, digit, prefix,
                 histogram);
  }
  __syncthreads();
  for (unsigned bin = threadIdx.x; bin < kBins; bin += kThreads) {
    if (histogram[bin] != 0) atomicAdd(&header.histogram[digit][bin], histogram[bin]);
  }
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) shared[0] = atomicAdd(&header.finished[digit], 1);
  __syncthreads();
  const bool last = shared[0] == gridDim.x - 1;
  __syncthreads();
  if (!last) return;
  __threadfence();
  uint32_t over;
  const auto rank = static_cast<uint32_t>(call.k) - above;
  const uint32_t bin = pick_bin(header.histogram[digit], rank, shared, &over);
  if (threadIdx.x == 0) {
    header.prefix = prefix << digit_bits(digit) | bin;
    header.above = above + over;
  }
}

// Calls body(index, value, is_there) for the candidates of a tile, or all its entries, in order, by a whole warp.
template <class Body>
__device__ inline void for_each_of_tile(const TopKCall& call, size_t tile, bool all, Body body) {
  const unsigned lane = threadIdx.x % kWarp;
  const size_t begin = all ? tile * kTile : call.tile_offset[tile];
  const size_t end = !all ? begin + call.tile_count[tile] : call.in.n - begin < kTile ? call.in.n : begin + kTile;
  for (size_t at = begin; at < end; at += kWarp) {
    const size_t i = at + lane;
    const bool there = i < end;
    const float value = !there ? 0.0f : all ? call.settled(i) : call.value[i];
    body(!there ? 0 : all ? static_cast<uint32_t>(i) : call.index[i], value, there);
  }
}

// A warp for each tile, eight tiles to a part: the survivors take their places. Ties are kept from the lowest index on.
// Where nothing is to be sent, the survivors are those of zeros: the first k.
static __global__ void __launch_bounds__(kThreads) place_survivors(TopKCall call) {
  __shared__ uint32_t part_number, sum_before, in_tile[2][kWarps];
  const uint32_t verdict = verdict_after(*call.header), kth = call.header->prefix;
  if (thread_number() == 0) {
    *call.status = verdict;
    if (verdict == kSent && call.last_key != nullptr) *call.last_key = kth;
  }
  if (verdict != kSent) {
    for (size_t j = thread_number(); j < call.k; j += thread_total()) {
      call.survivor[j] = static_cast<uint32_t>(j);
      call.survivor_value[j] = 0.0f;
    }
    return;
  }
  const unsigned lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const size_t part = begin_part(call.chain, &part_number), tile = part * kWarps + warp;
  const bool all = call.must_read_all(), there_is_a_tile = tile * kTile < call.in.n;
  uint32_t above = 0, equal = 0;
  if (there_is_a_tile) {
    for_each_of_tile(call, tile, all, [&](uint32_t, float value, bool there) {
      above += there && key_of(value) > kth;
      equal += there && key_of(value) == kth;
    });
  }
  above = warp_sum(above);
  equal = warp_sum(equal);
  if (lane == 0) {
    in_tile[0][warp] = above;
    in_tile[1][warp] = equal;
  }
  __syncthreads();
  uint32_t before[2] = {0, 0}, own[2] = {0, 0};
  for (unsigned w = 0; w < kWarps; ++w) {
    TERSEGRAD_UNROLL
    for (unsigned which = 0; which < 2; ++which) {
      if (w < warp) before[which] += in_tile[which][w];
      own[which] += in_tile[which][w];
    }
  }
  uint64_t* links = call.chain + 1;
  above = before[0] + sum_of_parts_before(links, part, own[0], &sum_before);
  equal = before[1] + sum_of_parts_before(links + gridDim.x, part, own[1], &sum_before);
  if (!there_is_a_tile) return;
  const uint32_t ties = static_cast<uint32_t>(call.k) - call.header->above;
  for_each_of_tile(call, tile, all, [&](uint32_t index, float value, bool there) {
    const bool is_above = there && key_of(value) > kth, is_equal = there && key_of(value) == kth;
    const uint32_t above_lanes = __ballot_sync(kWholeWarp, is_above);
    const uint32_t equal_lanes = __ballot_sync(kWholeWarp, is_equal);
    const uint32_t larger_before = above + static_cast<uint32_t>(__popc(above_lanes & lanes_before()));
    const uint32_t equal_before = equal + static_cast<uint32_t>(__popc(equal_lanes & lanes_before()));
    if (is_above || (is_equal && equal_before < ties)) {
      const uint32_t to = larger_before + (equal_before < ties ? equal_before : ties);
      call.survivor[to] = index;
      call.survivor_value[to] = value;
    }
    above += static_cast<uint32_t>(__popc(above_lanes));
    equal += static_cast<uint32_t>(__popc(equal_lanes));
  });
}

inline size_t place_chain_words(size_t n) { return chain_words(2 * place_grid(n)); }

// After begin_topk.
inline void select_topk(const TopKCall& call, Stream stream) {
  const size_t n = call.in.n;
  launch(collect_candidates, tiles_of(n), kThreads, stream, call);
  for (unsigned digit = 0; digit < kDigits; ++digit) {
    launch(select_digit, digit_grid(n), kThreads, stream, call, digit);
  }
  launch(place_survivors, place_grid(n), kThreads, stream, call);
}

}  // namespace tersegrad::cuda
