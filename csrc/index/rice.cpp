// Golomb-Rice codes of the gaps between indices, sixteen at a time: docs/format.md section 3, form 4. The three parts
// of a code lie in three sections, so that a group is read without a step whose length depends on the step before: its
// low parts have one width, its high parts are the distances between ones.
#include <memory>

#include "operation.h"
#include "streams.h"

namespace tersegrad::index {
namespace {

constexpr Fault kWrongParameter = "a parameter of the index stream is not that of its indices";

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

// The parameter of group `group`, from the indices at its ends; `count` of them.
int group_parameter(const uint32_t* index, size_t first, size_t count) {
  uint64_t from = first == 0 ? 0 : uint64_t{index[first - 1]} + 1;
  return rice_low_bits(index[first + count - 1] + uint64_t{1} - from - count, count);
}

// Calls body(first, count) for every group of k indices.
template <class Body>
void for_each_group(size_t k, Body&& body) {
  for (size_t first = 0; first < k; first += kRiceGroup) body(first, std::min<size_t>(kRiceGroup, k - first));
}

// Reads the parameters into `parameter`, one for each group, if it is not null.
Fault read_parameters(const uint8_t* stream, size_t bytes, size_t n, size_t k, uint8_t* parameter, Sections& sections) {
  uint64_t at = 0, low_bits = 0;
  int l = elias_fano_low_bits(n, k);
  for (size_t group = 0, left = k; group < rice_groups(k); ++group) {
    const auto byte = static_cast<size_t>(at / 8);
    if (byte >= bytes) return kWrongSize;
    uint64_t window = load_word(stream + byte, bytes - byte) >> (at % 8);
    uint64_t step = window == 0 ? 32 : static_cast<uint64_t>(__builtin_ctzll(window));
    if (step > 31) return kWrongParameter;
    at += step + 1;
    l = rice_after(l, static_cast<uint32_t>(step));
    if (parameter) parameter[group] = static_cast<uint8_t>(l);
    uint64_t count = std::min<uint64_t>(kRiceGroup, left);
    low_bits += count * static_cast<uint64_t>(l);
    left -= count;
  }
  sections = {at, low_bits, bytes_of(at), bytes_of(at) + bytes_of(low_bits)};
  return sections.high_at <= bytes ? nullptr : kWrongSize;
}

// The ones of the high section, in order.
class Ones {
 public:
  Ones(const uint8_t* section, size_t bytes) : section_(section), bytes_(bytes), word_(load_word(section, bytes)) {}

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
  const uint8_t* section_;
  size_t bytes_, at_ = 0;
  uint64_t word_;
};

}  // namespace

size_t encode_rice(const uint32_t* index, size_t n, size_t k, uint8_t* stream) {
  if (k == 0) return 0;
  BitWriter parameters(stream);
  int previous = elias_fano_low_bits(n, k);
  for_each_group(k, [&](size_t first, size_t count) {
    int l = group_parameter(index, first, count);
    uint32_t step = rice_step(previous, l);
    parameters.put(uint64_t{1} << step, static_cast<int>(step) + 1);
    previous = l;
  });

  BitWriter lows(parameters.end());
  for_each_group(k, [&](size_t first, size_t count) {
    int l = group_parameter(index, first, count);
    const uint32_t mask = (uint32_t{1} << l) - 1;
    uint32_t before = first == 0 ? UINT32_MAX : index[first - 1];
    for (size_t j = first; j < first + count; ++j) {
      lows.put((index[j] - before - 1) & mask, l);
      before = index[j];
    }
  });

  // Ones are gathered in a word, which is stored when the next one belongs to a later word.
  uint8_t* high = lows.end();
  uint64_t word = 0, words = 0, bit = 0;
  for_each_group(k, [&](size_t first, size_t count) {
    int l = group_parameter(index, first, count);
    uint32_t before = first == 0 ? UINT32_MAX : index[first - 1];
    for (size_t j = first; j < first + count; ++j) {
      bit += (index[j] - before - 1) >> l;
      for (; words < bit / 64; ++words) {
        memcpy(high + 8 * words, &word, sizeof word);
        word = 0;
      }
      word |= uint64_t{1} << (bit % 64);
      ++bit;
      before = index[j];
    }
  });
  memcpy(high + 8 * words, &word, bytes_of(bit) - 8 * words);
  return static_cast<size_t>(high - stream) + bytes_of(bit);
}

Fault decode_rice(const uint8_t* stream, size_t bytes, size_t n, size_t k, uint32_t* index) {
  if (bytes < rice_bytes_at_least(k) || bytes > rice_bytes_at_most(n, k)) return kWrongSize;
  if (k == 0) return nullptr;
  std::unique_ptr<uint8_t[]> parameter(new uint8_t[rice_groups(k)]);
  Sections sections;
  if (Fault fault = read_parameters(stream, bytes, n, k, parameter.get(), sections)) return fault;
  if (!padding_is_zero(stream, sections.parameter_bits) ||
      !padding_is_zero(stream + sections.low_at, sections.low_bits)) {
    return kPaddingSet;
  }
  const size_t high_bytes = bytes - sections.high_at;
  Ones ones(stream + sections.high_at, high_bytes);
  const uint8_t* low = stream + sections.low_at;
  uint64_t next = 0, bit = 0;        // the least index, and the first bit, that may come
  uint8_t copy[4 * kRiceGroup + 8];  // low parts that lie nearer to the end of the stream than a word is long
  for (size_t first = 0; first < k; first += kRiceGroup) {
    const size_t count = std::min<size_t>(kRiceGroup, k - first);
    const int l = parameter[first / kRiceGroup];
    const auto width = static_cast<size_t>(l);
    const uint64_t mask = (uint64_t{1} << l) - 1;
    const uint8_t* parts = low;
    const auto left = static_cast<size_t>(stream + bytes - low);
    if (left < sizeof copy) {
      memset(copy, 0, sizeof copy);
      parts = static_cast<const uint8_t*>(memcpy(copy, low, left));
    }
    const uint64_t begin = next, begin_bit = bit;
    uint64_t sum = 0;  // of the low parts
    for (size_t j = 0; j < count; ++j) {
      if (!ones.find()) return kWrongCount;
      uint64_t one = ones.take();
      size_t at = j * width;
      uint64_t part;
      memcpy(&part, parts + at / 8, sizeof part);
      sum += (part >> (at % 8)) & mask;
      next = begin + sum + ((one - begin_bit - j) << l) + j;
      index[first + j] = static_cast<uint32_t>(next);
      bit = one + 1;
    }
    low += 2 * width;
    // High parts that reach beyond n are refused before their sum could wrap.
    if (bit - begin_bit - count > n >> l || next >= n) return kOutOfRange;
    ++next;
    if (!is_rice_low_bits(l, next - begin - count, count)) return kWrongParameter;
  }
  if (ones.find()) return kWrongCount;
  return bytes_of(bit) == high_bytes ? nullptr : kWrongSize;
}

Fault measure_rice(const uint8_t* stream, size_t available, size_t n, size_t k, size_t* bytes) {
  *bytes = 0;
  if (available < rice_bytes_at_least(k)) return kWrongSize;
  if (k == 0) return nullptr;
  available = std::min<size_t>(available, rice_bytes_at_most(n, k));
  Sections sections;
  if (Fault fault = read_parameters(stream, available, n, k, nullptr, sections)) return fault;
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
