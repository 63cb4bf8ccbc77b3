// The kernels and their launches, on the host.
#include "codec.cu"  // NOLINT: the very same source

uint32_t tersegrad::emulation::candidates(const void* workspace) {
  return static_cast<const cuda::Header*>(workspace)->candidates;  // the first thing in it
}

static void look_back(uint64_t* links, size_t part, uint32_t own, uint32_t* before) {
  __shared__ uint32_t shared;
  *before = tersegrad::cuda::sum_of_parts_before(links, part, own, &shared);
}

uint32_t tersegrad::emulation::sum_of_parts_before(uint64_t* links, size_t part, uint32_t own) {
  uint32_t before = 0;
  run(1, cuda::kThreads, [&] { look_back(links, part, own, &before); });
  return before;
}
