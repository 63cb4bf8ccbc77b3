// A codec as the native code sees it: which operations, in which order. The Python dataclasses hold and check the
// parameters and make one of these; what it writes is docs/format.md section 4.
#pragma once

#include "index/operation.h"
#include "integers/operation.h"
#include "quantize/operation.h"
#include "rotate/operation.h"
#include "sign/operation.h"
#include "tensor.h"
#include "ternary/operation.h"
#include "threshold/operation.h"
#include "topk/operation.h"

namespace tersegrad {

enum class Outcome { ok, not_finite, out_of_memory };

// What becomes of every value, or of the survivors' values in a sparse codec.
struct ValueCodec {
  enum class Kind { identity, cast, quantize, sign, ternary, integers, rotated } kind = Kind::identity;
  DType wire = DType::float32;         // cast
  quantize::Layout quantized{8, 256};  // quantize
  bool stochastic = false;
  uint64_t seed = 0;
  sign::Layout signs{1024};      // sign
  ternary::Layout digits{1024};  // ternary
  float threshold = 0;
  integers::Layout integer{32, {1, 1, 1}};  // integers
  rotate::Layout rotated{4, 4096, 0};       // rotated
  bool unbiased = true;

  size_t body_bytes(size_t n, DType dtype) const;
  // As the operations' functions of these names.
  bool encode(const Entries& x, float* residual, DType dtype, uint32_t step, uint8_t* body) const;
  Fault check(const uint8_t* body, DType dtype, size_t n) const;
  void decode(const uint8_t* body, DType dtype, uint32_t step, const Output& out) const {
    decode(body, dtype, step, out.count, 0, out);
  }
  // The entries from `begin`, a multiple of piece(), of `n`: as many as `out` takes.
  void decode(const uint8_t* body, DType dtype, uint32_t step, size_t n, size_t begin, const Output& out) const;
  size_t piece() const;  // entries that are decoded together
};

// How large the values of a body are.
struct Extent {
  double squares = 0;  // their sum, in a fixed order
  float largest = 0;   // magnitude
};

struct Codec {
  enum class Selection { all, topk, chunks, random, threshold } selection = Selection::all;
  ValueCodec values;
  double density = 0;      // topk, random, threshold: share of the entries, or zero for
  size_t k = 0;            // their number; of each chunk for chunks
  size_t chunk = 0;        // chunks
  int form = 0;            // topk, chunks, threshold: an IndexForm, or zero for the smallest of fixed size
  uint64_t mask_seed = 0;  // random
  float threshold = 0;     // threshold: without a density

  // How many there are; for threshold about, since a body states it.
  size_t survivors(size_t n) const;
  IndexForm index_form(size_t n) const { return index_form(n, survivors(n)); }
  bool has_index_stream() const { return selection != Selection::all && selection != Selection::random; }
  // Whether body_bytes is the size of every body, and not a bound on it.
  bool is_fixed_size() const {
    return !has_index_stream() ||
           (selection != Selection::threshold && tersegrad::is_fixed_size(static_cast<IndexForm>(form)));
  }
  size_t body_bytes(size_t n, DType dtype) const;

  // Writes the body and tells its size; a residual is added to x and left holding what the body does not carry.
  // `last_key` as in topk::select.
  Outcome encode(const Entries& x, float* residual, DType dtype, uint32_t step, uint32_t& last_key, uint8_t* body,
                 size_t& body_bytes) const;
  // Without a fixed size: how many of the `available` bytes come before the values of the body that starts there.
  Fault measure_stream(const uint8_t* body, size_t available, size_t n, size_t* bytes) const;
  // What is wrong with a body of `n` entries, if anything. decode checks too, before it writes.
  Fault check(const uint8_t* body, size_t bytes, DType dtype, size_t n) const;
  // `blank` says that out holds zeros already.
  Fault decode(const uint8_t* body, size_t bytes, DType dtype, uint32_t step, const Output& out, bool blank) const;

  // For bodies of strangers, in memory that depends on the codec alone. examine refuses what decode refuses, and
  // measures the values; add then does what decode does with out.accumulate, and stays inside `out` even if the body
  // has changed meanwhile.
  Fault examine(const uint8_t* body, size_t bytes, DType dtype, size_t n, uint32_t step, Extent& extent) const;
  Fault add(const uint8_t* body, size_t bytes, DType dtype, uint32_t step, const Output& out) const;

 private:
  // Where the parts of a body lie.
  struct Parts {
    size_t kept;
    const uint8_t* stream;
    size_t stream_bytes;
    const uint8_t* values;
  };

  IndexForm index_form(size_t n, size_t kept) const;
  // The number of survivors that a body states.
  Fault read_count(const uint8_t* body, size_t bytes, size_t n, size_t* kept) const;
  // The index stream is what the values leave. A body that is too short for its indices is refused here, before memory
  // is taken for them.
  Fault split(const uint8_t* body, size_t bytes, DType dtype, size_t n, Parts& parts) const;
  template <class Each>
  Fault for_each_piece_of(const Parts& parts, size_t n, uint32_t step, Each&& each) const;
};

}  // namespace tersegrad
