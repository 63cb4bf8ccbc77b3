// Where things lie in the workspace of a call.
#pragma once

#include "../codec.h"
#include "../rotate/tile.cuh"
#include "../topk/cuda.cuh"
#include "values.cuh"

namespace tersegrad::cuda {

// Counts and places; with a null memory it only counts. `bodies` are decoded at once.
struct Workspace {
  Header* header = nullptr;
  Header* values_header = nullptr;
  uint32_t* survivor = nullptr;  // of each body
  float* survivor_value = nullptr;
  uint64_t* chain = nullptr;
  uint32_t* starts = nullptr;  // in decode
  uint32_t* sample = nullptr;
  uint32_t* tile_offset = nullptr;
  uint32_t* tile_count = nullptr;
  uint32_t* index = nullptr;
  float* value = nullptr;
  float* long_tiles = nullptr;  // of rotated
  size_t bytes = 0;

  Workspace(const Codec& codec, size_t n, size_t bodies, void* memory) : memory_(static_cast<char*>(memory)) {
    take(header, 1);
    if (codec.values.kind == ValueCodec::Kind::rotated) take(long_tiles, floats_of_long_tiles(codec.values.rotated, n));
    if (codec.selection == Codec::Selection::all || n == 0) return;
    const size_t kept = codec.survivors(n);
    const bool is_topk = codec.selection == Codec::Selection::topk;
    take(values_header, 1);
    take(survivor, kept * bodies);
    take(survivor_value, kept);
    size_t words = is_topk ? place_chain_words(n) : 0;
    if (codec.has_index_stream()) {
      const IndexForm form = codec.index_form(n);
      words = std::max(words, chain_words(bodies * stream_tiles(form, n, kept)));
      take(starts, bodies * stream_ranges(form, n));
    }
    take(chain, words);
    if (!is_topk) return;
    take(sample, std::min(n, kSamples));
    take(tile_offset, tiles_of(n));
    take(tile_count, tiles_of(n));
    const size_t capacity = candidate_capacity(n, kept);
    take(index, capacity);
    take(value, capacity);
  }

 private:
  template <class T>
  void take(T*& at, size_t count) {
    if (memory_ != nullptr) at = reinterpret_cast<T*>(memory_ + bytes);
    bytes += (count * sizeof(T) + 15) / 16 * 16;
  }
  char* memory_;
};

}  // namespace tersegrad::cuda
