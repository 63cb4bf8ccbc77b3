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

Fault decode_elias_fano(const uint8_t* stream, size_t n, size_t k, uint32_t* index) {
  const EliasFano layout = elias_fano_layout(n, k);
  const auto low = static_cast<size_t>(layout.low_bits);
  const uint8_t* high = stream + layout.low_bytes;
  if (!padding_is_zero(stream, k * low) || !padding_is_zero(high, layout.high_bits)) return kPaddingSet;
  const uint64_t mask = (uint64_t{1} << low) - 1;
  size_t j = 0;
  uint64_t previous = 0;
  bool increasing = true;
  for (size_t at = 0; at < layout.high_bytes; at += 8) {
    for (uint64_t ones = load_word(high + at, layout.high_bytes - at); ones != 0; ones &= ones - 1) {
      if (j == k) return kWrongCount;
      uint64_t bit = at * 8 + static_cast<uint64_t>(__builtin_ctzll(ones));
      size_t first = j * low;  // of the low part; it spans at most 31 + 7 bits
      uint64_t part = load_word(stream + first / 8, layout.low_bytes - first / 8) >> (first % 8) & mask;
      uint64_t value = (bit - j) << low | part;
      increasing &= j == 0 || value > previous;
      previous = value;
      index[j++] = static_cast<uint32_t>(value);
    }
  }
  if (j != k) return kWrongCount;
  if (!increasing) return kNotIncreasing;
  return k > 0 && previous >= n ? kOutOfRange : nullptr;
}

void encode_bitmap(const uint32_t* index, size_t n, size_t k, uint8_t* stream) {
  memset(stream, 0, (n + 7) / 8);
  for (size_t j = 0; j < k; ++j) {
    stream[index[j] / 8] = static_cast<uint8_t>(stream[index[j] / 8] | 1u << (index[j] % 8));
  }
}

Fault decode_bitmap(const uint8_t* stream, size_t n, size_t k, uint32_t* index) {
  const size_t bytes = (n + 7) / 8;
  if (!padding_is_zero(stream, n)) return kPaddingSet;
  size_t j = 0;
  for (size_t at = 0; at < bytes; at += 8) {
    for (uint64_t ones = load_word(stream + at, bytes - at); ones != 0; ones &= ones - 1) {
      if (j == k) return kWrongCount;
      index[j++] = static_cast<uint32_t>(at * 8 + static_cast<uint64_t>(__builtin_ctzll(ones)));
    }
  }
  return j == k ? nullptr : kWrongCount;
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

Fault decode_u16(const uint8_t* stream, size_t n, size_t k, uint32_t* index) {
  const size_t ranges = (n + kU16Range - 1) / kU16Range;
  const uint8_t* offsets = stream + 4 * ranges;
  size_t j = 0;
  bool increasing = true;
  for (size_t range = 0; range < ranges; ++range) {
    uint32_t count;
    memcpy(&count, stream + 4 * range, sizeof count);
    if (count > k - j) return kWrongCount;
    for (size_t end = j + count, first = j; j < end; ++j) {
      uint16_t offset;
      memcpy(&offset, offsets + 2 * j, sizeof offset);
      index[j] = static_cast<uint32_t>(range * kU16Range + offset);
      increasing &= j == first || index[j] > index[j - 1];
    }
  }
  if (j != k) return kWrongCount;
  if (!increasing) return kNotIncreasing;
  return k > 0 && index[k - 1] >= n ? kOutOfRange : nullptr;
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
  }
  return index_stream_bytes(form, n, k);
}

Fault decode(IndexForm form, const uint8_t* stream, size_t bytes, size_t n, size_t k, uint32_t* index) {
  if (form == IndexForm::rice) return decode_rice(stream, bytes, n, k, index);
  if (bytes != index_stream_bytes(form, n, k)) return kWrongSize;
  switch (form) {
    case IndexForm::elias_fano:
      return decode_elias_fano(stream, n, k, index);
    case IndexForm::bitmap:
      return decode_bitmap(stream, n, k, index);
    default:
      return decode_u16(stream, n, k, index);
  }
}

void draw(size_t n, size_t k, uint64_t seed, uint32_t step, uint32_t* index) {
  for_each_chunk(k, 1, [&](size_t begin, size_t end) {
    for (size_t j = begin; j < end; ++j) {
      index[j] = stratum_index(n, k, j, philox(seed, j, step, kRandomMask).word[0]);
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
