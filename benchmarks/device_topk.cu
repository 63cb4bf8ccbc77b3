// cub::DeviceTopK behind a C function, as a peer of benchmarks/cuda.py: the k largest magnitudes with their indices. It needs CCCL 3.2
// or newer; ties at the k-th place and the order of its output change from run to run, which it insists on.
#include <cstdint>
#include <cub/device/device_topk.cuh>
#include <thrust/iterator/counting_iterator.h>
#include <thrust/iterator/transform_iterator.h>

namespace {

struct Magnitude {
  __host__ __device__ uint32_t operator()(uint32_t bits) const { return bits & 0x7fffffffu; }
};

}  // namespace

// Two calls, as is CUB's custom: without `temporary` it sets `temporary_bytes`.
extern "C" int device_topk(void* temporary, size_t* temporary_bytes, const uint32_t* x, uint32_t* keys, uint32_t* index,
                           uint32_t n, uint32_t k, cudaStream_t stream) {
  const auto requirements = cuda::execution::require(cuda::execution::determinism::not_guaranteed,
                                                     cuda::execution::output_ordering::unsorted);
  const auto environment = cuda::std::execution::env{cuda::stream_ref{stream}, requirements};
  const auto magnitudes = thrust::make_transform_iterator(x, Magnitude{});
  const auto indices = thrust::make_counting_iterator<uint32_t>(0);
  return static_cast<int>(cub::DeviceTopK::MaxPairs(temporary, *temporary_bytes, magnitudes, keys, indices, index, n, k,
                                                    environment));
}
