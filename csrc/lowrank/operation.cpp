#include "operation.h"

#include <cmath>

namespace tersegrad::lowrank {
namespace {

// So many rows are read side by side: their sums pass once through registers.
constexpr size_t kRows = 8;
constexpr size_t kSixteen = 16;

// Calls body(begin, end) over the rows in chunks of about kChunk entries.
template <class Body>
void for_each_rows(const Shape& shape, Body&& body) {
  if (shape.count() == 0) return;
  const size_t most = shape.count() < kParallelFrom ? shape.rows : std::max<size_t>(1, kChunk / shape.columns);
  parallel_for((shape.rows + most - 1) / most, [&](size_t task) {
    body(task * most, std::min(shape.rows, (task + 1) * most));
    active().end_stream();
  });
}

// Calls body(row, column, n, values) with the product P Q^T, rounded to `dtype`, for rows `begin` to `end`, in pieces.
template <class Body>
void for_each_product(const Shape& shape, const float* p, const float* q, DType dtype, size_t begin, size_t end,
                      Body&& body) {
  const Kernels& kernels = active();
  float values[kPiece];
  for (size_t row = begin; row < end; ++row) {
    for_each_piece(0, shape.columns, [&](size_t column, size_t n) {
      kernels.expand_row(p + row, shape.rows, q + column, shape.columns, shape.rank, values, n);
      kernels.round[dtype_slot(dtype)](values, n);
      body(row * shape.columns + column, n, values);
    });
  }
}

void round_factor(DType factors, float* values, size_t n) { active().round[dtype_slot(factors)](values, n); }

}  // namespace

void start(const Shape& shape, const float* memory, uint64_t seed, float* q) {
  const Kernels& kernels = active();
  const size_t n = shape.columns;
  for (size_t k = 0; k < shape.rank; ++k) {
    float* column = q + k * n;
    uint32_t key = 0;
    if (memory != nullptr) {
      memcpy(column, memory + k * n, n * sizeof(float));
      key = kernels.max_key[dtype_slot(DType::float32)](column, n);
    }
    if (key < kSmallestNormal || !is_finite_key(key)) {
      for (size_t j = 0; j < n; ++j) {
        const uint64_t i = uint64_t{k} * n + j;
        column[j] = cold_entry(philox(seed, i / 4, 0, kColdFactor).word[i % 4]);
      }
      key = std::max(kernels.max_key[dtype_slot(DType::float32)](column, n), kSmallestNormal);
    }
    kernels.multiply(column, column_scale(key), n);
    kernels.multiply(column, kHeadroom, n);
  }
}

bool multiply(const Entries& x, float* residual, const Shape& shape, const float* q, float* p) {
  const Kernels& kernels = active();
  const int slot = dtype_slot(x.dtype);
  const size_t columns = shape.columns;
  LargestKey largest;
  for_each_rows(shape, [&](size_t begin, size_t end) {
    uint32_t key = 0;
    for (size_t row = begin; row < end; ++row) {
      const size_t first = row * columns;
      const float* m = x.floats() + first;
      if (residual != nullptr) {
        key = std::max(key, kernels.accumulate[slot](x.at(first), residual + first, columns));
        m = residual + first;
      } else {
        key = std::max(key, kernels.max_key[slot](m, columns));
      }
      kernels.row_products(m, columns, q, columns, shape.rank, p + row, shape.rows);
    }
    largest.add(key);
  });
  return largest.is_finite();
}

void orthonormalize(const Shape& shape, DType factors, float* p) {
  const Kernels& kernels = active();
  const size_t n = shape.rows;
  auto dot = [&](const float* a, const float* b) {
    float sum;
    kernels.row_products(a, n, b, n, 1, &sum, 1);
    return sum;
  };
  auto key_of_column = [&](const float* column) { return kernels.max_key[dtype_slot(DType::float32)](column, n); };
  for (size_t k = 0; k < shape.rank; ++k) {
    float* column = p + k * n;
    uint32_t key = key_of_column(column);
    if (key >= kSmallestNormal && is_finite_key(key)) {
      kernels.multiply(column, column_scale(key), n);
      for (int pass = 0; pass < 2; ++pass) {  // twice is enough (Kahan; Giraud et al. 2005)
        for (size_t before = 0; before < k; ++before) {
          const float* other = p + before * n;
          kernels.add_scaled(column, other, -dot(column, other), n);
        }
      }
      key = key_of_column(column);
    }
    if (!is_finite_key(key) || key < bits_of(kNothingLeft)) {
      std::fill(column, column + n, 0.0f);
      continue;
    }
    kernels.multiply(column, 1.0f / std::sqrt(dot(column, column)), n);
    for (size_t i = 0; i < n; ++i) column[i] = unit_entry(column[i]);
  }
  round_factor(factors, p, shape.p_entries());
}

void multiply_transposed(const float* m, const Shape& shape, const float* p, DType factors, float* q) {
  const Kernels& kernels = active();
  const size_t columns = shape.columns;
  // Every thread has some columns, whose sums no other touches.
  size_t width = kPiece;
  if (shape.count() >= kParallelFrom) {
    const size_t share = columns / static_cast<size_t>(thread_count()) / kSixteen * kSixteen;
    width = std::min(width, std::max(4 * kSixteen, share));
  }
  parallel_for((columns + width - 1) / width, [&](size_t task) {
    const size_t first = task * width, n = std::min(width, columns - first);
    for (size_t k = 0; k < shape.rank; ++k) std::fill_n(q + k * columns + first, n, 0.0f);
    for (size_t row = 0; row < shape.rows; row += kRows) {
      const size_t rows = std::min(kRows, shape.rows - row);
      kernels.column_products(m + row * columns + first, columns, rows, n, p + row, shape.rows, shape.rank, q + first,
                              columns);
    }
    for (size_t k = 0; k < shape.rank; ++k) round_factor(factors, q + k * columns + first, n);
  });
}

void subtract(const Shape& shape, const float* p, const float* q, DType dtype, float* residual) {
  for_each_rows(shape, [&](size_t begin, size_t end) {
    for_each_product(shape, p, q, dtype, begin, end,
                     [&](size_t i, size_t n, float* values) { active().subtract(residual + i, values, n); });
  });
}

void write(const Shape& shape, const float* p, const float* q, DType factors, uint8_t* body) {
  const Kernels& kernels = active();
  kernels.narrow[dtype_slot(factors)](p, body, shape.p_entries());
  kernels.narrow[dtype_slot(factors)](q, body + shape.p_entries() * item_bytes(factors), shape.q_entries());
}

Fault read(const uint8_t* body, const Shape& shape, DType factors, float* p, float* q) {
  const Kernels& kernels = active();
  const size_t split = shape.p_entries() * item_bytes(factors);
  // What was widened is what is judged: the body may change meanwhile.
  if (kernels.widen[dtype_slot(factors)](body, p, shape.p_entries()) > bits_of(1.0f)) {
    return "an entry of the first factor is beyond one";
  }
  if (!is_finite_key(kernels.widen[dtype_slot(factors)](body + split, q, shape.q_entries()))) {
    return "an entry of the second factor is infinite or not a number";
  }
  return nullptr;
}

void decode(const Shape& shape, const float* p, const float* q, DType dtype, const Output& out) {
  for_each_rows(shape, [&](size_t begin, size_t end) {
    for_each_product(shape, p, q, dtype, begin, end,
                     [&](size_t i, size_t n, float* values) { out.emit(i, values, n); });
  });
}

void measure(const Shape& shape, const float* p, const float* q, DType dtype, double* squares, float* largest) {
  double lanes[8] = {};
  uint32_t key = 0;
  for_each_product(shape, p, q, dtype, 0, shape.rows, [&](size_t i, size_t n, const float* values) {
    for (size_t j = 0; j < n; ++j) {
      lanes[(i + j) % 8] += static_cast<double>(values[j]) * static_cast<double>(values[j]);
      key = std::max(key, key_of(values[j]));
    }
  });
  *squares = 0;
  for (double lane : lanes) *squares += lane;
  *largest = float_of(key);
}

}  // namespace tersegrad::lowrank
