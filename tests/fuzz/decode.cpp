// libFuzzer target of everything that reads a body of a stranger: `make fuzz`.
//
// An input states a codec and a size, then a body. The body is cut or filled to the size that the codec computes, as
// every caller does, and copied to memory of exactly that size, so that the sanitizers see a read beyond it. Beyond
// memory safety the target checks what the callers rely on: check, examine, decode and add agree on what is refused;
// what is refused leaves the output as it was; decoded values are finite; add and decode give the same bits.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "../../csrc/codec.h"

namespace {

using namespace tersegrad;

void require(bool condition, const char* law) {
  if (condition) return;
  std::fprintf(stderr, "law broken: %s\n", law);
  std::abort();
}

// Takes numbers from the front of an input; zeros when it is used up.
class Input {
 public:
  Input(const uint8_t* data, size_t size) : data_(data), left_(size) {}
  uint32_t byte() { return left_ == 0 ? 0 : (--left_, *data_++); }
  uint32_t word() {
    uint32_t low = byte();
    return low | byte() << 8;
  }
  std::vector<uint8_t> rest(size_t size) {
    std::vector<uint8_t> body(data_, data_ + std::min(left_, size));
    body.resize(size);
    body.shrink_to_fit();
    return body;
  }

 private:
  const uint8_t* data_;
  size_t left_;
};

Codec read_codec(Input& input, size_t n) {
  Codec codec;
  uint32_t choice = input.byte();
  codec.selection = static_cast<Codec::Selection>(choice & 3);
  codec.form = static_cast<int>(choice >> 2 & 3);
  codec.values.kind = static_cast<ValueCodec::Kind>(choice >> 4 & 3);
  codec.values.wire = static_cast<DType>(1 + (choice >> 6) % 3);
  uint32_t shape = input.byte();
  const size_t block_size = size_t{64} << (shape & 3) * 2;  // 64 to 4096
  codec.values.quantized = {8 >> (shape >> 2) % 3, block_size};
  codec.values.signs = {block_size};
  codec.k = 1 + input.word() % (n + 1);
  if (codec.selection == Codec::Selection::chunks) {
    codec.chunk = 1 + input.word() % 4096;
    codec.k = 1 + codec.k % codec.chunk;
  }
  if (shape & 128 && codec.selection != Codec::Selection::chunks) codec.density = static_cast<double>(codec.k) / 65536;
  codec.mask_seed = shape;
  return codec;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Input input(data, size);
  const uint32_t head = input.byte();
  // Most tensors are small; some span more than one range of u16 indices.
  size_t n = (head & 3) == 0 ? input.word() : input.byte() << (head >> 2 & 1);
  if ((head & 3) == 0) n += 2 * input.byte();
  const auto dtype = static_cast<DType>(1 + (head >> 3) % 3);
  const uint32_t step = head >> 5;
  const Codec codec = read_codec(input, n);
  const std::vector<uint8_t> body = input.rest(codec.body_bytes(n, dtype));

  FloatEnvironment environment;
  Extent extent;
  const Fault fault = codec.check(body.data(), dtype, n);
  const Fault examined = codec.examine(body.data(), dtype, n, step, extent);
  require((fault == nullptr) == (examined == nullptr), "check and examine refuse the same bodies");

  constexpr float kBefore = 2.5f, kScale = 0.5f;
  std::vector<float> decoded(n, kBefore), sums(n, kBefore);
  const Output out{decoded.data(), DType::float32, n, false, 1.0f};
  require(fault == codec.decode(body.data(), dtype, step, out, false), "decode finds what check finds");
  if (fault != nullptr) {
    for (float value : decoded) require(value == kBefore, "a refused body leaves the output as it was");
  }
  const Fault late = codec.add(body.data(), dtype, step, {sums.data(), DType::float32, n, true, kScale});
  if (fault != nullptr) return 0;
  require(late == nullptr, "add takes what examine took");

  uint32_t largest = 0;
  for (size_t i = 0; i < n; ++i) {
    require(std::isfinite(decoded[i]), "decoded values are finite");
    largest = std::max(largest, key_of(decoded[i]));
    require(sums[i] == kBefore + kScale * decoded[i], "add and decode give the same values");
  }
  require(largest == key_of(extent.largest), "the largest magnitude is that of the decoded values");
  require(extent.squares >= 0 && std::isfinite(extent.squares), "the sum of squares is finite");
  return 0;
}
