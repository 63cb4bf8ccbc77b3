// Low rank for Python: NumPy arrays in, operations called.
#pragma once

#include <pybind11/stl.h>

#include "../lowrank/operation.h"
#include "arrays.h"

namespace {

namespace lowrank = tersegrad::lowrank;

lowrank::Shape matrix(size_t n, size_t columns, size_t rank) {
  require(columns > 0 && n % columns == 0 && n <= UINT32_MAX, "the entries must fill whole rows");
  require(rank > 0 && rank <= kLargestRank && rank <= columns && rank <= n / columns, "rank out of range");
  return {n / columns, columns, rank};
}

// The steps of one encoding. Each takes lists of equal length, one matrix in each place, so that a whole model is one
// call. A residual stands for the matrix; without one, x is float32 and is the matrix.
struct Matrices {
  std::vector<lowrank::Shape> shapes;
  size_t entries = 0;

  void add(size_t n, size_t columns, size_t rank) {
    shapes.push_back(matrix(n, columns, rank));
    entries += n;
  }
};

// p = M q, where q is the head start from the memory, or drawn. Returns which matrices are finite.
std::vector<bool> lowrank_first(const std::vector<py::array>& xs, std::vector<std::optional<py::array>> residuals,
                                const std::vector<size_t>& columns, const std::vector<size_t>& ranks,
                                const std::vector<uint64_t>& seeds,
                                const std::vector<std::optional<py::array>>& memories, std::vector<py::array> ps,
                                std::vector<py::array> qs) {
  const size_t count = xs.size();
  require(residuals.size() == count && columns.size() == count && ranks.size() == count && seeds.size() == count &&
              memories.size() == count && ps.size() == count && qs.size() == count,
          "lists of different lengths");
  Matrices matrices;
  std::vector<Entries> in;
  std::vector<float*> r, p, q;
  std::vector<const float*> memory;
  for (size_t i = 0; i < count; ++i) {
    in.push_back(entries(xs[i]));
    matrices.add(in[i].count, columns[i], ranks[i]);
    const lowrank::Shape& shape = matrices.shapes[i];
    r.push_back(residual_or_null(residuals[i], in[i].count));
    require(r[i] != nullptr || in[i].dtype == DType::float32, "without a residual x must be float32");
    memory.push_back(memories[i] ? floats_in(*memories[i], shape.q_entries()) : nullptr);
    p.push_back(floats(ps[i], shape.p_entries()));
    q.push_back(floats(qs[i], shape.q_entries()));
  }
  std::vector<bool> finite(count);
  Call call(matrices.entries);
  for (size_t i = 0; i < count; ++i) {
    lowrank::start(matrices.shapes[i], memory[i], seeds[i], q[i]);
    finite[i] = lowrank::multiply(in[i], r[i], matrices.shapes[i], q[i], p[i]);
  }
  return finite;
}

// Makes each p orthonormal and rounds it; q = M^T p, rounded.
void lowrank_second(const std::vector<py::array>& ms, const std::vector<size_t>& columns,
                    const std::vector<size_t>& ranks, int factors, std::vector<py::array> ps,
                    std::vector<py::array> qs) {
  const size_t count = ms.size();
  require(columns.size() == count && ranks.size() == count && ps.size() == count && qs.size() == count,
          "lists of different lengths");
  const DType rounded = dtype_from_code(factors);
  Matrices matrices;
  std::vector<const float*> m;
  std::vector<float*> p, q;
  for (size_t i = 0; i < count; ++i) {
    matrices.add(size_of(ms[i]), columns[i], ranks[i]);
    m.push_back(floats_in(ms[i], size_of(ms[i])));
    p.push_back(floats(ps[i], matrices.shapes[i].p_entries()));
    q.push_back(floats(qs[i], matrices.shapes[i].q_entries()));
  }
  Call call(matrices.entries);
  for (size_t i = 0; i < count; ++i) {
    lowrank::orthonormalize(matrices.shapes[i], rounded, p[i]);
    lowrank::multiply_transposed(m[i], matrices.shapes[i], p[i], rounded, q[i]);
  }
}

// residual -= p q^T, as it is decoded.
void lowrank_subtract(std::vector<py::array> residuals, const std::vector<size_t>& columns,
                      const std::vector<size_t>& ranks, const std::vector<py::array>& ps,
                      const std::vector<py::array>& qs, int dtype) {
  const size_t count = residuals.size();
  require(columns.size() == count && ranks.size() == count && ps.size() == count && qs.size() == count,
          "lists of different lengths");
  const DType decoded = dtype_from_code(dtype);
  Matrices matrices;
  std::vector<float*> r;
  std::vector<const float*> p, q;
  for (size_t i = 0; i < count; ++i) {
    matrices.add(size_of(residuals[i]), columns[i], ranks[i]);
    r.push_back(floats(residuals[i], size_of(residuals[i])));
    p.push_back(floats_in(ps[i], matrices.shapes[i].p_entries()));
    q.push_back(floats_in(qs[i], matrices.shapes[i].q_entries()));
  }
  Call call(matrices.entries);
  for (size_t i = 0; i < count; ++i) lowrank::subtract(matrices.shapes[i], p[i], q[i], decoded, r[i]);
}

void lowrank_write(const py::array& p, const py::array& q, int factors, py::array body) {
  const size_t p_size = size_of(p), q_size = size_of(q);
  const DType stored = dtype_from_code(factors);
  uint8_t* out = bytes(body, (p_size + q_size) * item_bytes(stored));
  const float *left = floats_in(p, p_size), *right = floats_in(q, q_size);
  Call call(p_size + q_size);
  lowrank::write({p_size, q_size, 1}, left, right, stored, out);
}

// The factors of a body; refuses what no encoder writes.
void lowrank_read(const py::array& body, int factors, py::array p, py::array q) {
  const size_t p_size = size_of(p), q_size = size_of(q);
  const DType stored = dtype_from_code(factors);
  require(size_of(body) == (p_size + q_size) * item_bytes(stored), "body must be of the computed size");
  const uint8_t* in = bytes_in(body);
  float *left = floats(p, p_size), *right = floats(q, q_size);
  Fault fault;
  {
    Call call(p_size + q_size);
    fault = lowrank::read(in, {p_size, q_size, 1}, stored, left, right);
  }
  raise_if(fault);
}

void lowrank_decode(const py::array& p, const py::array& q, size_t columns, size_t rank, int dtype, py::array out,
                    bool accumulate, float scale) {
  Output target = output(out, accumulate, scale);
  const lowrank::Shape shape = matrix(target.count, columns, rank);
  const float *left = floats_in(p, shape.p_entries()), *right = floats_in(q, shape.q_entries());
  const DType decoded = dtype_from_code(dtype);
  Call call(target.count);
  lowrank::decode(shape, left, right, decoded, target);
}

py::tuple lowrank_measure(const py::array& p, const py::array& q, size_t n, size_t columns, size_t rank, int dtype) {
  const lowrank::Shape shape = matrix(n, columns, rank);
  const float *left = floats_in(p, shape.p_entries()), *right = floats_in(q, shape.q_entries());
  const DType decoded = dtype_from_code(dtype);
  double squares;
  float largest;
  {
    Call call(n);
    lowrank::measure(shape, left, right, decoded, &squares, &largest);
  }
  return py::make_tuple(squares, largest);
}

void define_lowrank(py::module_& m) {
  using namespace py::literals;
  m.def("lowrank_first", lowrank_first, "xs"_a, "residuals"_a, "columns"_a, "ranks"_a, "seeds"_a, "memories"_a, "ps"_a,
        "qs"_a);
  m.def("lowrank_second", lowrank_second, "ms"_a, "columns"_a, "ranks"_a, "factors"_a, "ps"_a, "qs"_a);
  m.def("lowrank_subtract", lowrank_subtract, "residuals"_a, "columns"_a, "ranks"_a, "ps"_a, "qs"_a, "dtype"_a);
  m.def("lowrank_write", lowrank_write, "p"_a, "q"_a, "factors"_a, "body"_a);
  m.def("lowrank_read", lowrank_read, "body"_a, "factors"_a, "p"_a, "q"_a);
  m.def("lowrank_decode", lowrank_decode, "p"_a, "q"_a, "columns"_a, "rank"_a, "dtype"_a, "out"_a, "accumulate"_a,
        "scale"_a);
  m.def("lowrank_measure", lowrank_measure, "p"_a, "q"_a, "n"_a, "columns"_a, "rank"_a, "dtype"_a);
}

}  // namespace
