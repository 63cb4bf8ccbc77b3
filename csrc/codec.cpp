#include "codec.h"

#include <cmath>

#include "blocks.h"
#include "cast/operation.h"

namespace tersegrad {
namespace {

// Memory that is not touched before it is used.
template <class T>
std::unique_ptr<T[]> scratch(size_t n) {
  return std::unique_ptr<T[]>(new T[n]);
}

void set_zero(const Output& out) {
  for_each_chunk(out.count, 1,
                 [&](size_t begin, size_t end) { memset(out.at(begin), 0, (end - begin) * item_bytes(out.dtype)); });
}

// Adds the values to an extent: squares in eight lanes, entry i in lane i mod 8.
void measure(const float* value, size_t n, double (&lanes)[8], uint32_t& largest) {
  for (size_t i = 0; i < n; ++i) {
    lanes[i % 8] += static_cast<double>(value[i]) * static_cast<double>(value[i]);
    largest = std::max(largest, key_of(value[i]));
  }
}

constexpr Fault kWrongBodySize = "the body has not the size that its entries take";

// A body of a threshold begins with the number of its survivors.
constexpr size_t kCountBytes = sizeof(uint32_t);

Outcome finite_or_not(bool finite) { return finite ? Outcome::ok : Outcome::not_finite; }

}  // namespace

size_t ValueCodec::body_bytes(size_t n, DType dtype) const {
  switch (kind) {
    case Kind::identity:
      return n * item_bytes(dtype);
    case Kind::cast:
      return n * item_bytes(wire);
    case Kind::quantize:
      return quantized.scale_bytes(n) + quantized.code_bytes(n);
    case Kind::sign:
      return signs.scale_bytes(n) + (n + 7) / 8;
    case Kind::integers:
      return integer.code_bytes(n);
    case Kind::rotated:
      return rotated.scale_bytes(n) + rotated.code_bytes(n);
    default:
      return digits.scale_bytes(n) + digits.digits_bytes(n);
  }
}

bool ValueCodec::encode(const Entries& x, float* residual, DType dtype, uint32_t step, uint8_t* body) const {
  switch (kind) {
    case Kind::identity:
      return cast::encode(x, residual, dtype, dtype, body);
    case Kind::cast:
      return cast::encode(x, residual, dtype, wire, body);
    case Kind::quantize: {
      Noise noise{seed, step};
      return quantize::encode(x, residual, dtype, quantized, stochastic ? &noise : nullptr, body);
    }
    case Kind::sign:
      return sign::encode(x, residual, dtype, signs, body);
    case Kind::integers: {
      Noise noise{seed, step};
      return integers::encode(x, residual, dtype, integer, stochastic ? &noise : nullptr, body);
    }
    case Kind::rotated:
      return rotate::encode(x, residual, dtype, rotated, unbiased, {seed, step}, body);
    default:
      return ternary::encode(x, residual, dtype, digits, threshold, body);
  }
}

Fault ValueCodec::check(const uint8_t* body, DType dtype, size_t n) const {
  switch (kind) {
    case Kind::identity:
      return cast::check(body, dtype, n);
    case Kind::cast:
      return cast::check(body, wire, n);
    case Kind::quantize:
      return quantize::check(body, quantized, n);
    case Kind::sign:
      return sign::check(body, signs, n);
    case Kind::integers:
      return nullptr;
    case Kind::rotated:
      return rotate::check(body, rotated, n);
    default:
      return ternary::check(body, digits, n);
  }
}

void ValueCodec::decode(const uint8_t* body, DType dtype, uint32_t step, size_t n, size_t begin,
                        const Output& out) const {
  switch (kind) {
    case Kind::identity:
      return cast::decode(body + begin * item_bytes(dtype), dtype, dtype, out);
    case Kind::cast:
      return cast::decode(body + begin * item_bytes(wire), dtype, wire, out);
    case Kind::quantize:
      return quantize::decode(body, dtype, quantized, n, begin, out);
    case Kind::sign:
      return sign::decode(body, dtype, signs, n, begin, out);
    case Kind::integers:
      return integers::decode(body, dtype, integer, begin, out);
    case Kind::rotated:
      return rotate::decode(body, dtype, rotated, {seed, step}, n, begin, out);
    default:
      return ternary::decode(body, dtype, digits, n, begin, out);
  }
}

size_t ValueCodec::piece() const {
  switch (kind) {
    case Kind::quantize:
      return blocks_at_once(quantized.block_size);
    case Kind::sign:
      return blocks_at_once(signs.block_size);
    case Kind::ternary:
      return blocks_at_once(digits.block_size);
    case Kind::rotated:
      return blocks_at_once(rotated.block_size);
    default:
      return kPiece;
  }
}

size_t Codec::survivors(size_t n) const {
  if (selection == Selection::all) return n;
  if (selection == Selection::chunks) return n / chunk * k + std::min(k, n % chunk);
  size_t wanted = density > 0 ? static_cast<size_t>(std::nearbyint(density * static_cast<double>(n))) : k;
  return std::min(std::max<size_t>(wanted, 1), n);
}

IndexForm Codec::index_form(size_t n, size_t kept) const {
  return form ? static_cast<IndexForm>(form) : smallest_index_form(n, kept);
}

size_t Codec::body_bytes(size_t n, DType dtype) const {
  if (selection == Selection::threshold) {
    return kCountBytes + index_bytes_at_most(static_cast<IndexForm>(form), n) + values.body_bytes(n, dtype);
  }
  size_t kept = survivors(n), stream = has_index_stream() ? index_stream_bytes(index_form(n), n, kept) : 0;
  return stream + values.body_bytes(kept, dtype);
}

Outcome Codec::encode(const Entries& x, float* residual, DType dtype, uint32_t step, uint32_t& last_key, uint8_t* body,
                      size_t& body_bytes) const {
  const size_t n = x.count;
  size_t kept = survivors(n);
  body_bytes = values.body_bytes(kept, dtype);
  if (n == 0 && selection != Selection::threshold) return Outcome::ok;
  if (selection == Selection::all) return finite_or_not(values.encode(x, residual, dtype, step, body));

  topk::Candidates found;
  bool finite = true;
  switch (selection) {
    case Selection::topk:
      if (!topk::select(x, residual, kept, last_key, found)) return Outcome::out_of_memory;
      break;
    case Selection::chunks:
      if (!found.reserve(kept) || !topk::select_chunks(x, residual, k, chunk, found.index.get(), found.value.get())) {
        return Outcome::out_of_memory;
      }
      break;
    case Selection::threshold: {
      auto selected = density > 0 && n > 0 ? threshold::select_about(x, residual, kept, found)
                                           : threshold::select(x, residual, threshold, found);
      if (selected == threshold::Selected::out_of_memory) return Outcome::out_of_memory;
      if (selected == threshold::Selected::not_finite) return Outcome::not_finite;
      kept = found.count;
      const auto count = static_cast<uint32_t>(kept);
      memcpy(body, &count, kCountBytes);
      body += kCountBytes;
      body_bytes = kCountBytes + values.body_bytes(kept, dtype);
      break;
    }
    default:
      if (!found.reserve(kept)) return Outcome::out_of_memory;
      finite = residual ? cast::accumulate(x, residual) : cast::all_finite(x);
      index::draw(n, kept, mask_seed, step, 0, kept, found.index.get());
      index::gather(residual ? Entries{residual, DType::float32, n} : x, found.index.get(), kept, found.value.get());
  }
  const uint32_t* index = found.index.get();
  if (has_index_stream()) {
    size_t stream = index::encode(index_form(n, kept), index, n, kept, body);
    body += stream;
    body_bytes += stream;
  }
  // An infinity or NaN outranks every number, so top-k has it among the survivors if there is one.
  finite &= values.encode({found.value.get(), DType::float32, kept}, nullptr, dtype, step, body);
  if (!finite || residual == nullptr) return finite_or_not(finite);
  auto decoded = scratch<float>(kept);
  values.decode(body, dtype, step, {decoded.get(), DType::float32, kept, false, 1.0f});
  index::settle(residual, index, found.value.get(), decoded.get(), kept);
  return Outcome::ok;
}

Fault Codec::read_count(const uint8_t* body, size_t bytes, size_t n, size_t* kept) const {
  uint32_t count;
  if (bytes < kCountBytes) return kWrongBodySize;
  memcpy(&count, body, kCountBytes);
  *kept = count;
  return count > n ? "the body states more survivors than there are entries" : nullptr;
}

Fault Codec::measure_stream(const uint8_t* body, size_t available, size_t n, size_t* bytes) const {
  if (selection != Selection::threshold) return index::measure_rice(body, available, n, survivors(n), bytes);
  size_t kept;
  if (Fault fault = read_count(body, available, n, &kept)) return fault;
  const IndexForm own = index_form(n, kept);
  *bytes = index_stream_bytes(own, n, kept);
  if (own == IndexForm::rice) {
    Fault fault = index::measure_rice(body + kCountBytes, available - kCountBytes, n, kept, bytes);
    if (fault != nullptr) return fault;
  }
  *bytes += kCountBytes;
  return *bytes > available ? kWrongBodySize : nullptr;
}

Fault Codec::split(const uint8_t* body, size_t bytes, DType dtype, size_t n, Parts& parts) const {
  parts = {survivors(n), body, 0, body};
  if (selection == Selection::threshold) {
    if (Fault fault = read_count(body, bytes, n, &parts.kept)) return fault;
    parts.stream += kCountBytes;
    bytes -= kCountBytes;
  }
  const size_t kept = parts.kept, value_bytes = values.body_bytes(kept, dtype);
  size_t most = value_bytes, least = value_bytes;
  if (has_index_stream()) {
    const IndexForm own = index_form(n, kept);
    const size_t stream = index_stream_bytes(own, n, kept);
    most += stream;
    least += own == IndexForm::rice ? rice_bytes_at_least(kept) : stream;
  }
  if (bytes < least || bytes > most) return kWrongBodySize;
  parts.stream_bytes = bytes - value_bytes;
  parts.values = parts.stream + parts.stream_bytes;
  return nullptr;
}

Fault Codec::check(const uint8_t* body, size_t bytes, DType dtype, size_t n) const {
  Parts parts;
  if (Fault fault = split(body, bytes, dtype, n, parts)) return fault;
  if (has_index_stream()) {
    auto index = scratch<uint32_t>(parts.kept);
    const IndexForm own = index_form(n, parts.kept);
    if (Fault fault = index::decode(own, parts.stream, parts.stream_bytes, n, parts.kept, index.get())) return fault;
  }
  return values.check(parts.values, dtype, parts.kept);
}

Fault Codec::decode(const uint8_t* body, size_t bytes, DType dtype, uint32_t step, const Output& out,
                    bool blank) const {
  const size_t n = out.count;
  Parts parts;
  if (Fault fault = split(body, bytes, dtype, n, parts)) return fault;
  if (selection == Selection::all) {
    Fault fault = values.check(body, dtype, n);
    if (fault == nullptr) values.decode(body, dtype, step, out);
    return fault;
  }
  const size_t kept = parts.kept;
  auto index = scratch<uint32_t>(kept);
  if (!has_index_stream()) {
    index::draw(n, kept, mask_seed, step, 0, kept, index.get());
  } else if (Fault fault = index::decode(index_form(n, kept), parts.stream, parts.stream_bytes, n, kept, index.get())) {
    return fault;
  }
  if (Fault fault = values.check(parts.values, dtype, kept)) return fault;
  auto value = scratch<float>(kept);
  values.decode(parts.values, dtype, step, {value.get(), DType::float32, kept, false, 1.0f});
  if (!out.accumulate && !blank) set_zero(out);
  index::scatter(index.get(), value.get(), kept, out);
  return nullptr;
}

// Calls each(index, begin, count) for the survivors piece by piece: those from `begin`, at these indices; without
// indices where every entry survives.
template <class Each>
Fault Codec::for_each_piece_of(const Parts& parts, size_t n, uint32_t step, Each&& each) const {
  const size_t kept = parts.kept, piece = values.piece();
  const bool travels = has_index_stream();
  auto index = scratch<uint32_t>(selection == Selection::all ? 0 : std::min(piece, kept));
  index::Reader reader(travels ? index_form(n, kept) : IndexForm::bitmap, parts.stream, parts.stream_bytes,
                       travels ? n : 0, travels ? kept : 0);
  if (Fault fault = reader.start()) return fault;
  for (size_t begin = 0; begin < kept; begin += piece) {
    const size_t count = std::min(piece, kept - begin);
    if (travels) {
      if (Fault fault = reader.read(index.get(), count)) return fault;
    } else if (selection == Selection::random) {
      index::draw(n, kept, mask_seed, step, begin, count, index.get());
    }
    each(index.get(), begin, count);
  }
  return reader.finish();
}

Fault Codec::examine(const uint8_t* body, size_t bytes, DType dtype, size_t n, uint32_t step, Extent& extent) const {
  Parts parts;
  if (Fault fault = split(body, bytes, dtype, n, parts)) return fault;
  if (Fault fault = values.check(parts.values, dtype, parts.kept)) return fault;
  auto value = scratch<float>(std::min(values.piece(), parts.kept));
  double lanes[8] = {};
  uint32_t largest = 0;
  Fault fault = for_each_piece_of(parts, n, step, [&](const uint32_t*, size_t begin, size_t count) {
    values.decode(parts.values, dtype, step, parts.kept, begin, {value.get(), DType::float32, count, false, 1.0f});
    measure(value.get(), count, lanes, largest);
  });
  extent = {((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7])),
            float_of(largest)};
  return fault;
}

Fault Codec::add(const uint8_t* body, size_t bytes, DType dtype, uint32_t step, const Output& out) const {
  const size_t n = out.count;
  Parts parts;
  if (Fault fault = split(body, bytes, dtype, n, parts)) return fault;
  if (selection == Selection::all) {
    values.decode(body, dtype, step, out);
    return nullptr;
  }
  auto value = scratch<float>(std::min(values.piece(), parts.kept));
  return for_each_piece_of(parts, n, step, [&](const uint32_t* index, size_t begin, size_t count) {
    values.decode(parts.values, dtype, step, parts.kept, begin, {value.get(), DType::float32, count, false, 1.0f});
    index::scatter(index, value.get(), count, out);
  });
}

}  // namespace tersegrad
