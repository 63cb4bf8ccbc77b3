// NumPy arrays as the operations take them, checked. The messages speak to the package's own developers.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <optional>

#include "../tensor.h"

namespace py = pybind11;
using namespace tersegrad;

namespace {

// Around every operation: IEEE arithmetic, and the GIL released when the call is long enough to share.
class Call {
 public:
  explicit Call(size_t entries) {
    if (entries >= 16 * 1024) unlocked_.emplace();
  }

 private:
  std::optional<py::gil_scoped_release> unlocked_;
  FloatEnvironment environment_;
};

void require(bool condition, const char* what) {
  if (!condition) throw py::type_error(what);
}

size_t size_of(const py::array& array) { return static_cast<size_t>(array.size()); }

const void* read(const py::array& array) {
  require(array.flags() & py::array::c_style, "array must be contiguous");
  return array.data();
}

void* write(py::array& array) {
  require(array.flags() & py::array::c_style, "array must be contiguous");
  return array.mutable_data();  // throws when read-only
}

// float32, float16, or uint16 holding the bits of bfloat16.
DType dtype_of(const py::array& array) {
  py::dtype type = array.dtype();
  if (type.kind() == 'f' && type.itemsize() == 4) return DType::float32;
  if (type.kind() == 'f' && type.itemsize() == 2) return DType::float16;
  require(type.kind() == 'u' && type.itemsize() == 2, "entries must be float32, float16 or uint16");
  return DType::bfloat16;
}

DType dtype_from_code(int code) {
  require(code >= 1 && code <= 3, "dtype code must be 1, 2 or 3");
  return static_cast<DType>(code);
}

Entries entries(const py::array& x) { return {read(x), dtype_of(x), size_of(x)}; }

float* floats(py::array& array, size_t n) {
  require(dtype_of(array) == DType::float32 && size_of(array) == n, "array must be float32 of the right size");
  return static_cast<float*>(write(array));
}

const float* floats_in(const py::array& array, size_t n) {
  require(dtype_of(array) == DType::float32 && size_of(array) == n, "array must be float32 of the right size");
  return static_cast<const float*>(read(array));
}

float* residual_or_null(std::optional<py::array>& residual, size_t n) {
  return residual ? floats(*residual, n) : nullptr;
}

uint8_t* bytes(py::array& array, size_t n) {
  require(array.dtype().kind() == 'u' && array.itemsize() == 1 && size_of(array) == n,
          "body must be uint8 of the computed size");
  return static_cast<uint8_t*>(write(array));
}

const uint8_t* bytes_in(const py::array& array) {
  require(array.dtype().kind() == 'u' && array.itemsize() == 1, "body must be uint8");
  return static_cast<const uint8_t*>(read(array));
}

const uint32_t* indices(const py::array& array) {
  require(array.dtype().kind() == 'u' && array.itemsize() == 4, "indices must be uint32");
  return static_cast<const uint32_t*>(read(array));
}

// Whether the ascending indices stay below n, so that a scatter cannot leave its tensor.
void require_below(const uint32_t* index, size_t k, size_t n) {
  require(k == 0 || index[k - 1] < n, "indices must stay inside the tensor");
}

Output output(py::array& out, bool accumulate, float scale) {
  return {write(out), dtype_of(out), size_of(out), accumulate, scale};
}

void raise_if(Fault fault) {
  if (fault == nullptr) return;
  py::object error = py::module_::import("tersegrad.errors").attr("PayloadError");
  PyErr_SetString(error.ptr(), fault);
  throw py::error_already_set();
}

}  // namespace
