// Products of a matrix with thin factors. Factors are stored column by column, so that the loops run along memory; four
// columns at a time keep their sums in registers.
#pragma once

#include "../kernels.h"
#include "../simd.h"
#include "spec.h"

namespace tersegrad {
namespace {

template <int columns>
inline void dots(const float* m, size_t n, const float* q, size_t q_stride, float* out, size_t out_stride) {
  float lanes[columns][16] = {};
  size_t i = 0;
#if TERSEGRAD_SIMD
  F sums[columns];
  for (F& sum : sums) sum = splat(0.0f);
  for (; i + kLanes <= n; i += kLanes) {
    prefetch(m + i);
    const F v = load(m + i);
    for (int k = 0; k < columns; ++k) sums[k] = sums[k] + v * load(q + k * q_stride + i);
  }
  for (int k = 0; k < columns; ++k) store(lanes[k], sums[k]);
#else
  for (; i + 16 <= n; i += 16) {
    for (int k = 0; k < columns; ++k) {
      for (size_t j = 0; j < 16; ++j) lanes[k][j] = lanes[k][j] + m[i + j] * q[k * q_stride + i + j];
    }
  }
#endif
  for (int k = 0; k < columns; ++k) {
    for (size_t j = i; j < n; ++j) lanes[k][j - i] = lanes[k][j - i] + m[j] * q[k * q_stride + j];
    out[k * out_stride] = fold_lanes(lanes[k]);
  }
}

template <int columns>
inline void add_rows(const float* m, size_t m_stride, size_t rows, size_t n, const float* p, size_t p_stride, float* q,
                     size_t q_stride) {
  size_t i = 0;
#if TERSEGRAD_SIMD
  for (; i + kLanes <= n; i += kLanes) {
    F sums[columns];
    for (int k = 0; k < columns; ++k) sums[k] = load(q + k * q_stride + i);
    for (size_t row = 0; row < rows; ++row) {
      prefetch(m + row * m_stride + i);
      const F v = load(m + row * m_stride + i);
      for (int k = 0; k < columns; ++k) sums[k] = sums[k] + v * splat(p[k * p_stride + row]);
    }
    for (int k = 0; k < columns; ++k) store(q + k * q_stride + i, sums[k]);
  }
#endif
  for (; i < n; ++i) {
    for (int k = 0; k < columns; ++k) {
      float sum = q[k * q_stride + i];
      for (size_t row = 0; row < rows; ++row) sum = sum + m[row * m_stride + i] * p[k * p_stride + row];
      q[k * q_stride + i] = sum;
    }
  }
}

template <int columns>
inline void add_products(const float* p, size_t p_stride, const float* q, size_t q_stride, bool first, float* out,
                         size_t n) {
  size_t i = 0;
#if TERSEGRAD_SIMD
  F factors[columns];
  for (int k = 0; k < columns; ++k) factors[k] = splat(p[k * p_stride]);
  for (; i + kLanes <= n; i += kLanes) {
    F sum = factors[0] * load(q + i);
    if (!first) sum = load(out + i) + sum;
    for (int k = 1; k < columns; ++k) sum = sum + factors[k] * load(q + k * q_stride + i);
    store(out + i, sum);
  }
#endif
  for (; i < n; ++i) {
    float sum = p[0] * q[i];
    if (!first) sum = out[i] + sum;
    for (int k = 1; k < columns; ++k) sum = sum + p[k * p_stride] * q[k * q_stride + i];
    out[i] = sum;
  }
}

// A number as a type: the standard one would bring templates into an instruction set's object.
template <int number>
struct Columns {
  constexpr operator int() const { return number; }
};

// Calls body(Columns<c>(), k) for columns k to k + c of a factor.
template <class Body>
inline void for_each_four(size_t rank, Body&& body) {
  size_t k = 0;
  for (; k + 4 <= rank; k += 4) body(Columns<4>(), k);
  if (rank - k == 3) body(Columns<3>(), k);
  if (rank - k == 2) body(Columns<2>(), k);
  if (rank - k == 1) body(Columns<1>(), k);
}

void row_products(const float* m, size_t n, const float* q, size_t q_stride, size_t rank, float* p, size_t p_stride) {
  for_each_four(rank, [&](auto columns, size_t k) {
    dots<columns>(m, n, q + k * q_stride, q_stride, p + k * p_stride, p_stride);
  });
}

void column_products(const float* m, size_t m_stride, size_t rows, size_t n, const float* p, size_t p_stride,
                     size_t rank, float* q, size_t q_stride) {
  for_each_four(rank, [&](auto columns, size_t k) {
    add_rows<columns>(m, m_stride, rows, n, p + k * p_stride, p_stride, q + k * q_stride, q_stride);
  });
}

void expand_row(const float* p, size_t p_stride, const float* q, size_t q_stride, size_t rank, float* out, size_t n) {
  for_each_four(rank, [&](auto columns, size_t k) {
    add_products<columns>(p + k * p_stride, p_stride, q + k * q_stride, q_stride, k == 0, out, n);
  });
}

}  // namespace
}  // namespace tersegrad
