// A codec as the native code sees it: which operations, in which order. The Python dataclasses hold and check the
// parameters and make one of these; what it writes is docs/format.md section 4.
#pragma once

#include "index/operation.h"
#include "quantize/operation.h"
#include "sign/operation.h"
#include "tensor.h"
#include "topk/operation.h"

namespace tersegrad {

enum class Outcome { ok, not_finite, out_of_memory };

// What becomes of every value, or of the survivors' values in a sparse codec.
struct ValueCodec {
  enum class Kind { identity, cast, quantize, sign } kind = Kind::identity;
  DType wire = DType::float32;         // cast
  quantize::Layout quantized{8, 256};  // quantize
  bool stochastic = false;
  uint64_t seed = 0;
  sign::Layout signs{1024};  // sign

  size_t body_bytes(size_t n, DType dtype) const;
  // As the operations' functions of these names.
  bool encode(const Entries& x, float* residual, DType dtype, uint32_t step, uint8_t* body) const;
  Fault check(const uint8_t* body, DType dtype, size_t n) const;
  void decode(const uint8_t* body, DType dtype, const Output& out) const { decode(body, dtype, out.count, 0, out); }
  // The entries from `begin`, a multiple of piece(), of `n`: as many as `out` takes.
  void decode(const uint8_t* body, DType dtype, size_t n, size_t begin, const Output& out) const;
  size_t piece() const;  // entries that are decoded together
};

// How large the values of a body are.
struct Extent {
  double squares = 0;  // their sum, in a fixed order
  float largest = 0;   // magnitude
};

struct Codec {
  enum class Selection { all, topk, chunks, random } selection = Selection::all;
  ValueCodec values;
  double density = 0;      // topk, random: share of the entries, or zero for
  size_t k = 0;            // their number; of each chunk for chunks
  size_t chunk = 0;        // chunks
  int form = 0;            // topk, chunks: an IndexForm, or zero for the smallest
  uint64_t mask_seed = 0;  // random

  size_t survivors(size_t n) const;
  IndexForm index_form(size_t n) const;
  size_t stream_bytes(size_t n) const;  // of the indices, where they travel
  size_t body_bytes(size_t n, DType dtype) const;

  // Writes the body; a residual is added to x and left holding what the body does not carry. `last_key` as in
  // topk::select.
  Outcome encode(const Entries& x, float* residual, DType dtype, uint32_t step, uint32_t& last_key,
                 uint8_t* body) const;
  // What is wrong with a body of `n` entries, if anything. decode checks too, before it writes.
  Fault check(const uint8_t* body, DType dtype, size_t n) const;
  // `blank` says that out holds zeros already.
  Fault decode(const uint8_t* body, DType dtype, uint32_t step, const Output& out, bool blank) const;

  // For bodies of strangers, in memory that depends on the codec alone. examine refuses what decode refuses, and
  // measures the values; add then does what decode does with out.accumulate, and stays inside `out` even if the body
  // has changed meanwhile.
  Fault examine(const uint8_t* body, DType dtype, size_t n, uint32_t step, Extent& extent) const;
  Fault add(const uint8_t* body, DType dtype, uint32_t step, const Output& out) const;

 private:
  template <class Each>
  Fault for_each_piece_of(const uint8_t* body, size_t n, uint32_t step, Each&& each) const;
  Fault read_index(const uint8_t* body, size_t n, uint32_t step, uint32_t* index) const;
};

}  // namespace tersegrad
