// Index streams: docs/format.md section 3. Their sizes are arithmetic on (n, k).
#pragma once

#include "../bits.h"

namespace tersegrad {

enum class IndexForm : uint8_t { elias_fano = 1, bitmap = 2, u16 = 3 };

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

TG_SPEC uint64_t index_stream_bytes(IndexForm form, uint64_t n, uint64_t k) {
  switch (form) {
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

// The smallest form; the lowest number among equals.
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
