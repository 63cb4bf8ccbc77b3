// Which kernels, in which order, on which part of the workspace.
#include "codec.h"

#include <algorithm>

#include "../rotate/cuda.cuh"
#include "../threshold/cuda.cuh"
#include "../topk/chunks.cuh"
#include "heads.cuh"
#include "workspace.h"

namespace tersegrad::cuda {
namespace {

// Decoding: what the codes of a body mean.
Values values_of(const ValueCodec& codec, DType dtype, size_t n, const uint8_t* body) {
  using Kind = ValueCodec::Kind;
  auto blocks = [&](ValueKind kind, int bits, size_t block_size, size_t word_bytes) {
    return Values{
        kind, dtype, dtype, static_cast<uint8_t>(bits), static_cast<uint32_t>(block_size), body, body + word_bytes,
        {},   0};
  };
  switch (codec.kind) {
    case Kind::quantize:
      return blocks(ValueKind::quantize, codec.quantized.bits, codec.quantized.block_size,
                    codec.quantized.scale_bytes(n));
    case Kind::sign:
      return blocks(ValueKind::sign, 1, codec.signs.block_size, codec.signs.scale_bytes(n));
    case Kind::ternary:
      return blocks(ValueKind::ternary, 0, codec.digits.block_size, codec.digits.scale_bytes(n));
    case Kind::levels:
      return blocks(ValueKind::levels, codec.level.bits, codec.level.block_size, codec.level.bounds_bytes(n));
    case Kind::smallfloat: {
      const bool normal = codec.small.format == SmallFloat::nf4;
      Values values = blocks(normal ? ValueKind::nf4 : ValueKind::small, small_bits(codec.small.format),
                             codec.small.block_size, codec.small.scale_bytes(n));
      values.format = kSmallFormats[small_slot(codec.small.format)];
      return values;
    }
    case Kind::integers: {
      Values values = blocks(ValueKind::integers, codec.integer.bits, kStride, 0);
      values.unit = codec.integer.grid.scale;
      return values;
    }
    default: {
      Values values = blocks(ValueKind::cast, 0, kStride, 0);
      if (codec.kind == Kind::cast) values.wire = codec.wire;
      return values;
    }
  }
}

// What a dense codec makes of zeros.
ZeroBody zeros_of(const ValueCodec& codec, size_t n) {
  if (codec.kind == ValueCodec::Kind::levels) {
    return {codec.level.bounds_bytes(n), pack_bounds(0, 0, tried_spacings(codec.level.choice, 0).spacing[0]), 0, 0};
  }
  if (codec.kind == ValueCodec::Kind::smallfloat && codec.small.format == SmallFloat::nf4) {
    const uint32_t zero = normal_code(0.0f, 0.0f);
    const auto both = static_cast<uint8_t>(zero | zero << 4), one = static_cast<uint8_t>(zero);
    return {codec.small.scale_bytes(n), 0, both, n % 2 != 0 ? one : both};
  }
  return {};
}

void encode_values(const ValueCodec& codec, const Input& in, DType dtype, const Step& step, uint8_t* body,
                   Header* header, Stream stream) {
  using Kind = ValueCodec::Kind;
  const Values values = values_of(codec, dtype, in.n, body);
  auto* codes = const_cast<uint8_t*>(values.codes);
  const RoundingNoise noise{codec.stochastic, codec.seed, step};
  switch (codec.kind) {
    case Kind::quantize:
      return launch_quantize({in, dtype, codec.quantized.block_size, noise, body, codes, header}, codec.quantized.bits,
                             codec.quantized.by_norm, stream);
    case Kind::sign:
      return launch_sign({in, dtype, codec.signs.block_size, body, codes, header}, stream);
    case Kind::ternary:
      return launch_ternary({in, dtype, codec.digits.block_size, codec.threshold, body, codes, header}, stream);
    case Kind::levels:
      return launch_levels(
          {in, dtype, codec.level.bits, codec.level.block_size, codec.level.choice, body, codes, header}, stream);
    case Kind::smallfloat:
      return launch_small({in, dtype, codec.small.block_size, noise, body, codes, header}, codec.small.format, stream);
    case Kind::integers:
      return launch_integers({in, dtype, codec.integer.grid, noise, codes, header}, codec.integer.bits, stream);
    default:
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
  launch(look_before, look_grid(in.n), kThreads, stream, in, header);
}

TopKCall topk_call(const Encoding& call, const Input& in, size_t kept, const Workspace& w) {
  return {in,
          kept,
          sample_rank(in.n, kept),
          candidate_capacity(in.n, kept),
          w.sample,
          w.index,
          w.value,
          w.tile_offset,
          w.tile_count,
          w.chain,
          place_chain_words(in.n),
          w.survivor,
          w.survivor_value,
          w.header,
          w.values_header,
          call.skip,
          call.last_key,
          call.status};
}

// Survivors and their values, or what stands for them where nothing is to be sent; and how the call went.
void select(const Codec& codec, const Encoding& call, const Input& in, const Step& step, size_t kept,
            const Workspace& w, Stream stream) {
  const bool look_first = in.residual != nullptr && !call.checked;
  if (codec.selection == Codec::Selection::topk) {
    const TopKCall topk = topk_call(call, in, kept, w);
    launch(begin_topk, 1, kWideThreads, stream, topk);
    if (look_first) look(in, w.header, stream);
    select_topk(topk, stream);
    return;
  }
  launch(begin_call, 1, kWideThreads, stream, w.header, w.values_header, call.skip);
  if (look_first) look(in, w.header, stream);
  if (codec.selection == Codec::Selection::chunks) {
    select_chunks({in, codec.k, codec.chunk, w.survivor, w.survivor_value, w.header}, stream);
    launch(replace_survivors, grid_of(kept), kThreads, stream, static_cast<const Header*>(w.header), w.survivor,
           w.survivor_value, kept, codec.k, codec.chunk, call.status);
    return;
  }
  if (in.residual != nullptr) {
    launch(accumulate_entries, dense_grid(in.n), kThreads, stream, in, w.header);
  } else {
    look(in, w.header, stream);  // the entries that are not drawn count too
  }
  launch(draw_survivors, grid_of(kept), kThreads, stream, Draw{in.n, kept, codec.mask_seed, step}, in, w.survivor,
         w.survivor_value, static_cast<const Header*>(w.header), call.status);
}

// At most kBodies of them.
void decode_bodies(const Codec& codec, const uint8_t* const* bodies, size_t count, DType dtype, StepSource step,
                   const float* start, const Output& out, const Work& work) {
  const size_t n = out.count, kept = codec.survivors(n);
  const Stream stream = work.stream;
  const Target target{out.data, out.dtype, n, out.accumulate, out.scale, start};
  Bodies values{};
  values.count = static_cast<unsigned>(count);
  const Workspace w(codec, n, count, work.memory);
  if (codec.values.kind == ValueCodec::Kind::rotated) {
    Target onto = target;
    for (size_t b = 0; b < count; ++b) {
      decode_rotated_values(codec.values, bodies[b], dtype, {step.value, step.at}, onto, w, stream);
      onto.start = nullptr;
    }
    return;
  }
  if (codec.selection == Codec::Selection::all) {
    for (size_t b = 0; b < count; ++b) values.values[b] = values_of(codec.values, dtype, n, bodies[b]);
    launch(decode_entries, dense_grid(n), kThreads, stream, values, target);
    return;
  }
  size_t stream_bytes = 0;
  if (codec.has_index_stream()) {
    const IndexForm form = codec.index_form(n);
    StreamsCall streams{{}, count, n, kept, w.survivor, w.chain, w.starts};
    std::copy(bodies, bodies + count, streams.stream);
    decode_indices(form, streams, stream);
    stream_bytes = index_stream_bytes(form, n, kept);
  } else {
    launch(draw_indices, grid_of(kept), kThreads, stream, Draw{n, kept, codec.mask_seed, Step{step.value, step.at}},
           w.survivor);
  }
  for (size_t b = 0; b < count; ++b) {
    values.values[b] = values_of(codec.values, dtype, kept, bodies[b] + stream_bytes);
  }
  const auto* index = static_cast<const uint32_t*>(w.survivor);
  if (count == 1 && out.accumulate && start == nullptr) {
    launch(scatter_values, grid_of(kept), kThreads, stream, values.values[0], index, kept, target);
  } else {
    launch(scatter_bodies, parts_of(n, kTargetTile), kThreads, stream, values, index, kept, !codec.has_index_stream(),
           target);
  }
}

}  // namespace

const char* unsupported(const Codec& codec) {
  using Kind = ValueCodec::Kind;
  if (!codec.is_fixed_size()) return "indices='rice'";
  return codec.values.kind == Kind::rotated && codec.selection != Codec::Selection::all ? "how its values are coded"
                                                                                        : nullptr;
}

size_t workspace_bytes(const Codec& codec, size_t n, DType, size_t bodies) {
  return Workspace(codec, n, std::min(bodies, kBodies), nullptr).bytes;
}

void encode(const Codec& codec, const Encoding& call, const Work& work) {
  const size_t n = call.x.count, kept = codec.survivors(n);
  const Workspace w(codec, n, 1, work.memory);
  const Stream stream = work.stream;
  const Input in{call.x.data, call.x.dtype, n, call.residual};
  const Step step{call.step.value, call.step.at};
  if (codec.selection == Codec::Selection::all || n == 0) {
    launch(begin_call, 1, kWideThreads, stream, w.header, static_cast<Header*>(nullptr), call.skip);
    if (n > 0 && call.residual != nullptr && !call.checked) look(in, w.header, stream);
    if (n > 0 && codec.values.kind == ValueCodec::Kind::rotated) {
      encode_rotated_values(codec.values, in, call.dtype, step, call.body, w, stream);
    } else if (n > 0) {
      encode_values(codec.values, in, call.dtype, step, call.body, w.header, stream);
    }
    const size_t bytes = codec.body_bytes(n, call.dtype);
    launch(finish_dense, grid_of(bytes / kCell + 1), kThreads, stream, static_cast<const Header*>(w.header), call.body,
           bytes, zeros_of(codec.values, n), call.status);
    return;
  }
  select(codec, call, in, step, kept, w, stream);
  uint8_t* body = call.body;
  if (codec.has_index_stream()) {
    const IndexForm form = codec.index_form(n);
    encode_index(form, w.survivor, n, kept, body, stream);
    body += index_stream_bytes(form, n, kept);
  }
  // With a header of its own: what is coded now are the survivors, or the zeros in their place.
  encode_values(codec.values, {w.survivor_value, DType::float32, kept, nullptr}, call.dtype, step, body,
                w.values_header, stream);
  if (call.residual == nullptr) return;
  launch(settle_residual, grid_of(kept), kThreads, stream, values_of(codec.values, call.dtype, kept, body),
         static_cast<const uint32_t*>(w.survivor), static_cast<const float*>(w.survivor_value), kept, call.residual,
         static_cast<const Header*>(w.header));
}

void decode(const Codec& codec, const uint8_t* body, DType dtype, StepSource step, const Output& out,
            const Work& work) {
  if (out.count > 0) decode_bodies(codec, &body, 1, dtype, step, nullptr, out, work);
}

void add_many(const Codec& codec, const uint8_t* const* bodies, size_t count, DType dtype, StepSource step,
              const float* start, const Output& out, const Work& work) {
  if (out.count == 0) return;
  for (size_t done = 0; done < count; done += kBodies) {
    decode_bodies(codec, bodies + done, std::min(count - done, kBodies), dtype, step, done == 0 ? start : nullptr, out,
                  work);
  }
}

void add_integers(const uint8_t* const* bodies, size_t count, int bits, size_t bytes, uint8_t* total, int64_t* partial,
                  uint32_t* beyond, void* stream) {
  launch_add_integers(bodies, count, bits, bytes, total, partial, beyond, stream);
}

void not_zero(const Entries& x, uint32_t* flag, void* stream) {
  if (x.count == 0) return;
  launch(clear_unless_zero, dense_grid(x.count), kThreads, stream, Input{x.data, x.dtype, x.count, nullptr}, flag);
}

void not_finite(const Entries& x, uint32_t* flag, void* stream) {
  if (x.count == 0) return;
  launch(mark_not_finite, look_grid(x.count), kThreads, stream, Input{x.data, x.dtype, x.count, nullptr}, flag);
}

size_t count_workspace_bytes() { return sizeof(Header); }

void count_reaching(const Entries& x, float* residual, float threshold, const uint32_t* skip, uint32_t* status,
                    uint32_t* count, const Work& work) {
  auto* header = static_cast<Header*>(work.memory);
  const Input in{x.data, x.dtype, x.count, residual};
  launch(begin_call, 1, kWideThreads, work.stream, header, static_cast<Header*>(nullptr), skip);
  launch(count_keys_from, look_grid(x.count), kThreads, work.stream, in, bits_of(threshold), header);
  launch(tell_count, 1, 1, work.stream, static_cast<const Header*>(header), status, count);
}

void copy_if(const uint32_t* flag, const uint8_t* source, uint8_t* target, size_t bytes, void* stream) {
  if (bytes > 0) launch(copy_bytes_if, grid_of(bytes / kCell + 2), kThreads, stream, flag, source, target, bytes);
}

void zero_if(const uint32_t* flag, uint8_t* target, size_t bytes, void* stream) {
  if (bytes > 0) launch(zero_bytes_if, grid_of(bytes / kCell + 2), kThreads, stream, flag, target, bytes);
}

void write_head(const HeadCall& call, const uint32_t* status, const uint32_t* first_piece, bool failed,
                uint8_t* message, void* stream) {
  launch(write_head_kernel, 1, kThreads, stream, call, status, first_piece, failed, message);
}

void judge(const HeadCall& call, const uint8_t* messages, size_t stride, size_t ranks, const uint32_t* before,
           uint32_t* verdict, void* stream) {
  launch(judge_kernel, 1, kThreads, stream, call, messages, stride, ranks, before, verdict);
}

void note(const uint32_t* verdict, size_t slots, uint32_t* counts, void* stream) {
  launch(note_kernel, 1, kThreads, stream, verdict, slots, counts);
}

void close_step(uint32_t* counts, bool counted, void* stream) {
  launch(close_step_kernel, 1, 1, stream, counts, counted);
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
