// What all kernels of one call share: the header of its workspace, and the entries it reads.
#pragma once

#include "block.cuh"

namespace tersegrad::cuda {

constexpr unsigned kDigits = 3;  // of the 31 bits of a key: 11, 10 and 10
constexpr unsigned kBins = 2048;
TG_SPEC unsigned digit_shift(unsigned digit) { return digit == 0 ? 20 : digit == 1 ? 10 : 0; }
TG_SPEC unsigned digit_bits(unsigned digit) { return digit == 0 ? 11 : 10; }

// As docs/cuda.md: what became of a call. Above `sent`, the body is that of zeros and the residual is untouched.
enum Status : uint32_t { kSent = 0, kAbsent = 1, kNotFinite = 2, kSumNotFinite = 3 };

// A kernel reads what kernels before it wrote, but for the counters, which it alone uses: a word that changes while
// blocks run would send threads of one block different ways.
struct Header {
  uint32_t absent;      // the caller's `skip`
  uint32_t x_is_bad;    // found by the look at x before anything is written,
  uint32_t sum_is_bad;  // and at x + residual
  uint32_t late;        // found while encoding
  uint32_t candidates;  // collected; more than fit, if too many
  uint32_t threshold;   // which they reach
  uint32_t prefix;      // of the k-th key: the digits that are known
  uint32_t above;       // entries with a larger prefix
  uint32_t finished[kDigits];
  uint32_t histogram[kDigits][kBins];
};
constexpr unsigned kHeaderWords = sizeof(Header) / sizeof(uint32_t);

// What is known before the encoding proper.
__device__ inline uint32_t verdict_before(const Header& header) {
  return header.absent ? kAbsent : header.x_is_bad ? kNotFinite : header.sum_is_bad ? kSumNotFinite : kSent;
}
__device__ inline uint32_t verdict_after(const Header& header) {
  const uint32_t before = verdict_before(header);
  return before == kSent && header.late ? static_cast<uint32_t>(kNotFinite) : before;
}

// A number that the host knows, or one on the device: in a captured graph the first would never change.
struct Step {
  uint32_t value;
  const uint32_t* at;
  __device__ uint32_t get() const { return at != nullptr ? *at : value; }
};

struct Input {
  const void* x;
  DType dtype;
  size_t n;
  float* residual;  // or null

  __device__ float get(size_t i) const {
    float a = load_aligned(x, dtype, i);
    return residual != nullptr ? a + residual[i] : a;
  }
  // Entries i to i + 4, or to n; those from n on are zero.
  __device__ void get_four(size_t i, float (&a)[4]) const {
    load_four(x, dtype, i, n, a);
    if (residual == nullptr) return;
    float r[4];
    load_four(residual, DType::float32, i, n, r);
    for (int j = 0; j < 4; ++j) a[j] = a[j] + r[j];
  }
};

// By one block, as are the callers. The caller's flag is read before others see the header.
template <class T>
__device__ inline void clear(T* words, size_t count) {
  for (size_t i = threadIdx.x; i < count; i += blockDim.x) words[i] = 0;
}
__device__ inline void clear(Header* header) { clear(reinterpret_cast<uint32_t*>(header), kHeaderWords); }
__device__ inline bool is_skipped(const uint32_t* skip) { return skip != nullptr && *skip != 0; }

// The headers of the entries and, for a sparse codec, of the survivors' values.
static __global__ void begin_call(Header* header, Header* values_header, const uint32_t* skip) {
  clear(header);
  if (values_header != nullptr) clear(values_header);
  __syncthreads();
  if (threadIdx.x == 0) header->absent = is_skipped(skip);
}

}  // namespace tersegrad::cuda
