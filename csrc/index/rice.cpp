// Golomb-Rice codes of the gaps between indices, sixteen at a time: docs/format.md section 3, form 4. The three parts
// of a code lie in three sections, so that a group is read without a step whose length depends on the step before: its
// low parts have one width, its high parts are the distances between ones.
#include "rice.h"

namespace tersegrad::index {
namespace {

// Where the sections lie, in bytes, and how many bits of them are used.
struct Sections {
  uint64_t parameter_bits, low_bits;
  size_t low_at, high_at;
};

size_t bytes_of(uint64_t bits) { return static_cast<size_t>((bits + 7) / 8); }

// Bits leave a 64-bit buffer low bit first, as whole bytes; up to eight bytes beyond them are overwritten.
class BitWriter {
 public:
  explicit BitWriter(uint8_t* out) : out_(out) {}

  // At most 56 bits, the others zero.
  void put(uint64_t bits, int count) {
    buffer_ |= bits << filled_;
    filled_ += count;
    memcpy(out_, &buffer_, sizeof buffer_);
    out_ += filled_ / 8;
    buffer_ >>= filled_ & ~7;
    filled_ &= 7;
  }
  // The byte after the last used one.
  uint8_t* end() const { return out_ + (filled_ > 0); }

 private:
  uint8_t* out_;
  uint64_t buffer_ = 0;
  int filled_ = 0;
};

// Up to this width four parts, and the bits of a byte before them, fit into a word.
constexpr int kNarrow = 14;

// Calls body(first, count, l) for every group of indices, l its parameter, which follows from the indices at its ends.
template <class Body>
void for_each_group(const uint32_t* index, size_t k, Body&& body) {
  uint64_t next = 0;  // the least index that may come
  for (size_t first = 0; first < k; first += kRiceGroup) {
    const size_t count = std::min<size_t>(kRiceGroup, k - first);
    const uint64_t end = index[first + count - 1] + uint64_t{1};
    body(first, count, rice_low_bits(end - next - count, count));
    next = end;
  }
}

// The gaps before `count` indices from `first` on; the rest of the group is zero.
struct Gaps {
  uint32_t gap[kRiceGroup] = {};
  Gaps(const uint32_t* index, size_t first, size_t count) {
    uint32_t next = first == 0 ? 0 : index[first - 1] + 1;
    for (size_t j = 0; j < count; ++j) {
      gap[j] = index[first + j] - next;
      next = index[first + j] + 1;
    }
  }
};

// The low parts of a whole group, so many from each word; reads up to eight bytes more than they take.
template <size_t at_once>
void unpack_parts(const uint8_t* parts, int l, uint32_t* part) {
  const auto width = static_cast<size_t>(l);
  const uint64_t mask = (uint64_t{1} << l) - 1;
  for (size_t j = 0; j < kRiceGroup; j += at_once) {
    uint64_t word;
    memcpy(&word, parts + j * width / 8, sizeof word);
    word >>= j * width % 8;
    for (size_t i = j; i < j + at_once; ++i, word >>= l) part[i] = static_cast<uint32_t>(word & mask);
  }
}

// The sections of the stream that starts there, as its parameters state them.
Fault locate(const uint8_t* stream, size_t bytes, size_t n, size_t k, Sections& sections) {
  RiceParameters parameters(stream, bytes, n, k);
  uint64_t low_bits = 0;
  for (size_t left = k; left > 0;) {
    if (Fault fault = parameters.next()) return fault;
    const size_t count = std::min<size_t>(kRiceGroup, left);
    low_bits += count * static_cast<uint64_t>(parameters.low_bits());
    left -= count;
  }
  const uint64_t bits = parameters.bits();
  sections = {bits, low_bits, bytes_of(bits), bytes_of(bits) + bytes_of(low_bits)};
  return sections.high_at <= bytes ? nullptr : kWrongSize;
}

}  // namespace

size_t encode_rice(const uint32_t* index, size_t n, size_t k, uint8_t* stream) {
  if (k == 0) return 0;
  BitWriter parameters(stream);
  int previous = elias_fano_low_bits(n, k);
  for_each_group(index, k, [&](size_t, size_t, int l) {
    uint32_t step = rice_step(previous, l);
    parameters.put(uint64_t{1} << step, static_cast<int>(step) + 1);
    previous = l;
  });

  BitWriter lows(parameters.end());
  for_each_group(index, k, [&](size_t first, size_t count, int l) {
    const Gaps gaps(index, first, count);
    const uint64_t mask = (uint64_t{1} << l) - 1;
    auto part = [&](size_t j) { return gaps.gap[j] & mask; };
    if (l <= kNarrow) {
      for (size_t j = 0; j < count; j += 4) {
        uint64_t four = (part(j) | part(j + 1) << l) | (part(j + 2) | part(j + 3) << l) << 2 * l;
        lows.put(four, l * static_cast<int>(std::min<size_t>(4, count - j)));
      }
    } else {
      for (size_t j = 0; j < count; ++j) lows.put(part(j), l);
    }
  });

  // Ones are gathered in a word, which is stored when the next one belongs to a later word.
  uint8_t* high = lows.end();
  uint64_t word = 0, words = 0, bit = 0;
  for_each_group(index, k, [&](size_t first, size_t count, int l) {
    const Gaps gaps(index, first, count);
    for (size_t j = 0; j < count; ++j, ++bit) {
      bit += gaps.gap[j] >> l;
      for (; words < bit / 64; ++words) {
        memcpy(high + 8 * words, &word, sizeof word);
        word = 0;
      }
      word |= uint64_t{1} << (bit % 64);
    }
  });
  memcpy(high + 8 * words, &word, bytes_of(bit) - 8 * words);
  return static_cast<size_t>(high - stream) + bytes_of(bit);
}

Fault RiceReader::start() {
  if (bytes_ < rice_bytes_at_least(k_) || bytes_ > rice_bytes_at_most(n_, k_)) return kWrongSize;
  if (k_ == 0) return nullptr;
  Sections sections;
  if (Fault fault = locate(stream_, bytes_, n_, k_, sections)) return fault;
  if (!padding_is_zero(stream_, sections.parameter_bits) ||
      !padding_is_zero(stream_ + sections.low_at, sections.low_bits)) {
    return kPaddingSet;
  }
  low_at_ = sections.low_at;
  high_bytes_ = bytes_ - sections.high_at;
  ones_ = RiceOnes(stream_ + sections.high_at, high_bytes_);
  return nullptr;
}

Fault RiceReader::read(uint32_t* index, size_t total) {
  RiceParameters parameters = parameters_;
  RiceOnes ones = ones_;
  uint64_t next = next_, bit = bit_;
  size_t low_at = low_at_;
  uint8_t copy[4 * kRiceGroup + 8];  // low parts that lie nearer to the end of the stream than a word is long
  for (size_t first = 0; first < total; first += kRiceGroup) {
    const size_t count = std::min<size_t>(kRiceGroup, total - first);
    if (Fault fault = parameters.next()) return fault;
    const int l = parameters.low_bits();
    const size_t left = bytes_ - std::min(low_at, bytes_);
    const uint8_t* parts = stream_ + low_at;
    if (left < sizeof copy) {
      memset(copy, 0, sizeof copy);
      parts = static_cast<const uint8_t*>(memcpy(copy, stream_ + bytes_ - left, left));
    }
    uint32_t part[kRiceGroup];
    (l <= kNarrow ? unpack_parts<4> : unpack_parts<1>)(parts, l, part);
    const uint64_t begin = next, begin_bit = bit;
    uint64_t sum = begin;  // and the low parts
    for (size_t j = 0; j < count; ++j) {
      if (!ones.find()) return kWrongCount;
      uint64_t one = ones.take();
      sum += part[j];
      next = sum + ((one - begin_bit - j) << l) + j;
      index[first + j] = static_cast<uint32_t>(next);
      bit = one + 1;
    }
    low_at += 2 * static_cast<size_t>(l);
    // High parts that reach beyond n are refused before their sum could wrap.
    if (bit - begin_bit - count > n_ >> l || next >= n_) return kOutOfRange;
    ++next;
    if (!is_rice_low_bits(l, next - begin - count, count)) return kWrongParameter;
  }
  parameters_ = parameters;
  ones_ = ones;
  next_ = next;
  bit_ = bit;
  low_at_ = low_at;
  return nullptr;
}

Fault RiceReader::finish() const {
  RiceOnes rest = ones_;
  if (rest.find()) return kWrongCount;
  return bytes_of(bit_) == high_bytes_ ? nullptr : kWrongSize;
}

Fault measure_rice(const uint8_t* stream, size_t available, size_t n, size_t k, size_t* bytes) {
  *bytes = 0;
  if (available < rice_bytes_at_least(k)) return kWrongSize;
  if (k == 0) return nullptr;
  available = std::min<size_t>(available, rice_bytes_at_most(n, k));
  Sections sections;
  if (Fault fault = locate(stream, available, n, k, sections)) return fault;
  const uint8_t* high = stream + sections.high_at;
  const size_t high_bytes = available - sections.high_at;
  size_t found = 0, at = 0;
  for (; at < high_bytes; at += 8) {
    auto here = static_cast<size_t>(__builtin_popcountll(load_word(high + at, high_bytes - at)));
    if (found + here >= k) break;
    found += here;
  }
  for (; at < high_bytes && found < k; ++at) found += static_cast<size_t>(__builtin_popcount(high[at]));
  if (found != k) return kWrongCount;
  *bytes = sections.high_at + at;
  return nullptr;
}

}  // namespace tersegrad::index
