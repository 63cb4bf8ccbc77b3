// The chunk kernels: one table per instruction set. A kernel sees one chunk: no threads, no allocation, no failure. All
// variants of a kernel write the same bits; what they write is defined by the family's spec.h.
#pragma once

#include "bits.h"

namespace tersegrad {

// Random bits for stochastic rounding; null means round to nearest.
struct Noise {
  uint64_t seed;
  uint32_t step;
};

struct IntegerGrid;

struct SignSummary {
  float sum;  // of the magnitudes, in the order of sign/spec.h
  uint32_t max_key;
};

// Over the entries of a rotated block that are sent, each in the order of sign/spec.h.
struct RotationSums {
  float squares;   // z * z
  float products;  // level * |z|
};

// Arrays of functions over dtypes are indexed by dtype_slot, those over code widths by bits_slot.
constexpr int kDTypes = 3;
inline int dtype_slot(DType dtype) { return static_cast<int>(dtype) - 1; }
constexpr int kCodeWidths = 3;
inline int bits_slot(int bits) { return bits == 8 ? 0 : bits == 4 ? 1 : 2; }
constexpr int kIntegerWidths = 3;
inline int integer_slot(int bits) { return bits == 8 ? 0 : bits == 16 ? 1 : 2; }

constexpr int kRotationWidths = 4;

// collect may write this many entries beyond the count it returns.
constexpr size_t kCollectSlack = 16;

struct Moments {
  float sum, squares;  // of the magnitudes, in the lanes of sign/spec.h
  uint32_t max_key;
};

struct Kernels {
  const char* name;

  // cast: entries in and out of float32. Those that return a key return the largest key_of they saw.
  uint32_t (*max_key[kDTypes])(const void* x, size_t n);
  uint32_t (*widen[kDTypes])(const void* x, float* out, size_t n);
  uint32_t (*accumulate[kDTypes])(const void* x, float* residual, size_t n);  // residual += x
  void (*narrow[kDTypes])(const float* values, void* out, size_t n);          // round(dtype, v), stored as dtype
  void (*round[kDTypes])(float* values, size_t n);                            // round(dtype, v), in place
  void (*multiply)(float* values, float scale, size_t n);
  void (*add_scaled)(float* out, const float* values, float scale, size_t n);  // out += scale * values
  void (*stream)(const float* values, float* out, size_t n);                   // out = values, past the caches
  void (*end_stream)();                                                        // before others may read it
  void (*subtract)(float* residual, const float* decoded, size_t n);           // residual -= decoded

  // topk: appends index (base + i) and value of every entry with key >= threshold, in order, and returns how many. Room
  // for n + kCollectSlack entries. threshold <= kInfinity. The second form first stores residual += x and collects the
  // sums.
  size_t (*collect[kDTypes])(const void* x, size_t n, uint32_t base, uint32_t threshold, uint32_t* index, float* value);
  size_t (*accumulate_collect[kDTypes])(const void* x, float* residual, size_t n, uint32_t base, uint32_t threshold,
                                        uint32_t* index, float* value);
  // Stores the keys in [low, high) and returns how many; room for n + kCollectSlack. *above: how many are at least
  // high.
  size_t (*band)(const float* value, size_t n, uint32_t low, uint32_t high, uint32_t* key, size_t* above);
  size_t (*count_at_least)(const uint32_t* key, size_t n, uint32_t limit);  // keys and limit below 2^31
  // Keeps, in place and in order, the entries with a key above kth and the first `ties` of those with that key.
  size_t (*compact)(uint32_t* index, float* value, size_t n, uint32_t kth, size_t ties);

  // quantize: whole blocks, the last may be shorter. `first` is the tensor index of a[0], a multiple of 64. Returns the
  // largest key; a block that is not finite becomes zeros. With `lost` (which may be a itself), it receives a minus
  // what the codes decode to.
  uint32_t (*quantize[kCodeWidths])(const float* a, size_t n, size_t block_size, const Noise* noise, uint64_t first,
                                    uint8_t* scales, uint8_t* codes, float* lost);
  void (*dequantize[kCodeWidths])(const uint8_t* codes, const uint8_t* scales, size_t block_size, float* out, size_t n);

  // integers: codes of 8, 16 or 32 bits at any address. `first` is the tensor index of a[0], a multiple of 64. Returns
  // the largest key. With `lost` (which may be a itself), it receives a minus what the codes decode to.
  uint32_t (*to_integers[kIntegerWidths])(const float* a, size_t n, const IntegerGrid& grid, const Noise* noise,
                                          uint64_t first, uint8_t* codes, float* lost);
  void (*from_integers[kIntegerWidths])(const uint8_t* codes, float scale, float* out, size_t n);

  // sign: one block.
  SignSummary (*pack_signs)(const float* a, size_t n, uint8_t* bits);
  void (*unpack_signs)(const uint8_t* bits, float scale, float* out, size_t n);

  // rotate: random signs in groups of 2048 entries, 64 words for each, from these counters on; then one Hadamard
  // transform of n entries, a power of two, whose first sign is number `first` of `words`, a multiple of 64. rotate:
  // out is the transform of sign * factor * a; unrotate, in place: saturate(sign * norm * transform * scale). `next` is
  // what the caller will read after it, n floats that need not exist.
  void (*rotation_signs)(const Noise& noise, uint32_t first_counter, size_t groups, uint32_t* words);
  void (*rotate)(const float* a, size_t n, const uint32_t* words, size_t first, float factor, float* out,
                 const void* next);
  void (*unrotate)(float* values, size_t n, const uint32_t* words, size_t first, float norm, float scale,
                   const void* next);
  // Codes of 1, 2, 3 or 4 bits (at bits - 1) for n entries of any number, and what they stand for before the scale.
  RotationSums (*quantize_rotated[kRotationWidths])(const float* z, size_t n, uint8_t* codes);
  void (*dequantize_rotated[kRotationWidths])(const uint8_t* codes, size_t n, float* out);
  float (*sum_of_squares)(const float* values, size_t n);  // in the order of sign/spec.h

  // threshold: at most a piece.
  Moments (*moments)(const float* a, size_t n);

  // crc: continues a CRC-32C; start with 0.
  uint32_t (*crc32c)(uint32_t crc, const void* data, size_t bytes);
};

// The table in use; never null.
const Kernels& active();

}  // namespace tersegrad
