// Low rank of a whole matrix: docs/format.md, codec 17. Factors are float32 here, stored column by column: P has `rank`
// columns of `rows` entries, Q `rank` columns of `columns` entries.
#pragma once

#include "../tensor.h"
#include "spec.h"

namespace tersegrad::lowrank {

struct Shape {
  size_t rows, columns, rank;

  size_t count() const { return rows * columns; }
  size_t p_entries() const { return rows * rank; }
  size_t q_entries() const { return columns * rank; }
};

// The start of the power iteration: scales what Q was in the last call, and draws columns that are zero anew. Without
// `memory` it draws all.
void start(const Shape& shape, const float* memory, uint64_t seed, float* q);

// P = M Q, where M is x, float32, or with a residual residual += x. False when an entry of M is not finite.
bool multiply(const Entries& x, float* residual, const Shape& shape, const float* q, float* p);

// Makes the columns of P orthonormal, each against those before it; a column that depends on those becomes zero. Then
// rounds it to what travels.
void orthonormalize(const Shape& shape, DType factors, float* p);

// Q = M^T P, rounded to what travels.
void multiply_transposed(const float* m, const Shape& shape, const float* p, DType factors, float* q);

// residual -= round(dtype, P Q^T)
void subtract(const Shape& shape, const float* p, const float* q, DType dtype, float* residual);

// The body: P, then Q, as `factors`.
void write(const Shape& shape, const float* p, const float* q, DType factors, uint8_t* body);
Fault read(const uint8_t* body, const Shape& shape, DType factors, float* p, float* q);
// Factors that `read` gave, or an encoder.
void decode(const Shape& shape, const float* p, const float* q, DType dtype, const Output& out);
// The sum of the values' squares and the largest magnitude.
void measure(const Shape& shape, const float* p, const float* q, DType dtype, double* squares, float* largest);

}  // namespace tersegrad::lowrank
