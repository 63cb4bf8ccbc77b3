// tersegrad._core: NumPy arrays in, operations called. Every function checks that the arrays are what the operation
// takes, so that a mistake in Python cannot become a wild write; the messages speak to the package's own developers.
// Computes nothing.
#include <pybind11/stl.h>

#include "../cast/operation.h"
#include "../codec.h"
#include "../dispatch.h"
#include "arrays.h"
#include "dlpack.h"

namespace {

IndexForm index_form(int form) {
  require(form >= 1 && form <= 4, "index form must be from 1 to 4");
  return static_cast<IndexForm>(form);
}

// Hands malloc'ed memory to NumPy.
template <class T>
py::array_t<T> adopt(std::unique_ptr<T, topk::Free> memory, size_t n) {
  py::capsule owner(memory.get(), [](void* p) { std::free(p); });
  T* data = memory.release();
  return py::array_t<T>(static_cast<py::ssize_t>(n), data, owner);
}

void require_memory(bool enough) {
  if (!enough) throw std::bad_alloc();
}

py::tuple select_topk(const py::array& x, std::optional<py::array> residual, size_t k, uint32_t last_key) {
  Entries in = entries(x);
  float* r = residual_or_null(residual, in.count);
  require(k > 0 && k <= in.count && in.count <= UINT32_MAX, "need 0 < k <= n < 2^32");
  topk::Candidates found;
  bool memory;
  {
    Call call(in.count);
    memory = topk::select(in, r, k, last_key, found);
  }
  require_memory(memory);
  return py::make_tuple(adopt(std::move(found.index), k), adopt(std::move(found.value), k), last_key);
}

py::tuple select_chunks(const py::array& x, std::optional<py::array> residual, size_t k, size_t chunk) {
  Entries in = entries(x);
  float* r = residual_or_null(residual, in.count);
  require(k > 0 && k <= chunk && chunk <= 65536 && in.count <= UINT32_MAX, "need 0 < k <= chunk <= 65536");
  size_t full = in.count / chunk, total = full * k + std::min(k, in.count % chunk);
  py::array_t<uint32_t> index(static_cast<py::ssize_t>(total));
  py::array_t<float> value(static_cast<py::ssize_t>(total));
  bool memory;
  {
    uint32_t* i = index.mutable_data();
    float* v = value.mutable_data();
    Call call(in.count);
    memory = topk::select_chunks(in, r, k, chunk, i, v);
  }
  require_memory(memory);
  return py::make_tuple(index, value);
}

ValueCodec value_codec(const std::string& kind, int wire, int bits, size_t block_size, std::optional<uint64_t> seed,
                       float threshold, float scale, float limit, size_t kept, bool unbiased) {
  ValueCodec codec;
  codec.wire = dtype_from_code(wire);
  const bool is_integers = kind == "integers", is_rotated = kind == "rotated";
  require(is_integers  ? bits == 8 || bits == 16 || bits == 32
          : is_rotated ? bits >= 1 && bits <= 4
                       : bits == 8 || bits == 4 || bits == 2,
          "bits must be 8, 4 or 2; 8, 16 or 32 for integers; 1 to 4 for rotated");
  require(!is_rotated || ((block_size & (block_size - 1)) == 0 && kept < block_size),
          "block_size must be a power of two, and kept below it");
  require(block_size > 0 && block_size % 64 == 0 && block_size <= 65536,
          "block_size must be a multiple of 64 up to 65536");
  codec.quantized = {bits, block_size};
  codec.signs = {block_size};
  codec.digits = {block_size};
  codec.threshold = threshold;
  codec.integer = {bits, {scale, 1.0f / scale, limit}};
  codec.rotated = {bits, block_size, kept};
  codec.unbiased = unbiased;
  codec.stochastic = seed.has_value();
  codec.seed = seed.value_or(0);
  using Kind = ValueCodec::Kind;
  codec.kind = kind == "cast"       ? Kind::cast
               : kind == "quantize" ? Kind::quantize
               : kind == "sign"     ? Kind::sign
               : kind == "ternary"  ? Kind::ternary
               : is_integers        ? Kind::integers
               : is_rotated         ? Kind::rotated
                                    : Kind::identity;
  return codec;
}

Codec codec(const std::string& selection, const ValueCodec& values, double density, size_t k, size_t chunk, int form,
            uint64_t mask_seed, float threshold) {
  using Selection = Codec::Selection;
  Selection chosen = selection == "topk"        ? Selection::topk
                     : selection == "chunks"    ? Selection::chunks
                     : selection == "random"    ? Selection::random
                     : selection == "threshold" ? Selection::threshold
                                                : Selection::all;
  require(is_finite_key(bits_of(threshold)), "threshold must be from zero to the largest float32");
  require(density >= 0 && density <= 1 && form >= 0 && form <= 4, "density or index form out of range");
  require(chosen != Selection::chunks || (k > 0 && k <= chunk && chunk <= 65536), "need 0 < k <= chunk <= 65536");
  return {chosen, values, density, k, chunk, form, mask_seed, threshold};
}

py::tuple encode(const Codec& codec, const py::array& x, std::optional<py::array> residual, int dtype, uint32_t step,
                 uint32_t last_key, py::array body) {
  Entries in = entries(x);
  require(in.count <= UINT32_MAX, "a payload holds fewer than 2^32 entries");
  float* r = residual_or_null(residual, in.count);
  DType payload = dtype_from_code(dtype);
  uint8_t* out = bytes(body, codec.body_bytes(in.count, payload));
  Outcome outcome;
  size_t written;
  {
    Call call(in.count);
    outcome = codec.encode(in, r, payload, step, last_key, out, written);
  }
  require_memory(outcome != Outcome::out_of_memory);
  return py::make_tuple(outcome == Outcome::ok, last_key, written);
}

// Tensors by address, as buffers.py reads them: (codec number, address, count, dtype, residual address or 0, last key).
// Returns one body for all, the bytes of each, which were finite, and their keys. A tensor that is not finite has no
// bytes in it. Unless `checked`, the tensors are examined before any residual changes, and with `all_or_none` nothing
// is done if one of them is not finite.
py::tuple encode_many(const std::vector<Codec>& codecs, const py::list& tensors, uint32_t step, bool checked,
                      bool all_or_none) {
  struct Work {
    const Codec* codec;
    Entries x;
    float* residual;
    uint32_t last_key;
    size_t body_bytes;
    Outcome outcome;
  };
  std::vector<Work> works;
  size_t body_bytes = 0, total = 0;
  for (py::handle tensor : tensors) {
    auto [codec, address, count, dtype, residual, last_key] =
        tensor.cast<std::tuple<size_t, uintptr_t, size_t, int, uintptr_t, uint32_t>>();
    require(codec < codecs.size() && count <= UINT32_MAX, "codec number or count out of range");
    Entries x{reinterpret_cast<const void*>(address), dtype_from_code(dtype), count};
    works.push_back({&codecs[codec], x, reinterpret_cast<float*>(residual), last_key, 0, Outcome::ok});
    body_bytes += codecs[codec].body_bytes(count, x.dtype);
    total += count;
  }
  py::array_t<uint8_t> body(static_cast<py::ssize_t>(body_bytes));
  uint8_t* out = body.mutable_data();
  const uint8_t* begin = out;
  {
    Call call(total);
    bool finite = true;
    for (Work& work : works) {
      if (checked || work.residual == nullptr || cast::all_finite(work.x)) continue;
      work.outcome = Outcome::not_finite;
      finite = false;
    }
    for (Work& work : works) {
      if (!finite && all_or_none) break;
      if (work.outcome == Outcome::ok) {
        size_t written;
        work.outcome = work.codec->encode(work.x, work.residual, work.x.dtype, step, work.last_key, out, written);
        if (work.outcome == Outcome::ok) work.body_bytes = written;
      }
      out += work.body_bytes;
    }
  }
  py::list sizes, finite, keys;
  for (const Work& work : works) {
    require_memory(work.outcome != Outcome::out_of_memory);
    sizes.append(work.body_bytes);
    finite.append(work.outcome == Outcome::ok);
    keys.append(work.last_key);
  }
  py::slice used(0, out - begin, 1);
  return py::make_tuple(body[used], sizes, finite, keys);
}

void check_body(const Codec& codec, const py::array& body, int dtype, size_t n) {
  DType payload = dtype_from_code(dtype);
  const uint8_t* in = bytes_in(body);
  Fault fault;
  {
    Call call(n);
    fault = codec.check(in, size_of(body), payload, n);
  }
  raise_if(fault);
}

size_t measure_stream(const Codec& codec, const py::array& body, size_t n) {
  require(!codec.is_fixed_size(), "the stream's size is arithmetic");
  const uint8_t* in = bytes_in(body);
  size_t bytes;
  Fault fault;
  {
    Call call(n);
    fault = codec.measure_stream(in, size_of(body), n, &bytes);
  }
  raise_if(fault);
  return bytes;
}

void decode(const Codec& codec, const py::array& body, int dtype, uint32_t step, py::array out, bool accumulate,
            float scale, bool blank) {
  Output target = output(out, accumulate, scale);
  DType payload = dtype_from_code(dtype);
  const uint8_t* in = bytes_in(body);
  Fault fault;
  {
    Call call(target.count);
    fault = codec.decode(in, size_of(body), payload, step, target, blank);
  }
  raise_if(fault);
}

py::tuple examine(const Codec& codec, const py::array& body, int dtype, size_t n, uint32_t step) {
  DType payload = dtype_from_code(dtype);
  const uint8_t* in = bytes_in(body);
  Fault fault;
  Extent extent;
  {
    Call call(n);
    fault = codec.examine(in, size_of(body), payload, n, step, extent);
  }
  raise_if(fault);
  return py::make_tuple(extent.squares, extent.largest);
}

void add(const Codec& codec, const py::array& body, int dtype, uint32_t step, py::array out, float scale) {
  Output target = output(out, true, scale);
  DType payload = dtype_from_code(dtype);
  const uint8_t* in = bytes_in(body);
  Fault fault;
  {
    Call call(target.count);
    fault = codec.add(in, size_of(body), payload, step, target);
  }
  raise_if(fault);
}

size_t encode_index(int form, const py::array& index, size_t n, py::array stream) {
  size_t k = size_of(index);
  const uint32_t* in = indices(index);
  require_below(in, k, n);
  uint8_t* out = bytes(stream, index_stream_bytes(index_form(form), n, k));
  Call call(k);
  return index::encode(index_form(form), in, n, k, out);
}

py::array_t<uint32_t> decode_index(int form, const py::array& stream, size_t n, size_t k) {
  require(k <= n, "k must not exceed n");
  const uint8_t* in = bytes_in(stream);
  py::array_t<uint32_t> index(static_cast<py::ssize_t>(k));
  uint32_t* out = index.mutable_data();
  Fault fault;
  {
    Call call(k);
    fault = index::decode(index_form(form), in, size_of(stream), n, k, out);
  }
  raise_if(fault);
  return index;
}

py::array_t<uint32_t> draw_index(size_t n, size_t k, uint64_t seed, uint32_t step) {
  require(k <= n && n <= UINT32_MAX, "need k <= n < 2^32");
  py::array_t<uint32_t> index(static_cast<py::ssize_t>(k));
  uint32_t* out = index.mutable_data();
  Call call(k);
  index::draw(n, k, seed, step, 0, k, out);
  return index;
}

void settle(py::array residual, const py::array& index, const py::array& value, const py::array& decoded) {
  size_t n = size_of(residual), k = size_of(index);
  const uint32_t* at = indices(index);
  float* r = floats(residual, n);
  const float *v = floats_in(value, k), *d = floats_in(decoded, k);
  require_below(at, k, n);
  Call call(k);
  index::settle(r, at, v, d, k);
}

bool all_finite(const py::array& x) {
  Entries in = entries(x);
  Call call(in.count);
  return cast::all_finite(in);
}

bool accumulate(const py::array& x, py::array residual) {
  Entries in = entries(x);
  float* r = floats(residual, in.count);
  Call call(in.count);
  return cast::accumulate(in, r);
}

void subtract(py::array residual, const py::array& decoded) {
  size_t n = size_of(residual);
  float* r = floats(residual, n);
  const float* d = floats_in(decoded, n);
  Call call(n);
  cast::subtract(r, d, n);
}

void widen(const py::array& x, py::array out) {
  Entries in = entries(x);
  float* target = floats(out, in.count);
  Call call(in.count);
  cast::widen(in, target);
}

void round_values(int dtype, py::array values) {
  size_t n = size_of(values);
  float* v = floats(values, n);
  Call call(n);
  cast::round(dtype_from_code(dtype), v, n);
}

void emit(py::array values, py::array out, bool accumulate, float scale) {
  Output target = output(out, accumulate, scale);
  float* v = floats(values, target.count);
  Call call(target.count);
  cast::emit(v, target);
}

uint32_t crc32c(const py::buffer& data, uint32_t crc) {
  py::buffer_info info = data.request();
  require(info.itemsize == 1 && info.ndim <= 1 && (info.size <= 1 || info.strides[0] == 1),
          "data must be contiguous bytes");
  auto size = static_cast<size_t>(info.size);
  Call call(size);
  return active().crc32c(crc, info.ptr, size);
}

std::vector<std::string> kernels_available() {
  std::vector<std::string> names;
  for (const Kernels* kernels : available()) names.emplace_back(kernels->name);
  return names;
}

}  // namespace

PYBIND11_MODULE(_core, m) {
  m.doc() = "Native kernels on contiguous arrays; use them through the tersegrad package.";
  using namespace py::literals;
  m.def("select_topk", select_topk, "x"_a, "residual"_a, "k"_a, "last_key"_a = 0);
  m.def("select_chunks", select_chunks, "x"_a, "residual"_a, "k"_a, "chunk"_a);
  py::class_<ValueCodec>(m, "ValueCodec")
      .def(py::init(&value_codec), "kind"_a, "wire"_a = 1, "bits"_a = 8, "block_size"_a = 256, "seed"_a = std::nullopt,
           "threshold"_a = 0.0f, "scale"_a = 1.0f, "limit"_a = 1.0f, "kept"_a = 0, "unbiased"_a = true);
  py::class_<Codec>(m, "Codec")
      .def(py::init(&codec), "selection"_a, "values"_a, "density"_a = 0.0, "k"_a = 0, "chunk"_a = 0, "form"_a = 0,
           "mask_seed"_a = 0, "threshold"_a = 0.0f)
      .def("survivors", &Codec::survivors, "n"_a)
      .def(
          "form", [](const Codec& c, size_t n) { return static_cast<int>(c.index_form(n)); }, "n"_a)
      .def(
          "body_bytes", [](const Codec& c, size_t n, int dtype) { return c.body_bytes(n, dtype_from_code(dtype)); },
          "n"_a, "dtype"_a)
      .def("measure_stream", &measure_stream, "body"_a, "n"_a)
      .def("encode", &encode, "x"_a, "residual"_a, "dtype"_a, "step"_a, "last_key"_a, "body"_a)
      .def("check", &check_body, "body"_a, "dtype"_a, "n"_a)
      .def("decode", &decode, "body"_a, "dtype"_a, "step"_a, "out"_a, "accumulate"_a, "scale"_a, "blank"_a)
      .def("examine", &examine, "body"_a, "dtype"_a, "n"_a, "step"_a)
      .def("add", &add, "body"_a, "dtype"_a, "step"_a, "out"_a, "scale"_a);
  m.def("encode_many", encode_many, "codecs"_a, "tensors"_a, "step"_a, "checked"_a, "all_or_none"_a);
  m.def("address", [](const py::array& x) { return reinterpret_cast<uintptr_t>(read(x)); }, "x"_a);
  m.def("locate_tensors", locate_tensors, "exchange"_a, "tensors"_a, "max_rank"_a);
  m.def("encode_index", encode_index, "form"_a, "index"_a, "n"_a, "stream"_a);
  m.def("decode_index", decode_index, "form"_a, "stream"_a, "n"_a, "k"_a);
  m.def("draw_index", draw_index, "n"_a, "k"_a, "seed"_a, "step"_a);
  m.def(
      "index_bytes", [](int form, uint64_t n, uint64_t k) { return index_stream_bytes(index_form(form), n, k); },
      "form"_a, "n"_a, "k"_a);
  m.def(
      "smallest_index_form", [](uint64_t n, uint64_t k) { return static_cast<int>(smallest_index_form(n, k)); }, "n"_a,
      "k"_a);
  m.def("settle", settle, "residual"_a, "index"_a, "value"_a, "decoded"_a);
  m.def("all_finite", all_finite, "x"_a);
  m.def("accumulate", accumulate, "x"_a, "residual"_a);
  m.def("subtract", subtract, "residual"_a, "decoded"_a);
  m.def("widen", widen, "x"_a, "out"_a);
  m.def("round_values", round_values, "dtype"_a, "values"_a);
  m.def("emit", emit, "values"_a, "out"_a, "accumulate"_a, "scale"_a);
  m.def("crc32c", crc32c, "data"_a, "crc"_a = 0);
  m.def("kernels_available", kernels_available);
  m.def("kernels_active", [] { return std::string(active().name); });
  m.def("kernels_use", &use, "name"_a);
  m.def("thread_count", &thread_count);
  m.def("set_thread_count", &set_thread_count, "count"_a);
}
