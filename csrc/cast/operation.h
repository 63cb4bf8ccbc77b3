// Whole tensors in and out of float32: the codecs Cast and Identity, and the arithmetic of residuals.
#pragma once

#include "../tensor.h"

namespace tersegrad::cast {

bool all_finite(const Entries& x);
bool accumulate(const Entries& x, float* residual);              // residual += x; whether the sums are finite
void subtract(float* residual, const float* decoded, size_t n);  // residual -= decoded
void widen(const Entries& x, float* out);
void round(DType dtype, float* values, size_t n);
void emit(float* values, const Output& out);  // changes values

// Writes round(wire, a) to body. With a residual: a = x + residual, and residual becomes a minus what a payload of
// dtype `dtype` decodes to. False when an entry is not finite.
bool encode(const Entries& x, float* residual, DType dtype, DType wire, void* body);

// What is wrong with a body of `n` values, if anything; decode takes bodies that passed.
Fault check(const void* body, DType wire, size_t n);
void decode(const void* body, DType dtype, DType wire, const Output& out);

}  // namespace tersegrad::cast
