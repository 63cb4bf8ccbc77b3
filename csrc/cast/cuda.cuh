// On the device: whole tensors in and out of float32, looks at them, and memory that is set under a condition.
#pragma once

#include "../cuda/call.cuh"

namespace tersegrad::cuda {

constexpr size_t kFours = 4 * kThreads;  // entries that a block takes at once, four each

// Whether x, and x + residual, are finite, before anything is written. Calls each(key) for the entries of the sum.
template <class Each>
__device__ inline void look_at_all(const Input& in, Header* header, Each&& each) {
  uint32_t key = 0, sum_key = 0;
  for (size_t i = (static_cast<size_t>(blockIdx.x) * kThreads + threadIdx.x) * 4; i < in.n;
       i += static_cast<size_t>(gridDim.x) * kFours) {
    float x[4], r[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    load_four(in.x, in.dtype, i, in.n, x);
    if (in.residual != nullptr) load_four(in.residual, DType::float32, i, in.n, r);
    for (unsigned j = 0; j < 4; ++j) {
      key = larger(key, key_of(x[j]));
      sum_key = larger(sum_key, key_of(x[j] + r[j]));
      if (i + j < in.n) each(key_of(x[j] + r[j]));
    }
  }
  key = warp_largest(key);
  sum_key = warp_largest(sum_key);
  if (threadIdx.x % kWarp == 0) {
    if (!is_finite_key(key)) atomicOr(&header->x_is_bad, 1);
    if (!is_finite_key(sum_key)) atomicOr(&header->sum_is_bad, 1);
  }
}

static __global__ void look_before(Input in, Header* header) {
  if (!header->absent) look_at_all(in, header, [](uint32_t) {});
}

// residual += x.
static __global__ void accumulate_entries(Input in, Header* header) {
  if (verdict_before(*header) != kSent) return;
  uint32_t key = 0;
  for (size_t i = (static_cast<size_t>(blockIdx.x) * kThreads + threadIdx.x) * 4; i < in.n;
       i += static_cast<size_t>(gridDim.x) * kFours) {
    float x[4], r[4];
    load_four(in.x, in.dtype, i, in.n, x);
    load_four(in.residual, DType::float32, i, in.n, r);
    for (int j = 0; j < 4; ++j) {
      r[j] = x[j] + r[j];
      key = larger(key, key_of(r[j]));
    }
    store_four(in.residual, DType::float32, i, in.n, r);
  }
  key = warp_largest(key);
  if (threadIdx.x % kWarp == 0 && !is_finite_key(key)) atomicOr(&header->late, 1);
}

// docs/format.md, codecs 1 and 2.
static __global__ void encode_cast(Input in, DType dtype, DType wire, uint8_t* body, Header* header) {
  if (verdict_before(*header) != kSent) return;
  uint32_t key = 0;
  for (size_t i = (static_cast<size_t>(blockIdx.x) * kThreads + threadIdx.x) * 4; i < in.n;
       i += static_cast<size_t>(gridDim.x) * kFours) {
    float a[4];
    in.get_four(i, a);
    for (int j = 0; j < 4; ++j) key = larger(key, key_of(a[j]));
    float coded[4];
    for (int j = 0; j < 4; ++j) coded[j] = round_to(wire, a[j]);
    store_four(body, wire, i, in.n, coded);
    if (in.residual == nullptr) continue;
    for (int j = 0; j < 4; ++j) a[j] = a[j] - (dtype != wire ? round_to(dtype, coded[j]) : coded[j]);
    store_four(in.residual, DType::float32, i, in.n, a);
  }
  key = warp_largest(key);
  if (threadIdx.x % kWarp == 0 && !is_finite_key(key)) atomicOr(&header->late, 1);
}

// --- For callers, who see flags of their own. ---

static __global__ void mark_not_finite(Input in, uint32_t* flag) {
  uint32_t key = 0;
  for (size_t i = (static_cast<size_t>(blockIdx.x) * kThreads + threadIdx.x) * 4; i < in.n;
       i += static_cast<size_t>(gridDim.x) * kFours) {
    float x[4];
    load_four(in.x, in.dtype, i, in.n, x);
    for (int j = 0; j < 4; ++j) key = larger(key, key_of(x[j]));
  }
  key = warp_largest(key);
  if (threadIdx.x % kWarp == 0 && !is_finite_key(key)) atomicOr(flag, 1);
}

// Clears the flag, which was set, where an entry is not zero.
static __global__ void clear_unless_zero(Input in, uint32_t* flag) {
  uint32_t key = 0;
  for (size_t i = (static_cast<size_t>(blockIdx.x) * kThreads + threadIdx.x) * 4; i < in.n && key == 0;
       i += static_cast<size_t>(gridDim.x) * kFours) {
    float x[4];
    load_four(in.x, in.dtype, i, in.n, x);
    for (int j = 0; j < 4; ++j) key = larger(key, key_of(x[j]));
  }
  if (key != 0) *flag = 0;  // whoever writes, writes the same
}

// Cells of 16 bytes, aligned; the first and the last may lie partly outside of the target.
constexpr size_t kCell = sizeof(Cell);

template <class WriteCell, class WriteByte>
__device__ inline void for_each_cell(uint8_t* target, size_t bytes, WriteCell write_cell, WriteByte write_byte) {
  const size_t before = reinterpret_cast<uintptr_t>(target) % kCell, cells = (before + bytes + kCell - 1) / kCell;
  for (size_t c = static_cast<size_t>(blockIdx.x) * kThreads + threadIdx.x; c < cells;
       c += static_cast<size_t>(gridDim.x) * kThreads) {
    const size_t begin = c * kCell;  // counted from the first cell
    if (begin >= before && begin - before + kCell <= bytes) {
      write_cell(begin - before);
    } else {
      for (size_t i = begin > before ? begin - before : 0; i < bytes && i + before < begin + kCell; ++i) write_byte(i);
    }
  }
}

__device__ inline void fill_zero(uint8_t* target, size_t bytes) {
  for_each_cell(
      target, bytes, [&](size_t i) { *reinterpret_cast<Cell*>(target + i) = {{0, 0, 0, 0}}; },
      [&](size_t i) { target[i] = 0; });
}

static __global__ void zero_bytes_if(const uint32_t* flag, uint8_t* target, size_t bytes) {
  if (*flag != 0) fill_zero(target, bytes);
}

static __global__ void copy_bytes_if(const uint32_t* flag, const uint8_t* source, uint8_t* target, size_t bytes) {
  if (*flag == 0) return;
  const bool alike = reinterpret_cast<uintptr_t>(source) % kCell == reinterpret_cast<uintptr_t>(target) % kCell;
  for_each_cell(
      target, bytes,
      [&](size_t i) {
        if (alike) {
          *reinterpret_cast<Cell*>(target + i) = *reinterpret_cast<const Cell*>(source + i);
        } else {
          for (size_t j = i; j < i + kCell; ++j) target[j] = source[j];
        }
      },
      [&](size_t i) { target[i] = source[i]; });
}

// What a dense codec makes of zeros: a word for each block, then bytes, of which the last may be half used.
struct ZeroBody {
  size_t word_bytes;
  uint32_t word;
  uint8_t byte, last;

  __device__ uint8_t at(size_t i, size_t bytes) const {
    if (i < word_bytes) return static_cast<uint8_t>(word >> (8 * (i % 4)));
    return i + 1 < bytes ? byte : last;
  }
};

// The last kernel of a dense codec: tells how it went, and makes the body one of zeros if nothing is to be sent.
static __global__ void finish_dense(const Header* header, uint8_t* body, size_t bytes, ZeroBody zeros,
                                    uint32_t* status) {
  const uint32_t verdict = verdict_after(*header);
  if (blockIdx.x == 0 && threadIdx.x == 0) *status = verdict;
  if (verdict == kSent) return;
  for (size_t i = static_cast<size_t>(blockIdx.x) * kThreads + threadIdx.x; i < bytes;
       i += static_cast<size_t>(gridDim.x) * kThreads) {
    body[i] = zeros.at(i, bytes);
  }
}

}  // namespace tersegrad::cuda
