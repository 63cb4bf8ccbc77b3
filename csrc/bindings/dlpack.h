// Where a framework's tensors lie, without linking the framework: the C exchange table of DLPack 1.2 and later, which a
// tensor class carries as `__dlpack_c_exchange_api__`. Asking it takes some 30 ns, reading the same from Python ten
// times as long. The layout below is DLPack's stable ABI, https://dmlc.github.io/dlpack.
#pragma once

#include "arrays.h"

namespace {

struct DlTensor {
  void* data;
  struct {
    int32_t type, id;
  } device;
  int32_t rank;
  struct {
    uint8_t code, bits;
    uint16_t lanes;
  } dtype;
  const int64_t* shape;
  const int64_t* strides;
  uint64_t byte_offset;
};

struct DlExchange {
  struct {
    uint32_t major, minor;
  } version;
  void* older;
  void (*unused[3])();
  int (*borrow)(void* object, DlTensor* out);  // may be null; the tensor keeps what `out` points to
};

constexpr int32_t DL_CPU = 1;
constexpr uint8_t DL_FLOAT = 2, DL_BFLOAT = 4;

// The wire code of a floating type that the kernels take, or 0.
int dtype_code(const DlTensor& tensor) {
  if (tensor.dtype.lanes != 1) return 0;
  if (tensor.dtype.code == DL_FLOAT && tensor.dtype.bits == 32) return static_cast<int>(DType::float32);
  if (tensor.dtype.code == DL_FLOAT && tensor.dtype.bits == 16) return static_cast<int>(DType::float16);
  if (tensor.dtype.code == DL_BFLOAT && tensor.dtype.bits == 16) return static_cast<int>(DType::bfloat16);
  return 0;
}

bool is_contiguous(const DlTensor& tensor, size_t count) {
  if (tensor.strides == nullptr || count == 0) return true;
  int64_t expected = 1;
  for (int32_t axis = tensor.rank - 1; axis >= 0; --axis) {
    if (tensor.shape[axis] != 1 && tensor.strides[axis] != expected) return false;
    expected *= tensor.shape[axis];
  }
  return true;
}

// (addresses, counts, dtype codes, shapes) of contiguous CPU tensors of floats; None if one of them is anything else.
py::object locate_tensors(const py::capsule& exchange, const py::list& tensors, int max_rank) {
  require(std::string_view(exchange.name()) == "dlpack_exchange_api", "need a DLPack exchange table");
  const auto* table = exchange.get_pointer<const DlExchange>();
  if (table->version.major != 1 || table->borrow == nullptr) return py::none();
  py::list addresses(tensors.size()), counts(tensors.size()), dtypes(tensors.size()), shapes(tensors.size());
  for (size_t i = 0; i < tensors.size(); ++i) {
    DlTensor tensor;
    if (table->borrow(PyList_GET_ITEM(tensors.ptr(), static_cast<Py_ssize_t>(i)), &tensor) != 0) {
      PyErr_Clear();  // sparse, or of a dtype that DLPack lacks: the caller finds the words
      return py::none();
    }
    int dtype = dtype_code(tensor);
    if (tensor.device.type != DL_CPU || dtype == 0 || tensor.rank > max_rank) return py::none();
    size_t count = 1;
    py::tuple shape(static_cast<size_t>(tensor.rank));
    for (int32_t axis = 0; axis < tensor.rank; ++axis) {
      count *= static_cast<size_t>(tensor.shape[axis]);
      shape[static_cast<size_t>(axis)] = py::int_(tensor.shape[axis]);
    }
    if (!is_contiguous(tensor, count)) return py::none();
    addresses[i] = py::int_(reinterpret_cast<uintptr_t>(tensor.data) + tensor.byte_offset);
    counts[i] = py::int_(count);
    dtypes[i] = py::int_(dtype);
    shapes[i] = shape;
  }
  return py::make_tuple(addresses, counts, dtypes, shapes);
}

}  // namespace
