// The k survivors: their indices in and out of streams, their values in and out of tensors.
#pragma once

#include "../tensor.h"
#include "spec.h"

namespace tersegrad::index {

// `index` is ascending and below n; `stream` has index_stream_bytes(form, n, k).
void encode(IndexForm form, const uint32_t* index, size_t n, size_t k, uint8_t* stream);
// Checks order, range, count and padding on the way.
Fault decode(IndexForm form, const uint8_t* stream, size_t n, size_t k, uint32_t* index);

void draw(size_t n, size_t k, uint64_t seed, uint32_t step, uint32_t* index);

void gather(const Entries& x, const uint32_t* index, size_t k, float* value);
// out[index[j]] takes value[j] as `out` says; other entries stay.
void scatter(const uint32_t* index, const float* value, size_t k, const Output& out);
// residual[index[j]] = value[j] - decoded[j]
void settle(float* residual, const uint32_t* index, const float* value, const float* decoded, size_t k);

}  // namespace tersegrad::index
