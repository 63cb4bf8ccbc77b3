// The k survivors: their indices in and out of streams, their values in and out of tensors.
#pragma once

#include "../tensor.h"
#include "spec.h"

namespace tersegrad::index {

// `index` is ascending and below n; `stream` has room for index_stream_bytes(form, n, k). Returns the bytes written.
size_t encode(IndexForm form, const uint32_t* index, size_t n, size_t k, uint8_t* stream);
// Takes a stream of exactly `bytes`. Checks size, order, range, count and padding on the way.
Fault decode(IndexForm form, const uint8_t* stream, size_t bytes, size_t n, size_t k, uint32_t* index);

// The same for IndexForm::rice, in rice.cpp.
size_t encode_rice(const uint32_t* index, size_t n, size_t k, uint8_t* stream);
Fault decode_rice(const uint8_t* stream, size_t bytes, size_t n, size_t k, uint32_t* index);
// How many of the `available` bytes are the stream that starts there. Whether it is one is left to decode_rice.
Fault measure_rice(const uint8_t* stream, size_t available, size_t n, size_t k, size_t* bytes);

void draw(size_t n, size_t k, uint64_t seed, uint32_t step, uint32_t* index);

void gather(const Entries& x, const uint32_t* index, size_t k, float* value);
// out[index[j]] takes value[j] as `out` says; other entries stay.
void scatter(const uint32_t* index, const float* value, size_t k, const Output& out);
// residual[index[j]] = value[j] - decoded[j]
void settle(float* residual, const uint32_t* index, const float* value, const float* decoded, size_t k);

}  // namespace tersegrad::index
