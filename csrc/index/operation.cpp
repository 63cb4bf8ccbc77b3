#include "operation.h"

#include "../philox.h"
#include "streams.h"

namespace tersegrad::index {
namespace {

constexpr Fault kNotIncreasing = "the indices are not strictly increasing";

// Scattered entries each miss the cache; asking for them early lets the misses overlap.
constexpr size_t kAhead = 32;
void prefetch_write(const void* p) { __builtin_prefetch(p, 1); }

// Low parts are appended to a 64-bit buffer, low bit first, and leave it as whole words.
void encode_elias_fano(const uint32_t* index, size_t n, size_t k, uint8_t* stream) {
  const EliasFano layout = elias_fano_layout(n, k);
  const int low = layout.low_bits;
  uint8_t* high = stream + layout.low_bytes;
  memset(high, 0, layout.high_bytes);
  uint64_t buffer = 0, mask = (uint64_t{1} << low) - 1;
  int filled = 0;
  uint8_t* out = stream;
  for (size_t j = 0; j < k; ++j) {
    uint64_t bit = (index[j] >> low) + j, part = index[j] & mask;
    high[bit / 8] = static_cast<uint8_t>(high[bit / 8] | 1u << (bit % 8));
    buffer |= part << filled;
    filled += low;
    if (filled >= 64) {
      memcpy(out, &buffer, 8);
      out += 8;
      filled -= 64;
      buffer = filled > 0 ? part >> (low - filled) : 0;
    }
  }
  memcpy(out, &buffer, static_cast<size_t>((filled + 7) / 8));
}

void encode_bitmap(const uint32_t* index, size_t n, size_t k, uint8_t* stream) {
  memset(stream, 0, (n + 7) / 8);
  for (size_t j = 0; j < k; ++j) {
    stream[index[j] / 8] = static_cast<uint8_t>(stream[index[j] / 8] | 1u << (index[j] % 8));
  }
}

void encode_u16(const uint32_t* index, size_t n, size_t k, uint8_t* stream) {
  const size_t ranges = (n + kU16Range - 1) / kU16Range;
  uint8_t* offsets = stream + 4 * ranges;
  size_t j = 0;
  for (size_t range = 0; range < ranges; ++range) {
    size_t first = j;
    for (; j < k && index[j] / kU16Range == range; ++j) {
      auto offset = static_cast<uint16_t>(index[j] % kU16Range);
      memcpy(offsets + 2 * j, &offset, sizeof offset);
    }
    auto count = static_cast<uint32_t>(j - first);
    memcpy(stream + 4 * range, &count, sizeof count);
  }
}

}  // namespace

size_t encode(IndexForm form, const uint32_t* index, size_t n, size_t k, uint8_t* stream) {
  switch (form) {
    case IndexForm::elias_fano:
      encode_elias_fano(index, n, k, stream);
      break;
    case IndexForm::bitmap:
      encode_bitmap(index, n, k, stream);
      break;
    case IndexForm::u16:
      encode_u16(index, n, k, stream);
      break;
    case IndexForm::rice:
      return encode_rice(index, n, k, stream);
    case IndexForm::runs:
      return encode_runs(index, n, k, stream);
  }
  return index_stream_bytes(form, n, k);
}

Fault measure(IndexForm form, const uint8_t* stream, size_t available, size_t n, size_t k, size_t* bytes) {
  auto measure_form = form == IndexForm::runs ? measure_runs : measure_rice;
  return measure_form(stream, available, n, k, bytes);
}

Reader::Reader(IndexForm form, const uint8_t* stream, size_t bytes, size_t n, size_t k)
    : form_(form),
      stream_(stream),
      bytes_(bytes),
      n_(n),
      k_(k),
      layout_(elias_fano_layout(n, k)),
      rice_(stream, bytes, n, k),
      runs_(stream, bytes, n, k) {}

Fault Reader::start() {
  if (form_ == IndexForm::rice) return rice_.start();
  if (form_ == IndexForm::runs) return runs_.start();
  if (bytes_ != index_stream_bytes(form_, n_, k_)) return kWrongSize;
  bool zero = true;
  if (form_ == IndexForm::elias_fano) {
    ones_section_ = stream_ + layout_.low_bytes;
    ones_bytes_ = layout_.high_bytes;
    zero = padding_is_zero(stream_, k_ * static_cast<uint64_t>(layout_.low_bits)) &&
           padding_is_zero(ones_section_, layout_.high_bits);
  } else if (form_ == IndexForm::bitmap) {
    ones_section_ = stream_;
    ones_bytes_ = bytes_;
    zero = padding_is_zero(stream_, n_);
  } else {
    ranges_ = (n_ + kU16Range - 1) / kU16Range;
  }
  if (ones_bytes_ > 0) ones_ = load_word(ones_section_, ones_bytes_);
  return zero ? nullptr : kPaddingSet;
}

Fault Reader::read(uint32_t* index, size_t count) {
  if (form_ == IndexForm::rice) return rice_.read(index, count);
  if (form_ == IndexForm::runs) return runs_.read(index, count);
  bool complete = form_ == IndexForm::elias_fano ? read_elias_fano(index, count)
                  : form_ == IndexForm::bitmap   ? read_bitmap(index, count)
                                                 : read_u16(index, count);
  if (!complete) return kWrongCount;
  if (!increasing_) return kNotIncreasing;
  return next_ > n_ ? kOutOfRange : nullptr;
}

// Calls body(bit) for the next `count` ones; false if there are fewer.
template <class Body>
bool Reader::for_each_one(size_t count, Body&& body) {
  size_t at = ones_at_, left = count;
  uint64_t ones = ones_;
  while (left > 0) {
    for (; ones != 0 && left > 0; ones &= ones - 1, --left) {
      body(at * 8 + static_cast<uint64_t>(__builtin_ctzll(ones)));
    }
    if (left == 0) break;
    at += 8;
    if (at >= ones_bytes_) return false;
    ones = load_word(ones_section_ + at, ones_bytes_ - at);
  }
  ones_at_ = at;
  ones_ = ones;
  return true;
}

bool Reader::read_elias_fano(uint32_t* index, size_t count) {
  const auto low = static_cast<size_t>(layout_.low_bits);
  const uint64_t mask = (uint64_t{1} << low) - 1;
  size_t j = done_;
  uint64_t next = next_;
  bool increasing = increasing_;
  bool complete = for_each_one(count, [&](uint64_t bit) {
    size_t first = j * low;  // of the low part; it spans at most 31 + 7 bits
    uint64_t part = load_word(stream_ + first / 8, layout_.low_bytes - first / 8) >> (first % 8) & mask;
    uint64_t value = (bit - j) << low | part;
    increasing &= value >= next;
    next = value + 1;
    *index++ = static_cast<uint32_t>(value);
    ++j;
  });
  done_ = j;
  next_ = next;
  increasing_ = increasing;
  return complete;
}

bool Reader::read_bitmap(uint32_t* index, size_t count) {
  uint64_t next = next_;
  bool complete = for_each_one(count, [&](uint64_t bit) {
    *index++ = static_cast<uint32_t>(bit);
    next = bit + 1;
  });
  next_ = next;
  return complete;
}

bool Reader::read_u16(uint32_t* index, size_t count) {
  const uint8_t* offsets = stream_ + 4 * ranges_;
  for (size_t end = done_ + count; done_ < end;) {
    while (range_left_ == 0) {
      if (range_ == ranges_) return false;
      memcpy(&range_left_, stream_ + 4 * range_++, sizeof range_left_);
      if (range_left_ > k_ - done_) return false;
    }
    uint64_t start = (range_ - 1) * kU16Range, next = next_;
    bool increasing = increasing_;
    size_t here = std::min<size_t>(range_left_, end - done_);
    for (size_t j = done_; j < done_ + here; ++j) {
      uint16_t offset;
      memcpy(&offset, offsets + 2 * j, sizeof offset);
      increasing &= start + offset >= next;
      next = start + offset + 1;
      *index++ = static_cast<uint32_t>(start + offset);
    }
    next_ = next;
    increasing_ = increasing;
    done_ += here;
    range_left_ -= static_cast<uint32_t>(here);
  }
  return true;
}

Fault Reader::finish() const {
  if (form_ == IndexForm::rice) return rice_.finish();
  if (form_ == IndexForm::runs) return runs_.finish();
  uint64_t rest = ones_ | range_left_;
  for (size_t at = ones_at_ + 8; at < ones_bytes_; at += 8) rest |= load_word(ones_section_ + at, ones_bytes_ - at);
  for (size_t at = 4 * range_; at < 4 * ranges_; at += 4) rest |= load_word(stream_ + at, 4);
  return rest == 0 ? nullptr : kWrongCount;
}

Fault decode(IndexForm form, const uint8_t* stream, size_t bytes, size_t n, size_t k, uint32_t* index) {
  Reader reader(form, stream, bytes, n, k);
  if (Fault fault = reader.start()) return fault;
  if (Fault fault = reader.read(index, k)) return fault;
  return reader.finish();
}

void draw(size_t n, size_t k, uint64_t seed, uint32_t step, size_t first, size_t count, uint32_t* index) {
  for_each_chunk(count, 1, [&](size_t begin, size_t end) {
    for (size_t j = begin; j < end; ++j) {
      index[j] = stratum_index(n, k, first + j, philox(seed, first + j, step, kRandomMask).word[0]);
    }
  });
}

void gather(const Entries& x, const uint32_t* index, size_t k, float* value) {
  for_each_chunk(k, 1, [&](size_t begin, size_t end) {
    for (size_t j = begin; j < end; ++j) value[j] = load_entry(x.data, x.dtype, index[j]);
  });
}

void scatter(const uint32_t* index, const float* value, size_t k, const Output& out) {
  for_each_chunk(k, 1, [&](size_t begin, size_t end) {
    auto each = [&](auto&& put) {
      for (size_t j = begin; j < end; ++j) {
        prefetch_write(out.at(index[std::min(j + kAhead, end - 1)]));
        put(index[j], out.scale * value[j]);
      }
    };
    auto* floats = static_cast<float*>(out.data);
    if (out.dtype == DType::float32 && out.accumulate) {
      each([&](size_t i, float v) { floats[i] = floats[i] + v; });
    } else if (out.accumulate) {
      each([&](size_t i, float v) { store_entry(out.data, out.dtype, i, load_entry(out.data, out.dtype, i) + v); });
    } else {
      each([&](size_t i, float v) { store_entry(out.data, out.dtype, i, v); });
    }
  });
}

void settle(float* residual, const uint32_t* index, const float* value, const float* decoded, size_t k) {
  for_each_chunk(k, 1, [&](size_t begin, size_t end) {
    for (size_t j = begin; j < end; ++j) {
      prefetch_write(residual + index[std::min(j + kAhead, end - 1)]);
      residual[index[j]] = value[j] - decoded[j];
    }
  });
}

}  // namespace tersegrad::index
