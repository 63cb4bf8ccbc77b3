// The k survivors: their indices in and out of streams, their values in and out of tensors.
#pragma once

#include "../tensor.h"
#include "runs.h"
#include "spec.h"

namespace tersegrad::index {

// `index` is ascending and below n; `stream` has room for index_stream_bytes(form, n, k). Returns the bytes written.
size_t encode(IndexForm form, const uint32_t* index, size_t n, size_t k, uint8_t* stream);
// Takes a stream of exactly `bytes`. Checks size, order, range, count and padding on the way.
Fault decode(IndexForm form, const uint8_t* stream, size_t bytes, size_t n, size_t k, uint32_t* index);

// How many of the `available` bytes are the stream that starts there, of a form without a fixed size. Whether it is one
// is left to Reader.
Fault measure(IndexForm form, const uint8_t* stream, size_t available, size_t n, size_t k, size_t* bytes);

// Reads a stream of exactly `bytes` in pieces. What it gives is ascending and below n, whatever the stream holds.
class Reader {
 public:
  Reader(IndexForm form, const uint8_t* stream, size_t bytes, size_t n, size_t k);
  Fault start();                              // size and padding
  Fault read(uint32_t* index, size_t count);  // the next `count`, of k in all: a multiple of 16, but for the last
  Fault finish() const;                       // after k: whether the stream holds more

 private:
  template <class Body>
  bool for_each_one(size_t count, Body&& body);
  bool read_elias_fano(uint32_t* index, size_t count);
  bool read_bitmap(uint32_t* index, size_t count);
  bool read_u16(uint32_t* index, size_t count);

  IndexForm form_;
  const uint8_t* stream_;
  size_t bytes_, n_, k_;
  EliasFano layout_;
  size_t done_ = 0;
  uint64_t next_ = 0;  // the least index that may come
  bool increasing_ = true;
  const uint8_t* ones_section_ = nullptr;  // elias_fano, bitmap: a bit vector, the word at hand and its offset
  size_t ones_bytes_ = 0, ones_at_ = 0;
  uint64_t ones_ = 0;
  size_t ranges_ = 0, range_ = 0;  // u16: the next range, and what is left of the one before
  uint32_t range_left_ = 0;
  RiceReader rice_;
  RunsReader runs_;
};

// Indices `first` to `first + count` of the k that are drawn.
void draw(size_t n, size_t k, uint64_t seed, uint32_t step, size_t first, size_t count, uint32_t* index);

void gather(const Entries& x, const uint32_t* index, size_t k, float* value);
// out[index[j]] takes value[j] as `out` says; other entries stay.
void scatter(const uint32_t* index, const float* value, size_t k, const Output& out);
// residual[index[j]] = value[j] - decoded[j]
void settle(float* residual, const uint32_t* index, const float* value, const float* decoded, size_t k);

}  // namespace tersegrad::index
