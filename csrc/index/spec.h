// Index streams: docs/format.md section 3. Their sizes are arithmetic on (n, k), but for rice, whose bound is.
#pragma once

#include <initializer_list>

#include "../bits.h"

namespace tersegrad {

enum class IndexForm : uint8_t { elias_fano = 1, bitmap = 2, u16 = 3, rice = 4 };

constexpr bool is_fixed_size(IndexForm form) { return form != IndexForm::rice; }

constexpr uint64_t kU16Range = 65536;

// floor(log2(n / k)): the number of low bits that are stored as they are. 0 < k <= n.
TG_SPEC int elias_fano_low_bits(uint64_t n, uint64_t k) { return 63 - __builtin_clzll(n / k); }

struct EliasFano {
  int low_bits;
  uint64_t low_bytes, high_bits, high_bytes;
};

TG_SPEC EliasFano elias_fano_layout(uint64_t n, uint64_t k) {
  if (k == 0) return {0, 0, 0, 0};
  int low = elias_fano_low_bits(n, k);
  uint64_t high = k + (n >> low) + 1;
  return {low, (k * static_cast<uint64_t>(low) + 7) / 8, high, (high + 7) / 8};
}

// Rice: so many gaps share a parameter. Sixteen parts of any width fill whole bytes.
constexpr uint64_t kRiceGroup = 16;
TG_SPEC uint64_t rice_groups(uint64_t k) { return (k + kRiceGroup - 1) / kRiceGroup; }

// The parameter of `count` gaps with this sum: floor(log2(mean)), or zero for a mean below one.
TG_SPEC int rice_low_bits(uint64_t sum, uint64_t count) {
  uint64_t mean = count == kRiceGroup ? sum / kRiceGroup : sum / count;  // the first is a shift
  return mean == 0 ? 0 : 63 - __builtin_clzll(mean);
}
// Whether l is that parameter, without a division.
TG_SPEC bool is_rice_low_bits(int l, uint64_t sum, uint64_t count) {
  return sum >> l < 2 * count && (l == 0 || sum >> l >= count);
}

// A step from one parameter to the next, around a circle of 32, as a small number: 0, -1, 1, -2, 2, ... -16.
TG_SPEC uint32_t rice_step(int from, int to) {
  uint32_t step = static_cast<uint32_t>(to - from) & 31u;
  return step < 16 ? 2 * step : 63 - 2 * step;
}
TG_SPEC int rice_after(int from, uint32_t step) {
  int change = static_cast<int>(step / 2);
  return (from + (step % 2 ? -change - 1 : change)) & 31;
}

// A group of sum S takes count * l low bits, l <= log2(max(S, count) / count), and S shifted by l, below 2 * count,
// zeros; the logarithm is concave and all max(S, count) together are at most n. A parameter takes at most 32 bits. A
// writer of whole words may touch eight bytes more.
TG_SPEC uint64_t rice_bytes_at_most(uint64_t n, uint64_t k) {
  if (k == 0) return 0;
  uint64_t low = k * static_cast<uint64_t>(elias_fano_low_bits(n, k) + 1);
  return 4 * rice_groups(k) + (low + 7) / 8 + (3 * k + 7) / 8 + 8;
}
// Every parameter and every index takes a bit: what holds a stream in memory holds its indices in 32 times as much.
TG_SPEC uint64_t rice_bytes_at_least(uint64_t k) { return (rice_groups(k) + 7) / 8 + (k + 7) / 8; }

// At most, for rice.
TG_SPEC uint64_t index_stream_bytes(IndexForm form, uint64_t n, uint64_t k) {
  switch (form) {
    case IndexForm::rice:
      return rice_bytes_at_most(n, k);
    case IndexForm::elias_fano: {
      EliasFano layout = elias_fano_layout(n, k);
      return layout.low_bytes + layout.high_bytes;
    }
    case IndexForm::bitmap:
      return (n + 7) / 8;
    default:
      return 4 * ((n + kU16Range - 1) / kU16Range) + 2 * k;
  }
}

// The most that any number of indices takes; form zero is the smallest of fixed size. With l = floor(log2(n / k))
// Elias- Fano takes about n (l + 2) / 2^l bits, most for l = 0, and Rice codes are bounded by those of k = n.
TG_SPEC uint64_t index_bytes_at_most(IndexForm form, uint64_t n) {
  if (static_cast<int>(form) == 0) form = IndexForm::bitmap;
  return index_stream_bytes(form, n, n) + (form == IndexForm::elias_fano ? 2 : 0);
}

// The smallest form of fixed size; the lowest number among equals.
TG_SPEC IndexForm smallest_index_form(uint64_t n, uint64_t k) {
  IndexForm best = IndexForm::elias_fano;
  for (IndexForm form : {IndexForm::bitmap, IndexForm::u16}) {
    if (index_stream_bytes(form, n, k) < index_stream_bytes(best, n, k)) best = form;
  }
  return best;
}

// The j-th of k indices drawn one per stratum: docs/format.md, codec 7. word0 is a Philox output.
TG_SPEC uint32_t stratum_index(uint64_t n, uint64_t k, uint64_t j, uint32_t word0) {
  uint64_t start = j * n / k, end = (j + 1) * n / k;
  return static_cast<uint32_t>(start + (word0 * (end - start) >> 32));
}

}  // namespace tersegrad
