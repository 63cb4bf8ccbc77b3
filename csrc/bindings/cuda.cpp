// tersegrad._cuda: addresses in, kernels enqueued. Built a second time on the emulation, as _cuda_emulated, for tests.
// Callers hold the device current and the memory alive; backend.py is the one caller.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "../cuda/codec.h"
#ifdef TERSEGRAD_CUDA_EMULATED
#include "../cuda/emulate.h"
#include "../cuda/geometry.h"
#endif

namespace {

namespace py = pybind11;
using namespace tersegrad;
using Address = uintptr_t;

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

void require(bool condition, const char* message) {
  if (!condition) throw py::value_error(message);
}

void raise_if_launch_failed() {
  if (const char* error = cuda::launch_error()) throw std::runtime_error(std::string("CUDA: ") + error);
}

DType dtype_of(int code) {
  require(code >= 1 && code <= 3, "dtype must be from 1 to 3");
  return static_cast<DType>(code);
}

Entries entries(Address x, int dtype, size_t n) {
  require(n <= UINT32_MAX, "a payload holds fewer than 2^32 entries");
  require(x % item_bytes(dtype_of(dtype)) == 0, "entries must be aligned to their size");
  return {at<const void>(x), dtype_of(dtype), n};
}

// The memory of a call.
cuda::Work work(const Codec& codec, size_t n, int dtype, size_t bodies, Address workspace, size_t bytes,
                Address stream) {
  require(bytes >= cuda::workspace_bytes(codec, n, dtype_of(dtype), bodies), "the workspace is too small");
  require(workspace % 16 == 0, "the workspace must be aligned to 16 bytes");
  return {at<void>(workspace), at<void>(stream)};
}

py::object form_of(const py::object& codec) {
  const char* missing = "code of its own";
  py::object native = py::none();
  if (py::bool_(py::getattr(codec, "_is_native", py::bool_(false)))) {
    native = codec.attr("_native");
    missing = cuda::unsupported(native.cast<const Codec&>());
  }
  if (missing == nullptr) return native;
  py::object error = py::module_::import("tersegrad.errors").attr("CodecError");
  py::str message =
      py::str("{} has no form on the device: {} runs on the host alone; use .cpu()").format(codec, missing);
  PyErr_SetObject(error.ptr(), message.ptr());
  throw py::error_already_set();
}

void encode(const Codec& codec, Address x, int x_dtype, size_t n, Address residual, int dtype, uint32_t step,
            Address step_address, Address status, Address skip, Address body, bool checked, Address last_key,
            Address workspace, size_t workspace_bytes, Address stream) {
  require(cuda::unsupported(codec) == nullptr, "the codec has no form on the device");
  require(body % 16 == 0, "the body must be aligned to 16 bytes");
  const cuda::Encoding call{
      entries(x, x_dtype, n), at<float>(residual),      dtype_of(dtype),   {step, at<const uint32_t>(step_address)},
      at<uint32_t>(status),   at<const uint32_t>(skip), at<uint8_t>(body), checked,
      at<uint32_t>(last_key)};
  cuda::encode(codec, call, work(codec, n, dtype, 1, workspace, workspace_bytes, stream));
  raise_if_launch_failed();
}

void decode(const Codec& codec, Address body, int dtype, size_t n, uint32_t step, Address step_address, Address out,
            int out_dtype, bool accumulate, float scale, Address workspace, size_t workspace_bytes, Address stream) {
  require(cuda::unsupported(codec) == nullptr, "the codec has no form on the device");
  require(body % 16 == 0, "the body must be aligned to 16 bytes");
  const Entries target = entries(out, out_dtype, n);
  const Output output{at<void>(out), target.dtype, n, accumulate, scale};
  cuda::decode(codec, at<const uint8_t>(body), dtype_of(dtype), {step, at<const uint32_t>(step_address)}, output,
               work(codec, n, dtype, 1, workspace, workspace_bytes, stream));
  raise_if_launch_failed();
}

void add_many(const Codec& codec, const std::vector<Address>& bodies, int dtype, size_t n, uint32_t step,
              Address step_address, Address start, Address out, float scale, Address workspace, size_t workspace_bytes,
              Address stream) {
  require(cuda::unsupported(codec) == nullptr, "the codec has no form on the device");
  std::vector<const uint8_t*> addresses;
  for (Address body : bodies) {
    require(body % 16 == 0, "the body must be aligned to 16 bytes");
    addresses.push_back(at<const uint8_t>(body));
  }
  const Entries target = entries(out, static_cast<int>(DType::float32), n);
  const Output output{at<void>(out), target.dtype, n, true, scale};
  cuda::add_many(codec, addresses.data(), addresses.size(), dtype_of(dtype), {step, at<const uint32_t>(step_address)},
                 at<const float>(start), output,
                 work(codec, n, dtype, bodies.size(), workspace, workspace_bytes, stream));
  raise_if_launch_failed();
}

void add_integers(const std::vector<Address>& bodies, int bits, size_t nbytes, Address total, Address partial,
                  Address beyond, Address stream) {
  require(!bodies.empty(), "there are no bodies to add");
  require(bits == 8 || bits == 16 || bits == 32, "bits must be 8, 16 or 32");
  std::vector<const uint8_t*> at_bodies;
  for (Address body : bodies) at_bodies.push_back(at<const uint8_t>(body));
  cuda::add_integers(at_bodies.data(), at_bodies.size(), bits, nbytes, at<uint8_t>(total), at<int64_t>(partial),
                     at<uint32_t>(beyond), at<void>(stream));
  raise_if_launch_failed();
}

}  // namespace

#ifdef TERSEGRAD_CUDA_EMULATED
PYBIND11_MODULE(_cuda_emulated, m) {
  m.def(
      "configure",
      [](const std::string& order, int dropped) {
        using cuda_order = emulation::Order;
        emulation::configure(order == "ascending"    ? cuda_order::ascending
                             : order == "descending" ? cuda_order::descending
                                                     : cuda_order::shuffled,
                             dropped);
      },
      py::arg("order"), py::arg("dropped") = -1);
  m.def("launches", &emulation::launches);
  m.def("candidates", [](Address workspace) { return emulation::candidates(at<const void>(workspace)); });
  m.def("sum_of_parts_before", [](Address links, size_t part, uint32_t own) {
    return emulation::sum_of_parts_before(at<uint64_t>(links), part, own);
  });
  py::module_ geometry = m.def_submodule("geometry");
  geometry.attr("LARGEST_GRID") = cuda::kLargestGrid;
  geometry.attr("THREADS") = cuda::kThreads;
  geometry.attr("TILE") = cuda::kTile;
  geometry.attr("SAMPLES") = cuda::kSamples;
  geometry.def("parts_of", &cuda::parts_of);
  geometry.def("grid_of", &cuda::grid_of);
  geometry.def("dense_grid", &cuda::dense_grid);
  geometry.def("look_grid", &cuda::look_grid);
  geometry.def("tiles_of", &cuda::tiles_of);
  geometry.def("digit_grid", &cuda::digit_grid);
  geometry.def("place_grid", &cuda::place_grid);
  geometry.def("chunk_grid", &cuda::chunk_grid);
  geometry.def("sample_rank", &cuda::sample_rank);
  geometry.def("candidate_capacity", &cuda::candidate_capacity);
#else
PYBIND11_MODULE(_cuda, m) {
#endif
  m.doc() = "Kernels of CUDA devices on addresses; use them through the tersegrad package.";
  using namespace py::literals;
  py::module_::import("tersegrad._core");  // whose Codec the functions take
  m.def("driver_version", &cuda::driver_version);
  m.def("runtime_version", &cuda::runtime_version);
  m.def("device_count", &cuda::device_count);
  m.def("form_of", &form_of, "codec"_a);
  m.def(
      "workspace_bytes",
      [](const Codec& codec, size_t n, int dtype, size_t bodies) {
        return cuda::workspace_bytes(codec, n, dtype_of(dtype), bodies);
      },
      "codec"_a, "n"_a, "dtype"_a, "bodies"_a = 1);
  m.def("encode", &encode, "codec"_a, "x"_a, "x_dtype"_a, "n"_a, "residual"_a, "dtype"_a, "step"_a, "step_address"_a,
        "status"_a, "skip"_a, "body"_a, "checked"_a, "last_key"_a, "workspace"_a, "workspace_bytes"_a, "stream"_a);
  m.def("decode", &decode, "codec"_a, "body"_a, "dtype"_a, "n"_a, "step"_a, "step_address"_a, "out"_a, "out_dtype"_a,
        "accumulate"_a, "scale"_a, "workspace"_a, "workspace_bytes"_a, "stream"_a);
  m.def("add_many", &add_many, "codec"_a, "bodies"_a, "dtype"_a, "n"_a, "step"_a, "step_address"_a, "start"_a, "out"_a,
        "scale"_a, "workspace"_a, "workspace_bytes"_a, "stream"_a);
  m.def("add_integers", &add_integers, "bodies"_a, "bits"_a, "nbytes"_a, "total"_a, "partial"_a, "beyond"_a,
        "stream"_a);
  m.def(
      "not_zero",
      [](Address x, int x_dtype, size_t n, Address flag, Address stream) {
        cuda::not_zero(entries(x, x_dtype, n), at<uint32_t>(flag), at<void>(stream));
        raise_if_launch_failed();
      },
      "x"_a, "x_dtype"_a, "n"_a, "flag"_a, "stream"_a);
  m.def(
      "not_finite",
      [](Address x, int x_dtype, size_t n, Address flag, Address stream) {
        cuda::not_finite(entries(x, x_dtype, n), at<uint32_t>(flag), at<void>(stream));
        raise_if_launch_failed();
      },
      "x"_a, "x_dtype"_a, "n"_a, "flag"_a, "stream"_a);
  m.def("count_workspace_bytes", &cuda::count_workspace_bytes);
  m.def(
      "count_reaching",
      [](Address x, int x_dtype, size_t n, Address residual, float threshold, Address skip, Address status,
         Address count, Address workspace, size_t workspace_bytes, Address stream) {
        require(workspace_bytes >= cuda::count_workspace_bytes(), "the workspace is too small");
        cuda::count_reaching(entries(x, x_dtype, n), at<float>(residual), threshold, at<const uint32_t>(skip),
                             at<uint32_t>(status), at<uint32_t>(count), {at<void>(workspace), at<void>(stream)});
        raise_if_launch_failed();
      },
      "x"_a, "x_dtype"_a, "n"_a, "residual"_a, "threshold"_a, "skip"_a, "status"_a, "count"_a, "workspace"_a,
      "workspace_bytes"_a, "stream"_a);
  m.def(
      "copy_if",
      [](Address flag, Address source, Address target, size_t nbytes, Address stream) {
        cuda::copy_if(at<const uint32_t>(flag), at<const uint8_t>(source), at<uint8_t>(target), nbytes,
                      at<void>(stream));
        raise_if_launch_failed();
      },
      "flag"_a, "source"_a, "target"_a, "nbytes"_a, "stream"_a);
  m.def(
      "zero_if",
      [](Address flag, Address target, size_t nbytes, Address stream) {
        cuda::zero_if(at<const uint32_t>(flag), at<uint8_t>(target), nbytes, at<void>(stream));
        raise_if_launch_failed();
      },
      "flag"_a, "target"_a, "nbytes"_a, "stream"_a);
  m.def(
      "write_head",
      [](Address head, uint32_t step, size_t slots, Address status, Address first_piece, bool failed, Address message,
         Address stream) {
        cuda::write_head({at<const uint8_t>(head), step, slots}, at<const uint32_t>(status),
                         at<const uint32_t>(first_piece), failed, at<uint8_t>(message), at<void>(stream));
        raise_if_launch_failed();
      },
      "head"_a, "step"_a, "slots"_a, "status"_a, "first_piece"_a, "failed"_a, "message"_a, "stream"_a);
  m.def(
      "judge",
      [](Address head, uint32_t step, size_t slots, Address messages, size_t stride, size_t ranks, Address before,
         Address verdict, Address stream) {
        cuda::judge({at<const uint8_t>(head), step, slots}, at<const uint8_t>(messages), stride, ranks,
                    at<const uint32_t>(before), at<uint32_t>(verdict), at<void>(stream));
        raise_if_launch_failed();
      },
      "head"_a, "step"_a, "slots"_a, "messages"_a, "stride"_a, "ranks"_a, "before"_a, "verdict"_a, "stream"_a);
  m.def(
      "note",
      [](Address verdict, size_t slots, Address counts, Address stream) {
        cuda::note(at<const uint32_t>(verdict), slots, at<uint32_t>(counts), at<void>(stream));
        raise_if_launch_failed();
      },
      "verdict"_a, "slots"_a, "counts"_a, "stream"_a);
  m.def(
      "close_step",
      [](Address counts, bool counted, Address stream) {
        cuda::close_step(at<uint32_t>(counts), counted, at<void>(stream));
        raise_if_launch_failed();
      },
      "counts"_a, "counted"_a, "stream"_a);
}
