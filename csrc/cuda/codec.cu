// Which kernels, in which order, on which part of the workspace.
#include "codec.h"

#include <cmath>

#include "../rotate/cuda.cuh"
#include "../threshold/cuda.cuh"
#include "geometry.h"
#include "values.cuh"

namespace tersegrad::cuda {
namespace {

size_t dense_grid(size_t n) { return grid_of((n + 3) / 4); }

Values values_of(const ValueCodec& codec, DType dtype, size_t n, const uint8_t* body) {
  using Kind = ValueCodec::Kind;
  if (codec.kind == Kind::quantize) {
    return {ValueKind::quantize,
            dtype,
            dtype,
            static_cast<uint8_t>(codec.quantized.bits),
            static_cast<uint32_t>(codec.quantized.block_size),
            body,
            body + codec.quantized.scale_bytes(n)};
  }
  if (codec.kind == Kind::sign) {
    auto block_size = static_cast<uint32_t>(codec.signs.block_size);
    return {ValueKind::sign, dtype, dtype, 1, block_size, body, body + codec.signs.scale_bytes(n)};
  }
  return {ValueKind::cast, dtype, codec.kind == Kind::cast ? codec.wire : dtype, 0, 64, body, nullptr};
}

void encode_values(const ValueCodec& codec, const Input& in, DType dtype, const Step& step, uint8_t* body,
                   Header* header, Stream stream) {
  const Values values = values_of(codec, dtype, in.n, body);
  auto* codes = const_cast<uint8_t*>(values.codes);
  if (values.kind == ValueKind::quantize) {
    launch_quantize({in, dtype, codec.quantized.block_size, codec.stochastic, codec.seed, step, body, codes, header},
                    codec.quantized.bits, stream);
  } else if (values.kind == ValueKind::sign) {
    launch_sign({in, dtype, codec.signs.block_size, body, codes, header}, stream);
  } else {
    launch(encode_cast, dense_grid(in.n), kThreads, stream, in, dtype, values.wire, body, header);
  }
}

void encode_rotated_values(const ValueCodec& codec, const Input& in, DType dtype, const Step& step, uint8_t* body,
                           const Workspace& w, Stream stream) {
  const rotate::Layout& layout = codec.rotated;
  launch_encode_rotated({rotated_layout(layout, in.n, codec.seed, step, w.long_tiles), in, dtype, codec.unbiased, body,
                         body + layout.scale_bytes(in.n), w.header},
                        layout.bits, stream);
}

void decode_rotated_values(const ValueCodec& codec, const uint8_t* body, DType dtype, const Step& step,
                           const Target& to, const Workspace& w, Stream stream) {
  const rotate::Layout& layout = codec.rotated;
  launch_decode_rotated(
      {rotated_layout(layout, to.n, codec.seed, step, w.long_tiles), dtype, body, body + layout.scale_bytes(to.n), to},
      layout.bits, stream);
}

void look(const Input& in, Header* header, Stream stream) {
  launch(look_before, std::min<size_t>(dense_grid(in.n), kLookGrid), kThreads, stream, in, header);
}

void select(const Codec& codec, const Input& in, const Step& step, size_t kept, const Workspace& w, bool looked,
            Stream stream) {
  switch (codec.selection) {
    case Codec::Selection::topk:
      select_topk({in,
                   kept,
                   sample_rank(in.n, kept),
                   candidate_capacity(in.n, kept),
                   w.sample,
                   w.index,
                   w.value,
                   {w.tiles[0], w.tiles[1], w.tiles[2], w.tiles[3]},
                   w.survivor,
                   w.survivor_value,
                   w.header},
                  stream);
      break;
    case Codec::Selection::chunks:
      select_chunks({in, codec.k, codec.chunk, w.survivor, w.survivor_value, w.header}, stream);
      break;
    default:
      if (in.residual != nullptr) {
        launch(accumulate_entries, dense_grid(in.n), kThreads, stream, in, w.header);
      } else if (!looked) {
        look(in, w.header, stream);  // the entries that are not drawn count too
      }
      launch(draw_indices, grid_of(kept), kThreads, stream, in.n, kept, codec.mask_seed, step, w.survivor);
      launch(gather_survivors, grid_of(kept), kThreads, stream, in, static_cast<const uint32_t*>(w.survivor), kept,
             w.survivor_value, static_cast<const Header*>(w.header));
  }
}

}  // namespace

const char* unsupported(const Codec& codec) {
  using Kind = ValueCodec::Kind;
  if (!codec.is_fixed_size()) return "indices='rice'";
  const Kind kind = codec.values.kind;
  if (kind == Kind::quantize && codec.values.quantized.by_norm) return "scale='l2'";
  if (kind == Kind::rotated && codec.selection == Codec::Selection::all) return nullptr;
  const bool known = kind == Kind::identity || kind == Kind::cast || kind == Kind::quantize || kind == Kind::sign;
  return known ? nullptr : "how its values are coded";
}

size_t workspace_bytes(const Codec& codec, size_t n, DType) { return Workspace(codec, n, nullptr).bytes; }

void encode(const Codec& codec, const Encoding& call, const Work& work) {
  const size_t n = call.x.count, kept = codec.survivors(n);
  const Workspace w(codec, n, work.memory);
  const Stream stream = work.stream;
  const Input in{call.x.data, call.x.dtype, n, call.residual};
  const Step step{call.step.value, call.step.at};
  launch(begin_call, 1, kWideThreads, stream, w.header, call.skip);
  if (n == 0) {
    launch(finish_dense, 1, kThreads, stream, static_cast<const Header*>(w.header), call.body, size_t{0}, call.status);
    return;
  }
  const bool looked = call.residual != nullptr && !call.checked;
  if (looked) look(in, w.header, stream);
  if (codec.selection == Codec::Selection::all) {
    if (codec.values.kind == ValueCodec::Kind::rotated) {
      encode_rotated_values(codec.values, in, call.dtype, step, call.body, w, stream);
    } else {
      encode_values(codec.values, in, call.dtype, step, call.body, w.header, stream);
    }
    const size_t bytes = codec.body_bytes(n, call.dtype);
    launch(finish_dense, grid_of(bytes / kCell + 1), kThreads, stream, static_cast<const Header*>(w.header), call.body,
           bytes, call.status);
    return;
  }
  select(codec, in, step, kept, w, looked, stream);
  const bool chunks = codec.selection == Codec::Selection::chunks;
  launch(replace_survivors, grid_of(kept), kThreads, stream, static_cast<const Header*>(w.header), w.survivor,
         codec.has_index_stream(), w.survivor_value, kept, chunks ? codec.k : kept, chunks ? codec.chunk : n,
         call.status);
  uint8_t* body = call.body;
  if (codec.has_index_stream()) {
    const IndexForm form = codec.index_form(n);
    encode_index(form, w.survivor, n, kept, body, stream);
    body += index_stream_bytes(form, n, kept);
  }
  // A header of zeros: what is coded now are the survivors, or the zeros in their place.
  launch(begin_call, 1, kWideThreads, stream, w.values_header, static_cast<const uint32_t*>(nullptr));
  encode_values(codec.values, {w.survivor_value, DType::float32, kept, nullptr}, call.dtype, step, body,
                w.values_header, stream);
  if (call.residual == nullptr) return;
  launch(settle_residual, grid_of(kept), kThreads, stream, values_of(codec.values, call.dtype, kept, body),
         static_cast<const uint32_t*>(w.survivor), static_cast<const float*>(w.survivor_value), kept, call.residual,
         static_cast<const Header*>(w.header));
}

void decode(const Codec& codec, const uint8_t* body, DType dtype, StepSource step, const Output& out,
            const Work& work) {
  const size_t n = out.count, kept = codec.survivors(n);
  if (n == 0) return;
  const Stream stream = work.stream;
  const Target target{out.data, out.dtype, n, out.accumulate, out.scale};
  const Workspace w(codec, n, work.memory);
  if (codec.values.kind == ValueCodec::Kind::rotated) {
    decode_rotated_values(codec.values, body, dtype, {step.value, step.at}, target, w, stream);
    return;
  }
  if (codec.selection == Codec::Selection::all) {
    launch(decode_entries, dense_grid(n), kThreads, stream, values_of(codec.values, dtype, n, body), target);
    return;
  }
  if (codec.has_index_stream()) {
    const IndexForm form = codec.index_form(n);
    decode_index(form, {body, n, kept, w.survivor, w.counts}, stream);
    body += index_stream_bytes(form, n, kept);
  } else {
    launch(draw_indices, grid_of(kept), kThreads, stream, n, kept, codec.mask_seed, Step{step.value, step.at},
           w.survivor);
  }
  if (!out.accumulate) {
    const size_t bytes = n * item_bytes(out.dtype);
    launch(zero_bytes, grid_of(bytes / kCell + 1), kThreads, stream, static_cast<uint8_t*>(out.data), bytes);
  }
  launch(scatter_values, grid_of(kept), kThreads, stream, values_of(codec.values, dtype, kept, body),
         static_cast<const uint32_t*>(w.survivor), kept, target);
}

void is_zero(const Entries& x, uint32_t* flag, void* stream) {
  launch(set_word, 1, 1, stream, flag, 1u);
  if (x.count > 0) {
    launch(clear_unless_zero, dense_grid(x.count), kThreads, stream, Input{x.data, x.dtype, x.count, nullptr}, flag);
  }
}

void not_finite(const Entries& x, uint32_t* flag, void* stream) {
  if (x.count == 0) return;
  launch(mark_not_finite, std::min<size_t>(dense_grid(x.count), kLookGrid), kThreads, stream,
         Input{x.data, x.dtype, x.count, nullptr}, flag);
}

size_t count_workspace_bytes() { return sizeof(Header); }

void count_reaching(const Entries& x, float* residual, float threshold, const uint32_t* skip, uint32_t* status,
                    uint32_t* count, const Work& work) {
  auto* header = static_cast<Header*>(work.memory);
  const Input in{x.data, x.dtype, x.count, residual};
  launch(begin_call, 1, kWideThreads, work.stream, header, skip);
  launch(count_keys_from, std::min<size_t>(dense_grid(x.count), kLookGrid), kThreads, work.stream, in,
         bits_of(threshold), header);
  launch(tell_count, 1, 1, work.stream, static_cast<const Header*>(header), status, count);
}

void copy_if(const uint32_t* flag, const uint8_t* source, uint8_t* target, size_t bytes, void* stream) {
  if (bytes > 0) launch(copy_bytes_if, grid_of(bytes / kCell + 2), kThreads, stream, flag, source, target, bytes);
}

void zero_if(const uint32_t* flag, uint8_t* target, size_t bytes, void* stream) {
  if (bytes > 0) launch(zero_bytes_if, grid_of(bytes / kCell + 2), kThreads, stream, flag, target, bytes);
}

#ifdef __CUDACC__
int driver_version() {
  int version = 0;
  return cudaDriverGetVersion(&version) == cudaSuccess ? version : 0;
}

int runtime_version() {
  int version = 0;
  return cudaRuntimeGetVersion(&version) == cudaSuccess ? version : 0;
}

int device_count() {
  int count = 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
  cudaGetLastError();  // ours, and told
  return 0;
}

const char* launch_error() {
  const cudaError_t error = cudaPeekAtLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}
#else
int driver_version() { return 13000; }
int runtime_version() { return 13000; }
int device_count() { return 1; }
const char* launch_error() { return nullptr; }
#endif

}  // namespace tersegrad::cuda
