// libFuzzer target of everything that reads a body of a stranger: `make fuzz`.
//
// An input states a codec or an index form and some sizes, then holds bytes. They are cut or filled to the size that is
// computed from the rest, as every caller does, or cut to the most that it can be where it is not fixed. They are
// copied to memory of exactly that size, so that the sanitizers see a read beyond it. Beyond memory safety the target
// checks the laws that callers rely on.
#include <cmath>
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
  // So many bytes; at most so many, unless the size is fixed.
  std::vector<uint8_t> rest(size_t size, bool fixed) {
    if (!fixed) size = std::min(size, left_);
    std::vector<uint8_t> body(size);
    if (size > 0 && left_ > 0) memcpy(body.data(), data_, std::min(left_, size));
    return body;
  }

 private:
  const uint8_t* data_;
  size_t left_;
};

// A stream of few indices below any n: what is accepted is ascending and below n, reads the same in pieces, and is the
// only stream of these indices.
void try_index(Input& input, uint32_t head) {
  const bool rice = (head >> 4 & 7) == 7;
  const IndexForm form = rice ? IndexForm::rice : static_cast<IndexForm>(1 + (head >> 1) % 3);
  uint64_t n = input.word();
  if (form == IndexForm::elias_fano || rice) n |= uint64_t{input.word()} << 16;
  if (form == IndexForm::u16) n <<= head >> 3 & 7;
  if (form == IndexForm::bitmap) n %= 4096;
  const size_t k = std::min<size_t>(input.byte(), n);
  const size_t piece = rice ? kRiceGroup * (1 + (head >> 7)) : 1 + (head >> 4);
  const std::vector<uint8_t> stream = input.rest(index_stream_bytes(form, n, k), is_fixed_size(form));

  std::vector<uint32_t> index(k), pieces(k);
  const Fault fault = index::decode(form, stream.data(), stream.size(), n, k, index.data());
  index::Reader reader(form, stream.data(), stream.size(), n, k);
  Fault later = reader.start();
  for (size_t j = 0; j < k && later == nullptr; j += piece) {
    size_t count = std::min(piece, k - j);
    later = reader.read(&pieces[j], count);
    if (later == nullptr) require(pieces[j + count - 1] < n, "a piece stays below n");
  }
  if (later == nullptr) later = reader.finish();
  require((fault == nullptr) == (later == nullptr), "a stream is refused in pieces as it is whole");
  if (fault != nullptr) return;
  for (size_t j = 0; j < k; ++j) {
    require(index[j] < n && (j == 0 || index[j - 1] < index[j]), "indices ascend and stay below n");
    require(index[j] == pieces[j], "pieces hold what the whole holds");
  }
  if (stream.empty()) return;
  std::vector<uint8_t> again(index_stream_bytes(form, n, k));
  again.resize(index::encode(form, index.data(), n, k, again.data()));
  require(again == stream, "the stream is the one that an encoder writes");
}

// Value codecs that joined after the first five, chosen by two bits.
constexpr ValueCodec::Kind kLaterKinds[4] = {ValueCodec::Kind::integers, ValueCodec::Kind::rotated,
                                             ValueCodec::Kind::integers, ValueCodec::Kind::integers};

Codec read_codec(Input& input, size_t n) {
  Codec codec;
  const uint32_t choice = input.byte(), shape = input.byte();
  codec.selection = static_cast<Codec::Selection>(choice & 3);
  codec.form = static_cast<int>(shape & 16 ? IndexForm::rice : static_cast<IndexForm>(choice >> 2 & 3));
  if (codec.selection == Codec::Selection::all && shape & 16) {  // which says nothing where no indices travel
    codec.selection = Codec::Selection::threshold;
    codec.form = static_cast<int>(shape & 128 ? IndexForm::rice : static_cast<IndexForm>(choice >> 2 & 3));
  }
  codec.values.kind = shape & 32 ? ValueCodec::Kind::ternary : static_cast<ValueCodec::Kind>(choice >> 4 & 3);
  if (shape & 64) codec.values.kind = kLaterKinds[choice >> 4 & 3];
  codec.values.wire = static_cast<DType>(1 + (choice >> 6) % 3);
  const size_t block_size = size_t{64} << (shape & 3) * 2;  // 64 to 4096
  codec.values.quantized = {8 >> (shape >> 2) % 3, block_size};
  codec.values.signs = {block_size};
  codec.values.digits = {block_size};
  const float scale = shape & 1 ? 0x1p-7f : 0x1p100f;
  codec.values.integer = {8 << (shape >> 2) % 3, {scale, 1 / scale, 1}};
  codec.values.rotated = {1 + static_cast<int>(choice >> 6), block_size, 0};
  if (shape & 4) codec.values.rotated = {1, block_size, block_size / 4};
  codec.k = 1 + input.word() % (n + 1);
  if (codec.selection == Codec::Selection::chunks) {
    codec.chunk = 1 + input.word() % 4096;
    codec.k = 1 + codec.k % codec.chunk;
  } else if (shape & 128) {
    codec.density = static_cast<double>(codec.k) / 1024;
  }
  codec.mask_seed = shape;
  return codec;
}

// A body: check, examine, decode and add agree on what is refused; what is refused leaves the output as it was; values
// are finite, as large as examine says, and the same from add as from decode.
void try_body(Input& input, uint32_t head) {
  size_t n = input.byte();
  n = (n << (head >> 1 & 2)) + (n & (head >> 3 & 3));
  const auto dtype = static_cast<DType>(1 + (head >> 5) % 3);
  const uint32_t step = head;
  const Codec codec = read_codec(input, n);
  const std::vector<uint8_t> body = input.rest(codec.body_bytes(n, dtype), codec.is_fixed_size());
  const size_t size = body.size();

  Extent extent;
  const Fault fault = codec.check(body.data(), size, dtype, n);
  const Fault examined = codec.examine(body.data(), size, dtype, n, step, extent);
  require((fault == nullptr) == (examined == nullptr), "check and examine refuse the same bodies");

  constexpr float kBefore = 2.5f, kScale = 0.5f;
  std::vector<float> decoded(n, kBefore), sums(n, kBefore);
  const Output out{decoded.data(), DType::float32, n, false, 1.0f};
  require(fault == codec.decode(body.data(), size, dtype, step, out, false), "decode finds what check finds");
  const Fault late = codec.add(body.data(), size, dtype, step, {sums.data(), DType::float32, n, true, kScale});
  if (fault != nullptr) {
    for (float value : decoded) require(value == kBefore, "a refused body leaves the output as it was");
    return;
  }
  require(late == nullptr, "add takes what examine took");
  if (!codec.is_fixed_size()) {
    size_t stream, kept = codec.survivors(n);
    if (codec.selection == Codec::Selection::threshold) {
      uint32_t count;
      memcpy(&count, body.data(), sizeof count);
      kept = count;
    }
    require(codec.measure_stream(body.data(), size, n, &stream) == nullptr, "an accepted stream can be measured");
    require(stream + codec.values.body_bytes(kept, dtype) == size, "a body ends where it is measured");
  }
  uint32_t largest = 0;
  for (size_t i = 0; i < n; ++i) {
    largest = std::max(largest, key_of(decoded[i]));
    require(sums[i] == kBefore + kScale * decoded[i], "add and decode give the same values");
  }
  require(is_finite_key(largest), "decoded values are finite");
  require(largest == key_of(extent.largest), "the largest magnitude is that of the decoded values");
  require(extent.squares >= 0 && std::isfinite(extent.squares), "the sum of squares is finite");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  FloatEnvironment environment;
  Input input(data, size);
  const uint32_t head = input.byte();
  head & 1 ? try_index(input, head) : try_body(input, head);
  return 0;
}
