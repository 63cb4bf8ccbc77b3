#include "operation.h"

#include "../blocks.h"
#include "spec.h"

namespace tersegrad::rotate {
namespace {

// The random signs of one block at a time. Blocks shorter than a group share it.
class Signs {
 public:
  Signs(const Noise& noise, uint32_t pass) : noise_(noise), pass_(pass) {}

  // After this, words() and first() are those of the block at `begin`.
  void find(size_t begin, size_t n) {
    const size_t group = begin / kSignGroup, groups = (begin % kSignGroup + n + kSignGroup - 1) / kSignGroup;
    first_ = begin % kSignGroup;
    if (group == group_ && groups <= groups_) return;
    active().rotation_signs(noise_, first_sign_counter(group, pass_), groups, words_);
    group_ = group;
    groups_ = groups;
  }
  const uint32_t* words() const { return words_; }
  size_t first() const { return first_; }

 private:
  const Noise& noise_;
  const uint32_t pass_;
  size_t group_ = 0, groups_ = 0, first_ = 0;
  uint32_t words_[(kLargestBlock / kSignGroup) * kSignWords];
};

class Rotation {
 public:
  explicit Rotation(const Noise& noise) : first_(noise, 0), second_(noise, kSecondPass), noise_(noise) {}

  // z is the rotation of a / 2^exponent.
  void forward(const float* a, size_t begin, size_t n, int exponent, float* z) {
    const Kernels& kernels = active();
    const RotationPasses passes = rotation_passes(n);
    const float factor = power_of_two(-exponent);
    first_.find(begin, n);
    kernels.rotate(a, passes.power, first_.words(), first_.first(), passes.norm * factor, z, a + n);
    if (passes.offset == 0) return;
    if (a != z) memcpy(z + passes.power, a + passes.power, passes.offset * sizeof(float));
    kernels.multiply(z + passes.power, factor, passes.offset);
    second_.find(begin, n);
    kernels.rotate(z + passes.offset, passes.power, second_.words(), second_.first(), passes.norm, z + passes.offset,
                   z);
  }

  // In place: from rotated values to entries, multiplied by the scale.
  void backward(float* z, size_t begin, size_t n, float scale, const void* next) {
    const Kernels& kernels = active();
    const RotationPasses passes = rotation_passes(n);
    if (passes.offset != 0) {
      second_.find(begin, n);
      kernels.unrotate(z + passes.offset, passes.power, second_.words(), second_.first(), passes.norm, 1.0f, z);
      kernels.multiply(z + passes.power, scale, passes.offset);
      kernels.round[dtype_slot(DType::float32)](z + passes.power, passes.offset);
    }
    first_.find(begin, n);
    kernels.unrotate(z, passes.power, first_.words(), first_.first(), passes.norm, scale, next);
  }

  // Which entries of the block at `begin` are sent, ascending: at[j] >= j.
  void draw(size_t begin, size_t n, size_t kept, uint16_t* at) const {
    PhiloxWords words{};
    for (size_t j = 0; j < kept; ++j) {
      const uint64_t number = begin + j;
      if (j == 0 || number % 4 == 0) words = philox(noise_.seed, number / 4, noise_.step, kRotationDraw);
      at[j] = static_cast<uint16_t>(drawn_entry(words.word[number % 4], j, n, kept));
    }
  }

 private:
  Signs first_, second_;
  const Noise noise_;
};

// Decodes the block at `begin` to z; `next` as in kernels.h.
void decode_block(const uint8_t* codes, const Layout& layout, float scale, size_t begin, size_t n, Rotation& rotation,
                  uint16_t* at, float* z, const void* next) {
  if (scale == 0.0f) {
    memset(z, 0, n * sizeof(float));
    return;
  }
  const size_t kept = layout.kept_of(n);
  active().dequantize_rotated[layout.bits - 1](codes, kept, z);
  if (kept < n) {
    // To their places from the last on: none is overwritten before it has moved, since at[j] >= j.
    rotation.draw(begin, n, kept, at);
    size_t end = n;
    for (size_t j = kept; j-- > 0;) {
      const float value = z[j];
      memset(z + at[j], 0, (end - at[j]) * sizeof(float));
      z[at[j]] = value;
      end = at[j];
    }
    memset(z, 0, end * sizeof(float));
  }
  rotation.backward(z, begin, n, scale, next);
}

}  // namespace

bool encode(const Entries& x, float* residual, DType dtype, const Layout& layout, bool unbiased, const Noise& noise,
            uint8_t* body) {
  const Kernels& kernels = active();
  uint8_t* all_codes = body + layout.scale_bytes(x.count);
  LargestKey largest;
  for_each_chunk(x.count, layout.block_size, [&](size_t chunk_begin, size_t chunk_end) {
    float z[kLargestBlock];
    uint16_t at[kLargestBlock];
    Rotation rotation(noise);
    for_each_blocks(chunk_begin, chunk_end, layout.block_size, [&](size_t i, size_t n) {
      const size_t kept = layout.kept_of(n);
      uint8_t* codes = all_codes + layout.code_bytes(i);
      const float* a = float_entries(x, residual, i, n, z);
      const uint32_t key = kernels.max_key[dtype_slot(DType::float32)](a, n);
      largest.add(key);
      if (key == 0 || !is_finite_key(key)) {
        put_scale(body, i / layout.block_size, 0.0f);
        memset(codes, 0, layout.block_bytes(n));
        return;
      }
      const int exponent = rotation_exponent(key);
      rotation.forward(a, i, n, exponent, z);
      if (kept < n) {
        rotation.draw(i, n, kept, at);
        for (size_t j = 0; j < kept; ++j) z[j] = z[at[j]];
      }
      const RotationSums sums = kernels.quantize_rotated[layout.bits - 1](z, kept, codes);
      const float share = static_cast<float>(n) / static_cast<float>(kept);
      float scale = unbiased_scale(sums, share, exponent);
      if (!unbiased) {
        kernels.dequantize_rotated[layout.bits - 1](codes, kept, z);
        scale = least_error_scale(sums, kernels.sum_of_squares(z, kept), exponent);
      }
      put_scale(body, i / layout.block_size, scale);
      if (residual == nullptr) return;
      decode_block(codes, layout, scale, i, n, rotation, at, z, residual + i);
      if (dtype != DType::float32) kernels.round[dtype_slot(dtype)](z, n);
      kernels.subtract(residual + i, z, n);
    });
  });
  return largest.is_finite();
}

Fault check(const uint8_t* body, const Layout& layout, size_t n) {
  if (!scales_are_valid(body, layout.blocks(n))) return "a scale is negative, infinite or not a number";
  const uint8_t* codes = body + layout.scale_bytes(n);
  for (size_t begin = 0; begin < n; begin += layout.block_size) {
    const size_t length = std::min(layout.block_size, n - begin);
    if (!padding_is_zero(codes, layout.kept_of(length) * static_cast<size_t>(layout.bits))) {
      return "padding bits after the codes of a block are set";
    }
    codes += layout.block_bytes(length);
  }
  return nullptr;
}

void decode(const uint8_t* body, DType dtype, const Layout& layout, const Noise& noise, size_t n, size_t begin,
            const Output& out) {
  const uint8_t* scales = body + layout.scale_bytes(begin);
  const uint8_t* codes = body + layout.scale_bytes(n) + layout.code_bytes(begin);
  const Kernels& kernels = active();
  for_each_chunk(out.count, layout.block_size, [&](size_t chunk_begin, size_t chunk_end) {
    float scratch[kLargestBlock];
    uint16_t at[kLargestBlock];
    Rotation rotation(noise);
    for_each_blocks(chunk_begin, chunk_end, layout.block_size, [&](size_t i, size_t length) {
      const float scale = get_scale(scales, i / layout.block_size);
      float* values = out.is_direct() ? static_cast<float*>(out.at(i)) : scratch;
      decode_block(codes + layout.code_bytes(i), layout, scale, begin + i, length, rotation, at, values, out.at(i));
      if (dtype != DType::float32) kernels.round[dtype_slot(dtype)](values, length);
      if (!out.is_direct()) out.emit(i, values, length);
    });
  });
}

}  // namespace tersegrad::rotate
