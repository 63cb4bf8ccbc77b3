#include "operation.h"

#include "../blocks.h"
#include "pack.h"

namespace tersegrad::levels {
namespace {

uint32_t get_bounds(const uint8_t* bounds, size_t block) {
  uint32_t word;
  memcpy(&word, bounds + block * sizeof word, sizeof word);
  return word;
}

// Writes the bounds and the codes of one block; returns the grid that decodes them.
LevelGrid encode_block(const float* a, size_t n, const Layout& layout, KeyRange keys, uint8_t* bounds,
                       uint8_t (&codes)[2][kLargestBlock], const uint8_t** chosen) {
  const TriedSpacings tried = tried_spacings(layout.choice, keys.least);
  LevelGrid best{};
  float least = 0;
  for (size_t i = 0; i < tried.count; ++i) {
    const uint32_t word = pack_bounds(keys.least, keys.largest, tried.spacing[i]);
    const LevelGrid grid = level_grid(word, layout.bits);
    const float error = active().to_levels(a, n, grid, codes[i]);
    if (i > 0 && !(error < least)) continue;
    best = grid;
    least = error;
    *chosen = codes[i];
    memcpy(bounds, &word, sizeof word);
  }
  return best;
}

}  // namespace

bool encode(const Entries& x, float* residual, DType dtype, const Layout& layout, uint8_t* body) {
  const Kernels& kernels = active();
  const CodePacker packer(layout.bits);
  uint8_t* packed = body + layout.bounds_bytes(x.count);
  LargestKey largest;
  for_each_chunk(x.count, layout.block_size, [&](size_t chunk_begin, size_t chunk_end) {
    float scratch[kLargestBlock];
    uint8_t codes[2][kLargestBlock];
    for_each_blocks(chunk_begin, chunk_end, layout.block_size, [&](size_t i, size_t n) {
      uint8_t *bounds = body + layout.bounds_bytes(i), *out = packed + layout.code_bytes(i);
      const float* a = float_entries(x, residual, i, n, scratch);
      const KeyRange keys = kernels.key_range(a, n);
      largest.add(keys.largest);
      if (!is_finite_key(keys.largest)) {  // the body is of no use, but defined
        memset(bounds, 0, sizeof(uint32_t));
        memset(out, 0, layout.code_bytes(n));
        return;
      }
      const uint8_t* chosen = nullptr;
      const LevelGrid grid = encode_block(a, n, layout, keys, bounds, codes, &chosen);
      packer.pack(chosen, n, out);
      if (residual == nullptr) return;
      kernels.from_levels(chosen, n, grid, scratch);
      if (dtype != DType::float32) kernels.round[dtype_slot(dtype)](scratch, n);
      kernels.subtract(residual + i, scratch, n);
    });
  });
  return largest.is_finite();
}

Fault check(const uint8_t* body, const Layout& layout, size_t n) {
  bool valid = true;
  for (size_t block = 0; block < layout.blocks(n); ++block) valid &= bounds_are_valid(get_bounds(body, block));
  if (!valid) return "the bounds of a block are out of order, infinite or not a number, or its spacing is unknown";
  bool padded = padding_is_zero(body + layout.bounds_bytes(n), n * static_cast<size_t>(layout.bits));
  return padded ? nullptr : "padding bits after the codes are set";
}

void decode(const uint8_t* body, DType dtype, const Layout& layout, size_t n, size_t begin, const Output& out) {
  const uint8_t* bounds = body + layout.bounds_bytes(begin);
  const uint8_t* packed = body + layout.bounds_bytes(n) + layout.code_bytes(begin);
  const CodePacker packer(layout.bits);
  const Kernels& kernels = active();
  for_each_chunk(out.count, layout.block_size, [&](size_t chunk_begin, size_t chunk_end) {
    float scratch[kPiece];
    uint8_t codes[kPiece];
    for_each_blocks(chunk_begin, chunk_end, layout.block_size, [&](size_t block, size_t length) {
      const LevelGrid grid = level_grid(get_bounds(bounds, block / layout.block_size), layout.bits);
      for_each_piece(block, block + length, [&](size_t i, size_t count) {
        const bool direct = out.is_direct();
        float* values = direct ? static_cast<float*>(out.at(i)) : scratch;
        packer.unpack(packed + layout.code_bytes(i), count, codes);
        kernels.from_levels(codes, count, grid, values);
        if (dtype != DType::float32) kernels.round[dtype_slot(dtype)](values, count);
        if (!direct) out.emit(i, values, count);
      });
    });
  });
}

}  // namespace tersegrad::levels
