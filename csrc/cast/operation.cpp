#include "operation.h"

namespace tersegrad {

void Output::emit(size_t i, float* values, size_t n) const {
  const Kernels& kernels = active();
  int slot = dtype_slot(dtype);
  if (!accumulate) {
    if (scale != 1.0f) kernels.multiply(values, scale, n);
    if (dtype == DType::float32 && count >= kStreamFrom) {
      kernels.stream(values, static_cast<float*>(at(i)), n);
    } else if (dtype == DType::float32) {
      memcpy(at(i), values, n * sizeof(float));
    } else {
      kernels.narrow[slot](values, at(i), n);
    }
  } else if (dtype == DType::float32) {
    kernels.add_scaled(static_cast<float*>(at(i)), values, scale, n);
  } else {
    for_each_piece(0, n, [&](size_t j, size_t length) {
      float sums[kPiece];
      kernels.widen[slot](at(i + j), sums, length);
      kernels.add_scaled(sums, values + j, scale, length);
      kernels.narrow[slot](sums, at(i + j), length);
    });
  }
}

namespace cast {

bool all_finite(const Entries& x) {
  const Kernels& kernels = active();
  LargestKey largest;
  for_each_chunk(x.count, 1, [&](size_t begin, size_t end) {
    largest.add(kernels.max_key[dtype_slot(x.dtype)](x.at(begin), end - begin));
  });
  return largest.is_finite();
}

bool accumulate(const Entries& x, float* residual) {
  const Kernels& kernels = active();
  LargestKey largest;
  for_each_chunk(x.count, 1, [&](size_t begin, size_t end) {
    largest.add(kernels.accumulate[dtype_slot(x.dtype)](x.at(begin), residual + begin, end - begin));
  });
  return largest.is_finite();
}

void subtract(float* residual, const float* decoded, size_t n) {
  for_each_chunk(n, 1,
                 [&](size_t begin, size_t end) { active().subtract(residual + begin, decoded + begin, end - begin); });
}

void widen(const Entries& x, float* out) {
  const Kernels& kernels = active();
  for_each_chunk(x.count, 1, [&](size_t begin, size_t end) {
    kernels.widen[dtype_slot(x.dtype)](x.at(begin), out + begin, end - begin);
  });
}

void round(DType dtype, float* values, size_t n) {
  for_each_chunk(n, 1,
                 [&](size_t begin, size_t end) { active().round[dtype_slot(dtype)](values + begin, end - begin); });
}

void emit(float* values, const Output& out) {
  for_each_chunk(out.count, 1, [&](size_t begin, size_t end) { out.emit(begin, values + begin, end - begin); });
}

bool encode(const Entries& x, float* residual, DType dtype, DType wire, void* body) {
  const Kernels& kernels = active();
  int from = dtype_slot(x.dtype), to = dtype_slot(wire);
  auto coded = [&](size_t i) { return static_cast<char*>(body) + i * item_bytes(wire); };
  LargestKey largest;
  for_each_chunk(x.count, 1, [&](size_t begin, size_t end) {
    uint32_t key = 0;
    for_each_piece(begin, end, [&](size_t i, size_t n) {
      float values[kPiece];
      if (residual == nullptr) {
        key = std::max(key, kernels.widen[from](x.at(i), values, n));
        kernels.narrow[to](values, coded(i), n);
      } else {
        key = std::max(key, kernels.accumulate[from](x.at(i), residual + i, n));
        kernels.narrow[to](residual + i, coded(i), n);
        kernels.widen[to](coded(i), values, n);
        if (dtype != wire) kernels.round[dtype_slot(dtype)](values, n);
        kernels.subtract(residual + i, values, n);
      }
    });
    largest.add(key);
  });
  return largest.is_finite();
}

Fault check(const void* body, DType wire, size_t n) {
  return all_finite({body, wire, n}) ? nullptr : "a value is infinite or not a number";
}

void decode(const void* body, DType dtype, DType wire, const Output& out) {
  Entries coded{body, wire, out.count};
  const Kernels& kernels = active();
  for_each_chunk(out.count, 1, [&](size_t begin, size_t end) {
    for_each_piece(begin, end, [&](size_t i, size_t n) {
      float values[kPiece];
      kernels.widen[dtype_slot(wire)](coded.at(i), values, n);
      if (dtype != wire) kernels.round[dtype_slot(dtype)](values, n);
      out.emit(i, values, n);
    });
  });
}

}  // namespace cast
}  // namespace tersegrad
