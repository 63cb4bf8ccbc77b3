#include "operation.h"

#include "../blocks.h"

namespace tersegrad::ternary {
namespace {

// Entries that are decoded at a time: whole bytes of digits.
constexpr size_t kDigitPiece = kPiece / kDigitsPerByte * kDigitsPerByte;

// The digits of up to five entries as one byte; counts those that are not zero, and sets the others to zero in `kept`.
inline uint8_t pack_byte(const float* a, size_t n, uint32_t limit, float* kept, size_t& nonzero) {
  uint32_t byte = 0, weight = 1;
  for (size_t j = 0; j < n; ++j, weight *= 3) {
    uint32_t mask = ternary_mask(a[j], limit);
    byte += weight * ternary_digit(a[j], mask);
    nonzero += mask & 1;
    kept[j] = float_of(bits_of(a[j]) & mask);
  }
  return static_cast<uint8_t>(byte);
}

// The digits of one block; returns how many are not zero.
size_t pack_digits(const float* a, size_t n, uint32_t limit, uint8_t* out, float* kept) {
  size_t nonzero = 0, i = 0;
  for (; i + kDigitsPerByte <= n; i += kDigitsPerByte) {
    *out++ = pack_byte(a + i, kDigitsPerByte, limit, kept + i, nonzero);
  }
  if (i < n) *out = pack_byte(a + i, n - i, limit, kept + i, nonzero);
  return nonzero;
}

// `digits` begins with the first digit of a byte.
void unpack_digits(const uint8_t* digits, float scale, float* out, size_t n) {
  const float entry[3] = {ternary_entry(0, scale), ternary_entry(1, scale), ternary_entry(2, scale)};
  auto unpack_byte = [&](unsigned byte, float* to, size_t count) {
    for (size_t j = 0; j < count; ++j, byte /= 3) to[j] = entry[byte % 3];
  };
  size_t i = 0;
  for (; i + kDigitsPerByte <= n; i += kDigitsPerByte) unpack_byte(*digits++, out + i, kDigitsPerByte);
  if (i < n) unpack_byte(*digits, out + i, n - i);
}

}  // namespace

bool encode(const Entries& x, float* residual, DType dtype, const Layout& layout, float threshold, uint8_t* body) {
  const Kernels& kernels = active();
  uint8_t* digits = body + layout.scale_bytes(x.count);
  LargestKey largest;
  for_each_chunk(x.count, layout.block_size, [&](size_t chunk_begin, size_t chunk_end) {
    float scratch[kLargestBlock], kept[kLargestBlock];
    uint8_t signs[kLargestBlock / 8];
    for (size_t i = chunk_begin; i < chunk_end; i += layout.block_size) {
      const size_t n = std::min(chunk_end - i, layout.block_size), block = i / layout.block_size;
      uint8_t* packed = digits + block * layout.block_bytes();
      const float* a = float_entries(x, residual, i, n, scratch);
      SignSummary all = kernels.pack_signs(a, n, signs);  // for its sum
      largest.add(all.max_key);
      size_t nonzero = pack_digits(a, n, ternary_limit(threshold, sign_scale(all.sum, n)), packed, kept);
      float sum = threshold > 0 ? kernels.pack_signs(kept, n, signs).sum : all.sum;
      float scale = nonzero > 0 ? sign_scale(sum, nonzero) : 0.0f;
      put_scale(body, block, scale);
      if (residual == nullptr) continue;
      unpack_digits(packed, round_to(dtype, scale), kept, n);
      kernels.subtract(residual + i, kept, n);
    }
  });
  return largest.is_finite();
}

Fault check(const uint8_t* body, const Layout& layout, size_t n) {
  if (!scales_are_valid(body, layout.blocks(n))) return "a scale is negative, infinite or not a number";
  const uint8_t* digits = body + layout.scale_bytes(n);
  bool valid = true;
  for (size_t i = 0; i < layout.digits_bytes(n); ++i) valid &= digits[i] < kDigitBytes;
  if (!valid) return "a byte of ternary digits is above 242";
  for (size_t begin = 0; begin < n; begin += layout.block_size) {
    const size_t length = std::min(layout.block_size, n - begin);
    unsigned first_padding = 1;
    for (size_t used = length % kDigitsPerByte; used > 0; --used) first_padding *= 3;
    digits += digit_bytes(length);
    if (length % kDigitsPerByte != 0 && digits[-1] >= first_padding) return "digits after the last of a block are set";
  }
  return nullptr;
}

void decode(const uint8_t* body, DType dtype, const Layout& layout, size_t n, size_t begin, const Output& out) {
  const uint8_t* scales = body + layout.scale_bytes(begin);
  const uint8_t* digits = body + layout.scale_bytes(n) + layout.digits_bytes(begin);
  for_each_chunk(out.count, layout.block_size, [&](size_t chunk_begin, size_t chunk_end) {
    float scratch[kDigitPiece];
    for (size_t first = chunk_begin; first < chunk_end; first += layout.block_size) {
      const size_t end = std::min(chunk_end, first + layout.block_size), block = first / layout.block_size;
      const float scale = round_to(dtype, get_scale(scales, block));
      for (size_t i = first; i < end; i += kDigitPiece) {
        const size_t length = std::min(kDigitPiece, end - i);
        const uint8_t* packed = digits + block * layout.block_bytes() + (i - first) / kDigitsPerByte;
        const bool direct = out.is_direct();
        float* values = direct ? static_cast<float*>(out.at(i)) : scratch;
        unpack_digits(packed, scale, values, length);
        if (!direct) out.emit(i, values, length);
      }
    }
  });
}

}  // namespace tersegrad::ternary
