// Runs every kernel of every variant this processor has, and the codecs on top of them, on inputs made from counters,
// and prints one hash of all outputs per family. The variants must agree with each other, else the exit code is 1, and
// across processors with golden_hashes.txt: NEON under qemu writes the bits that AVX-512 writes.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>
#include <vector>

#include "../../csrc/codec.h"
#include "../../csrc/dispatch.h"
#include "../../csrc/integers/spec.h"
#include "../../csrc/levels/spec.h"
#include "../../csrc/lowrank/operation.h"
#include "../../csrc/philox.h"

using namespace tersegrad;

namespace {

// A kernel that joins the table must join the families below.
constexpr size_t kKernels = 71;
static_assert(sizeof(Kernels) == (1 + kKernels) * sizeof(void*), "hash the new kernel in its family, then count it");

constexpr DType kAllDTypes[] = {DType::float32, DType::float16, DType::bfloat16};
constexpr size_t kLengths[] = {0,   1,   7,   8,   15,  16,   17,   31,   33,   63,   64,   65,
                               127, 129, 255, 256, 257, 1023, 1025, 4095, 4096, 4097, 70001};
constexpr size_t kThreadedLength = 300007;  // enough for the pool

// Long tensors are there for what only length can do; short ones meet every combination.
bool is_short(size_t n) { return n < 5000; }

// FNV-1a's idea on words of 64 bits; the last is filled up with zeros, and the length counts.
class Hash {
 public:
  void add(const void* data, size_t bytes) {
    auto p = static_cast<const char*>(data);
    mix(bytes);
    for (; bytes >= 8; bytes -= 8, p += 8) mix_bytes(p, 8);
    if (bytes > 0) mix_bytes(p, bytes);
  }
  template <class T>
  void add(const std::vector<T>& values) {
    add(values.data(), values.size() * sizeof(T));
  }
  void add(uint64_t value) { mix(value); }
  uint64_t state() const { return state_; }

 private:
  void mix(uint64_t word) {
    state_ = (state_ ^ word) * 0x9e3779b97f4a7c15u;
    state_ ^= state_ >> 29;
  }
  void mix_bytes(const char* p, size_t bytes) {
    uint64_t word = 0;
    memcpy(&word, p, bytes);
    mix(word);
  }

  uint64_t state_ = 0xcbf29ce484222325u;
};

using Floats = std::vector<float>;
using Bytes = std::vector<uint8_t>;

// Magnitudes from 2^-24 to 2^8, and among them zeros of both signs, denormals, repeated values and ties for rounding.
Floats make_finite_floats(size_t n, uint64_t seed) {
  Floats values(n);
  for (size_t i = 0; i < n; ++i) {
    PhiloxWords w = philox(seed, i, 0, 99);
    uint32_t sign = w.word[0] & 0x80000000u, fraction = w.word[1] & 0x7fffffu;
    uint32_t exponent = 103 + w.word[2] % 32;
    switch (w.word[3] % 16) {
      case 0:
        values[i] = float_of(sign);
        break;
      case 1:
        values[i] = float_of(sign | fraction);  // denormal
        break;
      case 2:
        values[i] = float_of(sign | bits_of(0.75f));
        break;
      case 3:
        values[i] = float_of(sign | exponent << 23 | (fraction & 0x7f0000u) | 0x8000u);  // halfway between two bfloat16
        break;
      case 4:
        values[i] = float_of(sign | exponent << 23 | (fraction & 0x7fe000u) | 0x1000u);  // halfway between two float16
        break;
      default:
        values[i] = float_of(sign | exponent << 23 | fraction);
    }
  }
  return values;
}

const Floats& finite_floats(size_t n, uint64_t seed) {
  static std::map<std::pair<size_t, uint64_t>, Floats> made;
  auto [place, fresh] = made.try_emplace({n, seed});
  if (fresh) place->second = make_finite_floats(n, seed);
  return place->second;
}

// Any bits: with infinities, NaNs and the far ends of the range.
Floats any_floats(size_t n, uint64_t seed) {
  Floats values(n);
  for (size_t i = 0; i < n; ++i) {
    PhiloxWords w = philox(seed, i, 1, 99);
    values[i] = float_of(w.word[0] % 8 == 0 ? (w.word[1] & 0x80000000u) | kInfinity : w.word[1]);
  }
  return values;
}

// A NaN's payload is not part of any definition, so what is narrowed or rounded holds none.
Floats without_nans(Floats values) {
  for (float& value : values) {
    if (key_of(value) > kInfinity) value = float_of(bits_of(value) & 0xff800000u);
  }
  return values;
}

// A tensor of any dtype with memory of its own.
struct Tensor {
  Bytes bytes;
  DType dtype;
  size_t count;

  Tensor(DType type, size_t n) : bytes(n * item_bytes(type)), dtype(type), count(n) {}
  Tensor(DType type, const Floats& values) : Tensor(type, values.size()) {
    for (size_t i = 0; i < count; ++i) store_entry(bytes.data(), dtype, i, values[i]);
  }
  Entries entries() const { return {bytes.data(), dtype, count}; }
  Output output(bool accumulate, float scale) { return {bytes.data(), dtype, count, accumulate, scale}; }
};

// Sixteen random bits of every pattern.
Tensor any_halves(DType dtype, size_t n, uint64_t seed) {
  Tensor tensor(dtype, n);
  for (size_t i = 0; i < n; ++i) {
    auto bits = static_cast<uint16_t>(philox(seed, i, 2, 99).word[0]);
    memcpy(&tensor.bytes[2 * i], &bits, sizeof bits);
  }
  return tensor;
}

uint64_t cast_family(const Kernels& kernels, size_t n) {
  Hash hash;
  const Floats values = finite_floats(n, 1), others = finite_floats(n, 2);
  const Floats extremes = without_nans(any_floats(n, 3));
  for (DType dtype : kAllDTypes) {
    int slot = dtype_slot(dtype);
    const Tensor x(dtype, values);
    const Tensor any = dtype == DType::float32 ? Tensor(dtype, any_floats(n, 4)) : any_halves(dtype, n, 4);
    for (const Tensor* t : {&x, &any}) {
      Floats wide(n);
      hash.add(kernels.max_key[slot](t->bytes.data(), n));
      hash.add(kernels.widen[slot](t->bytes.data(), wide.data(), n));
      hash.add(wide);
    }
    Floats residual = others;
    hash.add(kernels.accumulate[slot](x.bytes.data(), residual.data(), n));
    hash.add(residual);
    for (const Floats* source : {&values, &extremes}) {
      Tensor narrowed(dtype, n);
      kernels.narrow[slot](source->data(), narrowed.bytes.data(), n);
      hash.add(narrowed.bytes);
      Floats rounded = *source;
      kernels.round[slot](rounded.data(), n);
      hash.add(rounded);
    }
  }
  Floats a = values;
  kernels.multiply(a.data(), 1.7f, n);
  kernels.add_scaled(a.data(), others.data(), -0.3f, n);
  kernels.subtract(a.data(), values.data(), n);
  hash.add(a);
  for (size_t misaligned : {size_t{0}, size_t{1}, size_t{13}}) {
    Floats streamed(misaligned + n);
    kernels.stream(a.data(), streamed.data() + misaligned, n);
    kernels.end_stream();
    hash.add(streamed);
  }
  return hash.state();
}

uint64_t topk_family(const Kernels& kernels, size_t n) {
  Hash hash;
  const Floats values = finite_floats(n, 1);
  for (DType dtype : kAllDTypes) {
    int slot = dtype_slot(dtype);
    const Tensor x(dtype, values);
    for (float limit : {0.0f, 0.75f, 200.0f}) {
      std::vector<uint32_t> index(n + kCollectSlack);
      Floats value(n + kCollectSlack), residual = finite_floats(n, 2);
      auto add_found = [&](size_t count) {
        hash.add(count);
        hash.add(index.data(), count * sizeof(uint32_t));
        hash.add(value.data(), count * sizeof(float));
        return count;
      };
      uint32_t threshold = key_of(limit);
      add_found(kernels.collect[slot](x.bytes.data(), n, 17, threshold, index.data(), value.data()));
      size_t count = add_found(kernels.accumulate_collect[slot](x.bytes.data(), residual.data(), n, 0, threshold,
                                                                index.data(), value.data()));
      hash.add(residual);
      std::vector<uint32_t> key(count + kCollectSlack);
      size_t above = 0;
      size_t inside = kernels.band(value.data(), count, key_of(0.3f), key_of(3.0f), key.data(), &above);
      hash.add(above);
      hash.add(inside);
      hash.add(key.data(), inside * sizeof(uint32_t));
      hash.add(kernels.count_at_least(key.data(), inside, key_of(0.75f)));
      for (size_t i = 0; i < count; i += 3) value[i] = 0.75f;
      add_found(kernels.compact(index.data(), value.data(), count, key_of(0.75f), count / 9));
    }
  }
  return hash.state();
}

uint64_t quantize_family(const Kernels& kernels, size_t n) {
  Hash hash;
  Floats a = finite_floats(n, 1);
  const Noise noise{0x0123456789abcdefu, 41};
  for (bool finite : {true, false}) {
    if (!finite && n > 0) a[n / 2] = float_of(kInfinity);  // its block becomes zeros
    for (int bits : {8, 4, 2}) {
      int slot = bits_slot(bits);
      for (size_t block_size : {size_t{64}, size_t{192}, size_t{1024}}) {
        for (const Noise* chosen : {static_cast<const Noise*>(nullptr), &noise}) {
          for (uint64_t first : {uint64_t{0}, uint64_t{64}, uint64_t{0xffffff40u}}) {
            Bytes scales((n + block_size - 1) / block_size * sizeof(float));
            Bytes codes((n * static_cast<size_t>(bits) + 7) / 8);
            Floats lost = first == 0 ? Floats() : a;  // in place, as the operation does it
            const float* from = first == 0 ? a.data() : lost.data();
            hash.add(kernels.quantize[slot](from, n, block_size, false, chosen, first, scales.data(), codes.data(),
                                            first == 0 ? nullptr : lost.data()));
            if (finite) hash.add(lost);
            hash.add(scales);
            hash.add(codes);
            if (chosen != nullptr || first != 0) continue;
            Floats decoded(n);
            kernels.dequantize[slot](codes.data(), scales.data(), block_size, decoded.data(), n);
            hash.add(decoded);
          }
        }
      }
    }
  }
  return hash.state();
}

// The kernels on rows of n entries, and a whole encoding of a matrix of about n entries.
uint64_t lowrank_family(const Kernels& kernels, size_t n) {
  Hash hash;
  const Floats& a = finite_floats(n, 1);
  for (size_t rank : {1, 2, 3, 4, 5, 9}) {
    const Floats& q = finite_floats(n * rank, 2);
    Floats p(rank * 3), sums = q, out(n);
    kernels.row_products(a.data(), n, q.data(), n, rank, p.data() + 1, 3);
    hash.add(p);
    const Floats& rows = finite_floats(n * 5, 3);
    const Floats& weights = finite_floats(rank * 5, 4);
    kernels.column_products(rows.data(), n, 5, n, weights.data(), 5, rank, sums.data(), n);
    hash.add(sums);
    kernels.expand_row(weights.data(), 5, q.data(), n, rank, out.data(), n);
    hash.add(out);
  }
  for (size_t columns : {7, 64, 250}) {
    const size_t rank = 5, height = n / columns;
    if (height < rank) continue;
    const lowrank::Shape shape{height, columns, rank};
    for (DType dtype : kAllDTypes) {
      const Tensor x(dtype, finite_floats(shape.count(), 5));
      Floats residual = finite_floats(shape.count(), 6), p(shape.p_entries()), q(shape.q_entries());
      lowrank::start(shape, nullptr, 7, q.data());
      hash.add(lowrank::multiply(x.entries(), residual.data(), shape, q.data(), p.data()));
      const DType factors = dtype == DType::float16 ? DType::bfloat16 : DType::float32;
      lowrank::orthonormalize(shape, factors, p.data());
      lowrank::multiply_transposed(residual.data(), shape, p.data(), factors, q.data());
      lowrank::subtract(shape, p.data(), q.data(), dtype, residual.data());
      hash.add(p);
      hash.add(q);
      hash.add(residual);
      Bytes body((shape.p_entries() + shape.q_entries()) * item_bytes(factors));
      lowrank::write(shape, p.data(), q.data(), factors, body.data());
      hash.add(body);
      Tensor out(dtype, shape.count());
      lowrank::decode(shape, p.data(), q.data(), dtype, out.output(false, 1.0f));
      hash.add(out.bytes);
    }
  }
  return hash.state();
}

uint64_t integers_family(const Kernels& kernels, size_t n) {
  Hash hash;
  Floats a = finite_floats(n, 1);
  for (size_t i = 5; i < n; i += 7) a[i] *= 0x1p20f;  // beyond every limit but that of 32 bits
  const Noise noise{0x0123456789abcdefu, 43};
  for (int bits : {8, 16, 32}) {
    int slot = integer_slot(bits);
    const float largest = bits == 32 ? 0x1.fffffep30f : static_cast<float>((1 << (bits - 1)) - 1);
    for (float scale : {0x1p-7f, 0.37f}) {
      const IntegerGrid grid{scale, 1 / scale, largest};
      for (const Noise* chosen : {static_cast<const Noise*>(nullptr), &noise}) {
        for (uint64_t first : {uint64_t{0}, uint64_t{64}, uint64_t{0xffffff40u}}) {
          Bytes codes(n * static_cast<size_t>(bits) / 8 + 1);  // at an odd address
          Floats lost = first == 0 ? Floats() : a, decoded(n);
          const float* from = first == 0 ? a.data() : lost.data();
          hash.add(kernels.to_integers[slot](from, n, grid, chosen, first, codes.data() + 1,
                                             first == 0 ? nullptr : lost.data()));
          hash.add(lost);
          hash.add(codes);
          kernels.from_integers[slot](codes.data() + 1, scale, decoded.data(), n);
          hash.add(decoded);
        }
      }
    }
  }
  return hash.state();
}

uint64_t levels_family(const Kernels& kernels, size_t n) {
  Hash hash;
  Floats a = finite_floats(n, 1), above = a;
  for (float& value : above) value = value < 0 ? value - 0.75f : value + 0.75f;  // no zeros
  for (const Floats* values : {&a, &above}) {
    const KeyRange keys = kernels.key_range(values->data(), n);
    hash.add(keys.least);
    hash.add(keys.largest);
    if (n == 0) continue;
    for (Spacing spacing : {Spacing::uniform, Spacing::square, Spacing::logarithmic}) {
      for (int bits : {2, 3, 5, 8}) {
        const LevelGrid grid = level_grid(pack_bounds(keys.least, keys.largest, spacing), bits);
        Bytes codes(n);
        Floats decoded(n);
        hash.add(bits_of(kernels.to_levels(values->data(), n, grid, codes.data())));
        hash.add(codes);
        kernels.from_levels(codes.data(), n, grid, decoded.data());
        hash.add(decoded);
      }
    }
  }
  return hash.state();
}

uint64_t smallfloat_family(const Kernels& kernels, size_t n) {
  Hash hash;
  const Floats a = finite_floats(n, 1);
  const Noise noise{0x0123456789abcdefu, 47};
  for (int slot = 0; slot < kSmallFloats; ++slot) {
    for (float inverse : {1.0f, 1.7f, 0x1p-60f, 0x1p-140f}) {
      for (const Noise* chosen : {static_cast<const Noise*>(nullptr), &noise}) {
        for (uint64_t first : {uint64_t{0}, uint64_t{64}, uint64_t{0xffffff40u}}) {
          Bytes codes(n);
          Floats decoded(n);
          kernels.to_small[slot](a.data(), n, inverse, chosen, first, codes.data());
          hash.add(codes);
          kernels.from_small[slot](codes.data(), n, std::min(1 / inverse, 0x1p125f), decoded.data());
          hash.add(decoded);
        }
      }
    }
  }
  return hash.state();
}

uint64_t sign_family(const Kernels& kernels, size_t n) {
  Hash hash;
  const Floats a = finite_floats(n, 1);
  Bytes bits((n + 7) / 8);
  SignSummary summary = kernels.pack_signs(a.data(), n, bits.data());
  hash.add(bits_of(summary.sum));
  hash.add(summary.max_key);
  hash.add(bits);
  Floats decoded(n);
  kernels.unpack_signs(bits.data(), 0.3f, decoded.data(), n);
  hash.add(decoded);
  return hash.state();
}

uint64_t rotate_family(const Kernels& kernels, size_t n) {
  Hash hash;
  const Noise noise{0x0123456789abcdefu, 41};
  const Floats a = finite_floats(n, 1);
  std::vector<uint32_t> words(4 * 64);
  kernels.rotation_signs(noise, 0x80000010u, 4, words.data());
  hash.add(words);
  for (size_t power = 1; power <= n && power <= 4096; power *= 2) {
    Floats z(power);
    kernels.rotate(a.data() + (n - power), power, words.data(), 1984, 0.37f, z.data(), nullptr);
    hash.add(z);
    kernels.unrotate(z.data(), power, words.data(), 64, 0.125f, 1e38f, nullptr);
    hash.add(z);
  }
  for (int bits = 1; bits <= kRotationWidths; ++bits) {
    Bytes codes((n * static_cast<size_t>(bits) + 7) / 8);
    RotationSums sums{};
    if (n > 0) sums = kernels.quantize_rotated[bits - 1](a.data(), n, codes.data());
    for (float sum : {sums.squares, sums.products}) hash.add(bits_of(sum));
    hash.add(codes);
    Floats decoded(n);
    kernels.dequantize_rotated[bits - 1](codes.data(), n, decoded.data());
    hash.add(decoded);
    hash.add(bits_of(kernels.sum_of_squares(decoded.data(), n)));
  }
  return hash.state();
}

uint64_t threshold_family(const Kernels& kernels, size_t n) {
  Hash hash;
  for (const Floats& a : {finite_floats(n, 1), finite_floats(n, 2)}) {
    const Moments own = kernels.moments(a.data(), n);
    hash.add(bits_of(own.sum));
    hash.add(bits_of(own.squares));
    hash.add(own.max_key);
  }
  return hash.state();
}

uint64_t crc_family(const Kernels& kernels, size_t n) {
  Hash hash;
  const Tensor bytes = any_halves(DType::float16, n, 8);
  hash.add(kernels.crc32c(0, bytes.bytes.data(), n));
  hash.add(kernels.crc32c(0xdeadbeefu, bytes.bytes.data() + n / 2, n - n / 2));  // from any alignment
  return hash.state();
}

using Kind = ValueCodec::Kind;
using Selection = Codec::Selection;

ValueCodec cast_to(DType wire) {
  ValueCodec values;
  values.kind = Kind::cast;
  values.wire = wire;
  return values;
}

ValueCodec quantized(int bits, size_t block_size, bool stochastic) {
  ValueCodec values;
  values.kind = Kind::quantize;
  values.quantized = {bits, block_size};
  values.stochastic = stochastic;
  values.seed = 0x0123456789abcdefu;
  return values;
}

ValueCodec signs(size_t block_size) {
  ValueCodec values;
  values.kind = Kind::sign;
  values.signs = {block_size};
  return values;
}

Codec dense(const ValueCodec& values) {
  Codec codec;
  codec.values = values;
  return codec;
}

Codec sparse(Selection selection, double density, size_t k, const ValueCodec& values, int form = 0) {
  Codec codec;
  codec.selection = selection;
  codec.values = values;
  codec.density = density;
  codec.k = k;
  codec.chunk = 50;
  codec.form = form;
  codec.mask_seed = 11;
  return codec;
}

const ValueCodec kPlain;

std::vector<Codec> cast_codecs() {
  return {dense(kPlain), dense(cast_to(DType::float32)), dense(cast_to(DType::float16)),
          dense(cast_to(DType::bfloat16))};
}
ValueCodec by_norm(ValueCodec values) {
  values.quantized.by_norm = true;
  return values;
}
std::vector<Codec> quantize_codecs() {
  return {dense(quantized(4, 64, false)),        dense(quantized(4, 320, true)),  dense(quantized(8, 256, false)),
          dense(quantized(8, 1024, true)),       dense(quantized(2, 256, false)), dense(quantized(2, 65536, true)),
          dense(by_norm(quantized(4, 64, true)))};
}
ValueCodec ternary_digits(size_t block_size, float threshold) {
  ValueCodec values;
  values.kind = Kind::ternary;
  values.digits = {block_size};
  values.threshold = threshold;
  return values;
}
std::vector<Codec> ternary_codecs() {
  return {dense(ternary_digits(64, 0)), dense(ternary_digits(320, 0.7f)), dense(ternary_digits(1024, 1.5f))};
}
ValueCodec integers_of(int bits, float scale, float limit, bool stochastic) {
  ValueCodec values;
  values.kind = Kind::integers;
  values.integer = {bits, {scale, 1 / scale, limit}};
  values.stochastic = stochastic;
  values.seed = 0x0123456789abcdefu;
  return values;
}
std::vector<Codec> integers_codecs() {
  return {dense(integers_of(8, 0x1p-4f, 127, false)), dense(integers_of(16, 0.01f, 2047, true)),
          dense(integers_of(32, 0x1p-20f, 0x1p24f, true)),
          sparse(Selection::random, 0.1, 0, integers_of(16, 0x1p-7f, 32767, false))};
}
ValueCodec rotated(int bits, size_t block_size, size_t kept, bool unbiased) {
  ValueCodec values;
  values.kind = Kind::rotated;
  values.rotated = {bits, block_size, kept};
  values.unbiased = unbiased;
  values.seed = 0x0123456789abcdefu;
  return values;
}
std::vector<Codec> rotate_codecs() {
  return {dense(rotated(1, 64, 0, true)), dense(rotated(2, 512, 0, false)), dense(rotated(3, 4096, 0, true)),
          dense(rotated(4, 65536, 0, true)), dense(rotated(1, 1024, 300, true))};
}
ValueCodec on_levels(int bits, size_t block_size, levels::Choice choice) {
  ValueCodec values;
  values.kind = Kind::levels;
  values.level = {bits, block_size, choice};
  return values;
}
std::vector<Codec> levels_codecs() {
  using levels::Choice;
  return {dense(on_levels(4, 256, Choice::automatic)),   dense(on_levels(2, 64, Choice::logarithmic)),
          dense(on_levels(3, 320, Choice::uniform)),     dense(on_levels(5, 64, Choice::square)),
          dense(on_levels(6, 1024, Choice::automatic)),  dense(on_levels(7, 64, Choice::automatic)),
          dense(on_levels(8, 65536, Choice::automatic)), sparse(Selection::topk, 0.1, 0, on_levels(4, 64, {}))};
}
ValueCodec small_floats(SmallFloat format, size_t block_size, bool stochastic) {
  ValueCodec values = quantized(8, 256, stochastic);
  values.kind = Kind::smallfloat;
  values.small = {format, block_size};
  return values;
}
std::vector<Codec> smallfloat_codecs() {
  return {dense(small_floats(SmallFloat::natural, 1024, false)),
          dense(small_floats(SmallFloat::natural, 64, true)),
          dense(small_floats(SmallFloat::e4m3, 256, false)),
          dense(small_floats(SmallFloat::e4m3, 320, true)),
          dense(small_floats(SmallFloat::e5m2, 256, true)),
          dense(small_floats(SmallFloat::nf4, 64, false)),
          sparse(Selection::topk, 0.1, 0, small_floats(SmallFloat::nf4, 64, false))};
}
std::vector<Codec> sign_codecs() { return {dense(signs(64)), dense(signs(320)), dense(signs(1024))}; }
std::vector<Codec> topk_codecs() {
  return {sparse(Selection::topk, 0.01, 0, quantized(4, 256, false)),
          sparse(Selection::topk, 0, 1, kPlain),
          sparse(Selection::topk, 0.001, 0, signs(64), 3),
          sparse(Selection::topk, 0.5, 0, kPlain, 1),
          sparse(Selection::topk, 1.0, 0, cast_to(DType::bfloat16)),
          sparse(Selection::chunks, 0, 3, kPlain)};
}
std::vector<Codec> index_codecs() {
  return {sparse(Selection::random, 0.01, 0, kPlain),  sparse(Selection::random, 0, 7, quantized(8, 64, true)),
          sparse(Selection::topk, 0.03, 0, kPlain, 1), sparse(Selection::topk, 0.03, 0, kPlain, 2),
          sparse(Selection::topk, 0.03, 0, kPlain, 3), sparse(Selection::topk, 0.3, 0, kPlain, 1)};
}
Codec above(float threshold, double density, const ValueCodec& values, int form) {
  Codec codec = sparse(Selection::threshold, density, 0, values, form);
  codec.threshold = threshold;
  return codec;
}
std::vector<Codec> threshold_codecs() {
  return {above(0.75f, 0, kPlain, 0), above(0, 0.01, quantized(4, 64, false), 4), above(0, 0.2, kPlain, 1),
          above(1e9f, 0, signs(64), 2), above(0, 0.001, kPlain, 3)};
}
std::vector<Codec> rice_codecs() {
  return {sparse(Selection::topk, 0.01, 0, kPlain, 4), sparse(Selection::topk, 0.3, 0, ternary_digits(64, 0), 4),
          sparse(Selection::chunks, 0, 3, quantized(4, 64, false), 4)};
}

// Runs are in ascending and equal values; single indices in the others.
std::vector<Codec> runs_codecs() {
  return {sparse(Selection::topk, 0.5, 0, kPlain, 5), sparse(Selection::topk, 0.1, 0, ternary_digits(64, 0), 5),
          sparse(Selection::chunks, 0, 3, signs(64), 5)};
}

// What top-k and scales can meet: ordinary values, few distinct ones, ascending ones, equal ones, zeros.
std::vector<Floats> inputs(size_t n) {
  Floats few(n), sorted(n);
  for (size_t i = 0; i < n; ++i) {
    few[i] = static_cast<float>(philox(6, i, 0, 99).word[0] % 3) - 1.0f;
    sorted[i] = static_cast<float>(i) - 0.25f;
  }
  return {finite_floats(n, 1), few, sorted, Floats(n, -0.5f), Floats(n, 0.0f)};
}

// A body, the residual that encoding leaves, and what decoding makes of every kind of output.
void hash_codec(Hash& hash, const Codec& codec, const Tensor& x, bool with_residual, uint32_t& last_key) {
  const size_t n = x.count;
  Floats residual = finite_floats(n, 2);
  Bytes body(codec.body_bytes(n, x.dtype));
  size_t used;
  Outcome outcome =
      codec.encode(x.entries(), with_residual ? residual.data() : nullptr, x.dtype, 3, last_key, body.data(), used);
  hash.add(outcome == Outcome::ok);
  body.resize(used);
  body.shrink_to_fit();
  hash.add(body);
  hash.add(residual);
  for (DType dtype : kAllDTypes) {
    if (!is_short(n) && dtype != x.dtype) continue;
    for (bool accumulate : {false, true}) {
      Tensor out(dtype, finite_floats(n, 5));
      Fault fault =
          codec.decode(body.data(), used, x.dtype, 3, out.output(accumulate, accumulate ? -0.37f : 1.0f), false);
      hash.add(fault == nullptr);
      hash.add(out.bytes);
    }
  }
}

uint64_t hash_codecs(const std::vector<Codec>& codecs, size_t n) {
  Hash hash;
  const std::vector<Floats> values = inputs(n);
  for (size_t c = 0; c < codecs.size(); ++c) {
    uint32_t last_key = 0;  // from one input to the next it misleads
    for (size_t v = 0; v < values.size(); ++v) {
      if (n == kThreadedLength && v != c % values.size()) continue;
      for (DType dtype : kAllDTypes) {
        if (!is_short(n) && dtype != kAllDTypes[(c + v) % 3]) continue;
        const Tensor x(dtype, values[v]);
        for (bool with_residual : {false, true}) hash_codec(hash, codecs[c], x, with_residual, last_key);
      }
    }
  }
  return hash.state();
}

struct Family {
  const char* name;
  uint64_t (*kernels)(const Kernels&, size_t n);
  std::vector<Codec> codecs;
};

uint64_t hash_of(const Family& family, const Kernels& kernels) {
  FloatEnvironment environment;
  Hash hash;
  use(kernels.name);
  set_thread_count(1);
  for (size_t n : kLengths) {
    if (family.kernels) hash.add(family.kernels(kernels, n));
    hash.add(hash_codecs(family.codecs, n));
  }
  const uint64_t alone = hash_codecs(family.codecs, kThreadedLength);
  set_thread_count(3);
  if (hash_codecs(family.codecs, kThreadedLength) != alone) {
    std::fprintf(stderr, "%s: %s: three threads write other bits than one\n", family.name, kernels.name);
    std::exit(1);
  }
  hash.add(alone);
  return hash.state();
}

}  // namespace

int main() {
  int failures = 0;
  std::string names;
  for (const Kernels* kernels : available()) names += std::string(" ") + kernels->name;
  std::fprintf(stderr, "variants:%s\n", names.c_str());
  const Family families[] = {{"cast", cast_family, cast_codecs()},
                             {"topk", topk_family, topk_codecs()},
                             {"quantize", quantize_family, quantize_codecs()},
                             {"integers", integers_family, integers_codecs()},
                             {"levels", levels_family, levels_codecs()},
                             {"smallfloat", smallfloat_family, smallfloat_codecs()},
                             {"lowrank", lowrank_family, {}},
                             {"sign", sign_family, sign_codecs()},
                             {"rotate", rotate_family, rotate_codecs()},
                             {"ternary", nullptr, ternary_codecs()},
                             {"index", nullptr, index_codecs()},
                             {"rice", nullptr, rice_codecs()},
                             {"runs", nullptr, runs_codecs()},
                             {"threshold", threshold_family, threshold_codecs()},
                             {"crc", crc_family, {}}};
  for (const Family& family : families) {
    const uint64_t expected = hash_of(family, *available().back());  // scalar, by the definitions
    std::printf("%-8s %016llx\n", family.name, static_cast<unsigned long long>(expected));
    for (const Kernels* kernels : available()) {
      uint64_t got = kernels == available().back() ? expected : hash_of(family, *kernels);
      if (got == expected) continue;
      std::fprintf(stderr, "%s: %s gives %016llx\n", family.name, kernels->name, static_cast<unsigned long long>(got));
      ++failures;
    }
  }
  return failures == 0 ? 0 : 1;
}
