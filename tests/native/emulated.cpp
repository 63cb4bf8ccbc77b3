// The kernels of csrc/cuda, run on the host, against the operations of the host: bodies, residuals and sums must be
// equal to the bit. Every piece of memory ends where it must, workspaces too, so that sanitizers see each access
// outside of it. For every combination of codec and length that is worth it; tests/test_cuda_kernels.py has the laws.
#include <cstdio>
#include <vector>

#include "../../csrc/cuda/codec.h"
#include "../../csrc/cuda/emulate.h"
#include "../../csrc/philox.h"

using namespace tersegrad;

namespace {

using Bytes = std::vector<uint8_t>;
using Floats = std::vector<float>;

constexpr uint32_t kStep = 5;
constexpr float kShare = 0.3f;
constexpr size_t kRanks = 3;

struct Named {
  const char* name;
  Codec codec;
};

ValueCodec quantized(int bits, size_t block_size, bool stochastic) {
  ValueCodec values;
  values.kind = ValueCodec::Kind::quantize;
  values.quantized = {bits, block_size};
  values.stochastic = stochastic;
  values.seed = 11;
  return values;
}

ValueCodec cast_to(DType wire) {
  ValueCodec values;
  values.kind = ValueCodec::Kind::cast;
  values.wire = wire;
  return values;
}

ValueCodec signs() {
  ValueCodec values;
  values.kind = ValueCodec::Kind::sign;
  return values;
}

Codec dense(const ValueCodec& values) {
  Codec codec;
  codec.values = values;
  return codec;
}

Codec sparse(Codec::Selection selection, IndexForm form, const ValueCodec& values) {
  Codec codec = dense(values);
  codec.selection = selection;
  codec.form = static_cast<int>(form);
  if (selection == Codec::Selection::chunks) {
    codec.k = 3;
    codec.chunk = 100;
  } else {
    codec.density = 0.03;
  }
  return codec;
}

std::vector<Named> codecs() {
  using Selection = Codec::Selection;
  return {{"identity", dense({})},
          {"float16", dense(cast_to(DType::float16))},
          {"quantize 8", dense(quantized(8, 256, false))},
          {"quantize 4", dense(quantized(4, 64, true))},
          {"quantize 2, shared blocks", dense(quantized(2, 4096, false))},
          {"sign", dense(signs())},
          {"topk, Elias-Fano", sparse(Selection::topk, IndexForm::elias_fano, quantized(4, 256, false))},
          {"topk, bitmap", sparse(Selection::topk, IndexForm::bitmap, cast_to(DType::bfloat16))},
          {"topk, u16", sparse(Selection::topk, IndexForm::u16, signs())},
          {"chunks", sparse(Selection::chunks, IndexForm::elias_fano, {})},
          {"random", sparse(Selection::random, IndexForm::elias_fano, quantized(8, 64, false))}};
}

Floats numbers(size_t n, uint64_t seed) {
  Floats values(n);
  for (size_t i = 0; i < n; ++i) {
    const PhiloxWords w = philox(seed, i, 0, 99);
    values[i] = float_of((w.word[0] & 0x80000000u) | (110 + w.word[1] % 16) << 23 | (w.word[2] & 0x7fffffu));
  }
  return values;
}

Bytes stored(const Floats& values, DType dtype) {
  Bytes bytes(values.size() * item_bytes(dtype));
  for (size_t i = 0; i < values.size(); ++i) store_entry(bytes.data(), dtype, i, values[i]);
  return bytes;
}

int failures = 0;

void expect(bool good, const Named& named, size_t n, const char* what) {
  if (good) return;
  std::printf("%s, %zu entries: %s\n", named.name, n, what);
  ++failures;
}

bool same(const Floats& a, const Floats& b) {
  return a.size() == b.size() && (a.empty() || memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

struct Workspace {
  Bytes memory;
  Workspace(const Codec& codec, size_t n, DType dtype, size_t bodies)
      : memory(cuda::workspace_bytes(codec, n, dtype, bodies), 0xa5) {}
  cuda::Work work() { return {memory.data(), nullptr}; }
};

// What a device makes of x + residual; the status.
uint32_t encode(const Codec& codec, const Bytes& x, DType dtype, size_t n, Floats* residual, uint32_t* last_key,
                Bytes& body) {
  uint32_t status = 99;
  Workspace workspace(codec, n, dtype, 1);
  float* kept = residual == nullptr ? nullptr : residual->data();
  cuda::encode(codec,
               {{x.data(), dtype, n}, kept, dtype, {kStep, nullptr}, &status, nullptr, body.data(), false, last_key},
               workspace.work());
  return status;
}

void check(const Named& named, size_t n, DType dtype) {
  const Codec& codec = named.codec;
  Floats total = numbers(n, 77), expected_total = total;
  std::vector<Bytes> bodies;
  std::vector<const uint8_t*> addresses;
  Floats residual = numbers(n, 1), expected_residual = residual;
  uint32_t key = 0, expected_key = 0;
  for (size_t rank = 0; rank < kRanks; ++rank) {
    const Bytes x = stored(numbers(n, 10 + rank), dtype);
    Bytes body(codec.body_bytes(n, dtype), 0xa5), expected(body.size());
    size_t bytes = 0;
    codec.encode({x.data(), dtype, n}, expected_residual.data(), dtype, kStep, expected_key, expected.data(), bytes);
    const uint32_t status = encode(codec, x, dtype, n, &residual, &key, body);
    expect(status == 0 && bytes == body.size(), named, n, "status");
    expect(body == expected, named, n, "body");
    expect(same(residual, expected_residual), named, n, "residual");
    const Output host{expected_total.data(), DType::float32, n, true, kShare};
    codec.decode(body.data(), body.size(), dtype, kStep, host, false);
    bodies.push_back(std::move(body));
    addresses.push_back(bodies.back().data());
  }
  Workspace workspace(codec, n, dtype, kRanks);
  const Output out{total.data(), DType::float32, n, true, kShare};
  cuda::add_many(codec, addresses.data(), kRanks, dtype, {kStep, nullptr}, nullptr, out, workspace.work());
  expect(same(total, expected_total), named, n, "sum");

  Bytes one(n * item_bytes(dtype), 0xa5), expected_one = one;
  codec.decode(addresses[0], bodies[0].size(), dtype, kStep, {expected_one.data(), dtype, n, false, 1.0f}, false);
  Workspace alone(codec, n, dtype, 1);
  cuda::decode(codec, addresses[0], dtype, {kStep, nullptr}, {one.data(), dtype, n, false, 1.0f}, alone.work());
  expect(one == expected_one, named, n, "decoded");
}

// Nothing is sent of what is not finite, and a body that nobody wrote is read without leaving it.
void check_bad(const Named& named, size_t n) {
  const Codec& codec = named.codec;
  Floats values = numbers(n, 3), residual = numbers(n, 4), before = residual;
  values[n / 2] = float_of(kInfinity);
  Bytes body(codec.body_bytes(n, DType::float32));
  const uint32_t status = encode(codec, stored(values, DType::float32), DType::float32, n, &residual, nullptr, body);
  expect(status == 2 && same(residual, before), named, n, "an infinity");
  for (size_t i = 0; i < body.size(); ++i) body[i] = static_cast<uint8_t>(philox(9, i, 0, 99).word[0]);
  Workspace workspace(codec, n, DType::float32, 1);
  cuda::decode(codec, body.data(), DType::float32, {kStep, nullptr}, {values.data(), DType::float32, n, false, 1.0f},
               workspace.work());
}

}  // namespace

int main() {
  using emulation::Order;
  size_t runs = 0;
  for (const Named& named : codecs()) {
    for (size_t n : {1, 63, 257, 8193, 17000}) {
      emulation::configure(static_cast<Order>(runs % 3), -1);
      check(named, n, static_cast<DType>(1 + runs++ % 3));
      if (n < 1000) check_bad(named, n);
    }
  }
  if (failures == 0) std::printf("kernels of csrc/cuda on the host: %zu runs equal the host's.\n", runs);
  return failures != 0;
}
