// Index streams of form 4, rice: docs/format.md section 3.
#pragma once

#include "spec.h"
#include "streams.h"

namespace tersegrad::index {

constexpr Fault kWrongParameter = "a parameter of the index stream is not that of its indices";

// As encode in operation.h.
size_t encode_rice(const uint32_t* index, size_t n, size_t k, uint8_t* stream);
// How many of the `available` bytes are the stream that starts there. Whether it is one is left to RiceReader.
Fault measure_rice(const uint8_t* stream, size_t available, size_t n, size_t k, size_t* bytes);

// The parameters of a stream in order, each a step from the one before.
class RiceParameters {
 public:
  RiceParameters(const uint8_t* stream, size_t bytes, size_t n, size_t k)
      : stream_(stream), bytes_(bytes), low_bits_(k == 0 ? 0 : elias_fano_low_bits(n, k)) {}

  Fault next() {
    const auto byte = static_cast<size_t>(at_ / 8);
    if (byte >= bytes_) return kWrongSize;
    uint64_t window = load_word(stream_ + byte, bytes_ - byte) >> (at_ % 8);
    uint64_t step = window == 0 ? 32 : static_cast<uint64_t>(__builtin_ctzll(window));
    if (step > 31) return kWrongParameter;
    at_ += step + 1;
    low_bits_ = rice_after(low_bits_, static_cast<uint32_t>(step));
    return nullptr;
  }
  int low_bits() const { return low_bits_; }
  uint64_t bits() const { return at_; }  // that were read

 private:
  const uint8_t* stream_;
  size_t bytes_;
  uint64_t at_ = 0;
  int low_bits_;
};

// The ones of the high section, in order.
class RiceOnes {
 public:
  RiceOnes() = default;
  RiceOnes(const uint8_t* section, size_t bytes) : section_(section), bytes_(bytes), word_(load_word(section, bytes)) {}

  // Moves on to the next one; false if there is none.
  bool find() {
    while (word_ == 0) {
      if ((at_ += 8) >= bytes_) return false;
      word_ = load_word(section_ + at_, bytes_ - at_);
    }
    return true;
  }
  uint64_t take() {
    uint64_t bit = at_ * 8 + static_cast<uint64_t>(__builtin_ctzll(word_));
    word_ &= word_ - 1;
    return bit;
  }

 private:
  const uint8_t* section_ = nullptr;
  size_t bytes_ = 0, at_ = 0;
  uint64_t word_ = 0;
};

// As Reader in operation.h, in pieces of whole groups but for the last.
class RiceReader {
 public:
  RiceReader(const uint8_t* stream, size_t bytes, size_t n, size_t k)
      : stream_(stream), bytes_(bytes), n_(n), k_(k), parameters_(stream, bytes, n, k) {}
  Fault start();
  Fault read(uint32_t* index, size_t total);
  Fault finish() const;

 private:
  const uint8_t* stream_;
  size_t bytes_, n_, k_, low_at_ = 0, high_bytes_ = 0;
  RiceParameters parameters_;
  RiceOnes ones_;
  uint64_t next_ = 0, bit_ = 0;  // the least index, and the first bit, that may come
};

}  // namespace tersegrad::index
