// How one pass suffices. A sample, or the last call, suggests a threshold that a little more than k entries reach; one
// pass collects those that do, and an exact selection among these few finishes the job. The sample can mislead, yet the
// result is always exact:
//  * Too many candidates: the buffer is cut to its best k, and the threshold becomes the k-th key plus one. Entries
//    with that very key that come later would lose their tie against the k that are there, so none is missed. Each cut
//    is paid for by the k / 2 entries that filled the buffer, so the worst input costs a constant factor.
//  * Too few: the pass is repeated with a lower threshold, at last with zero, where the first rule does all the work.
#include "operation.h"

#include <sys/mman.h>

#include <vector>

#include "spec.h"

namespace tersegrad::topk {
namespace {

// Below this many entries all of them are the sample; above, this many at most, in runs of neighbours that share a
// cache line.
constexpr size_t kSampleFrom = 1024;
constexpr size_t kSamples = 32 * 1024;
constexpr size_t kRun = 16;

constexpr size_t kScan = 32 * 1024;  // entries between two looks at the buffer
constexpr size_t kSelectionSample = 4096;
constexpr size_t kInCache = 32 * 1024;  // up to here bisection beats a histogram

struct Rank {
  uint32_t key;  // the k-th largest
  size_t above;  // how many are larger
};

// Bit by bit from the top: the k-th key has a bit when k keys or more reach what it then is. No branch depends on the
// data.
Rank rank_by_bisection(const uint32_t* key, size_t n, size_t k) {
  const Kernels& kernels = active();
  uint32_t kth = 0;
  for (uint32_t bit = 1u << 30; bit != 0; bit >>= 1) {
    if (kernels.count_at_least(key, n, kth | bit) >= k) kth |= bit;
  }
  return {kth, kth < kMagnitude ? kernels.count_at_least(key, n, kth + 1) : 0};
}

// Radix selection, most significant digit first: a histogram of the entries that match the prefix found so far tells
// the next digit. Keys have 31 bits: digits of 11, 10 and 10.
template <class KeyAt>
Rank rank_by_digits(KeyAt key_at, size_t n, size_t k) {
  uint32_t prefix = 0;
  size_t above = 0;
  const struct {
    int shift, bits;
  } digits[] = {{20, 11}, {10, 10}, {0, 10}};
  for (auto [shift, bits] : digits) {
    uint32_t histogram[2048] = {};
    for (size_t i = 0; i < n; ++i) {
      uint32_t digits_so_far = key_at(i) >> shift;
      if (digits_so_far >> bits == prefix) ++histogram[digits_so_far & ((1u << bits) - 1)];
    }
    uint32_t digit = (1u << bits) - 1;
    while (above + histogram[digit] < k) above += histogram[digit--];
    prefix = prefix << bits | digit;
  }
  return {prefix, above};
}

// A small sample brackets the k-th key; one pass counts what lies above and keeps what lies between (Floyd and Rivest
// 1975).
Rank rank_of(const float* value, size_t n, size_t k) {
  std::unique_ptr<uint32_t[]> key(new uint32_t[std::max(n, kSelectionSample) + kCollectSlack]);
  if (n <= kSelectionSample) {
    for (size_t i = 0; i < n; ++i) key[i] = key_of(value[i]);
    return rank_by_bisection(key.get(), n, k);
  }
  for (size_t i = 0; i < kSelectionSample; ++i) key[i] = key_of(value[i * n / kSelectionSample]);
  double share = double(k) / double(n), mean = share * kSelectionSample;
  double margin = 4 * std::sqrt(mean * (1 - share)) + 4;
  uint32_t high = kMagnitude, low = 0;
  if (mean > margin) high = rank_by_bisection(key.get(), kSelectionSample, size_t(mean - margin) + 1).key;
  if (mean + margin < kSelectionSample)
    low = rank_by_bisection(key.get(), kSelectionSample, size_t(mean + margin) + 1).key;
  bool tied = low >= high;  // so many equal keys that both brackets are one of them
  if (tied) high = low + 1;
  size_t above, inside = active().band(value, n, low, high, key.get(), &above);
  if (tied && above < k && above + inside >= k) return {low, above};
  if (above >= k || above + inside < k) {  // bad luck
    return rank_by_digits([value](size_t i) { return key_of(value[i]); }, n, k);
  }
  Rank rank = inside <= kInCache ? rank_by_bisection(key.get(), inside, k - above)
                                 : rank_by_digits([&key](size_t i) { return key[i]; }, inside, k - above);
  return {rank.key, above + rank.above};
}

// Suggests thresholds that a few more than k entries reach, but for bad luck; each attempt is more careful.
class Suggestion {
 public:
  Suggestion(const Entries& x, float* const& residual, size_t k, uint32_t last_key)
      : x_(x), residual_(residual), k_(k), density_(double(k) / double(x.count)), last_key_(last_key) {}

  struct Threshold {
    uint32_t key;
    double share;  // of the entries that reach it, about
  };

  Threshold next() {
    const uint32_t warm = threshold_after(last_key_);
    last_key_ = 0;
    if (warm != 0) return {warm, 1.3 * density_};
    if (sample_.empty()) take_sample();
    if (sample_.size() == x_.count) {  // nothing is left to luck
      return {std::min(rank_of(sample_.data(), x_.count, k_).key, kInfinity), density_};
    }
    double size = double(sample_.size()), mean = density_ * size;
    rank_ = rank_ == 0 ? mean + 5 * std::sqrt(mean * (1 - density_)) + 8 : 4 * rank_;
    if (rank_ >= size) return {0, 1.0};  // reached by all
    uint32_t key = rank_of(sample_.data(), sample_.size(), size_t(rank_)).key;
    return {std::min(key, kInfinity), rank_ / size};
  }

 private:
  void take_sample() {
    if (x_.count < kSampleFrom) return sample_run(0, x_.count);
    size_t samples = std::clamp(x_.count / 32, std::min(x_.count / 8, kSampleFrom), kSamples);
    size_t runs = samples / kRun;
    size_t stride = x_.count / runs;
    sample_.reserve(runs * kRun);
    uint32_t shuffle = 1;
    for (size_t run = 0; run < runs; ++run) {
      // Uneven distances, so that a regular pattern in x cannot hide between the samples.
      shuffle = shuffle * 1664525u + 1013904223u;
      sample_run(run * stride + (stride - kRun) * (shuffle >> 16) / 65536, kRun);
    }
  }

  void sample_run(size_t at, size_t n) {
    sample_.resize(sample_.size() + n);
    float* sampled = sample_.data() + sample_.size() - n;
    active().widen[dtype_slot(x_.dtype)](x_.at(at), sampled, n);
    if (residual_ != nullptr) active().add_scaled(sampled, residual_ + at, 1.0f, n);
  }

  const Entries& x_;  // these two change once the residual holds the sums
  float* const& residual_;
  size_t k_;
  double density_;
  uint32_t last_key_;
  std::vector<float> sample_;
  double rank_ = 0;
};

// One thread's part of the pass: the entries of [begin, end) that can be among the first k.
bool scan(const Entries& x, float* residual, size_t begin, size_t end, size_t k, uint32_t threshold, size_t expected,
          Candidates& found) {
  const Kernels& kernels = active();
  const int from = dtype_slot(x.dtype);
  const size_t piece = std::min(kScan, end - begin), room = piece + kCollectSlack;
  const size_t limit = k + k / 2 + room;
  if (!found.reserve(std::min(limit, expected + room))) return false;
  for (size_t i = begin; i < end; i += piece) {
    size_t n = std::min(piece, end - i);
    while (found.capacity - found.count < n + kCollectSlack) {
      if (found.capacity < limit) {
        if (!found.reserve(std::min(limit, 2 * found.capacity + room))) return false;
      } else {
        threshold = std::min(found.keep_largest(k) + 1, kInfinity);
      }
    }
    uint32_t* index = found.index.get() + found.count;
    float* value = found.value.get() + found.count;
    found.count += residual ? kernels.accumulate_collect[from](x.at(i), residual + i, n, static_cast<uint32_t>(i),
                                                               threshold, index, value)
                            : kernels.collect[from](x.at(i), n, static_cast<uint32_t>(i), threshold, index, value);
  }
  return true;
}

// New memory costs a page fault per page, so a large array asks for large pages.
constexpr size_t kLargePage = 2 * 1024 * 1024;

template <class T>
bool grow(std::unique_ptr<T, Free>& array, size_t used, size_t wanted) {
  size_t bytes = wanted * sizeof(T);
  void* memory = nullptr;
  if (bytes >= 2 * kLargePage) {
    bytes = (bytes + kLargePage - 1) / kLargePage * kLargePage;
    if (posix_memalign(&memory, kLargePage, bytes) != 0) return false;
    madvise(memory, bytes, MADV_HUGEPAGE);
  } else {
    memory = std::malloc(bytes);
    if (memory == nullptr) return false;
  }
  if (used > 0) memcpy(memory, array.get(), used * sizeof(T));
  array.reset(static_cast<T*>(memory));
  return true;
}

}  // namespace

bool Candidates::reserve(size_t wanted) {
  if (wanted <= capacity) return true;
  if (!grow(index, count, wanted) || !grow(value, count, wanted)) return false;
  capacity = wanted;
  return true;
}

uint32_t Candidates::keep_largest(size_t k) {
  Rank rank = rank_of(value.get(), count, k);
  count = active().compact(index.get(), value.get(), count, rank.key, k - rank.above);
  return rank.key;
}

bool select(const Entries& x, float* residual, size_t k, uint32_t& last_key, Candidates& out) {
  const size_t ranges = x.count < kParallelFrom ? 1 : static_cast<size_t>(thread_count());
  const size_t length = (x.count + ranges - 1) / ranges;
  Entries entries = x;
  Suggestion suggestion(entries, residual, k, last_key);
  std::vector<Candidates> found(ranges);
  std::atomic<bool> memory{true};
  size_t total = 0;
  while (total < k) {
    auto [threshold, share] = suggestion.next();
    parallel_for(ranges, [&, threshold = threshold, share = share](size_t range) {
      size_t begin = std::min(x.count, range * length), end = std::min(x.count, begin + length);
      found[range].count = 0;
      if (begin == end) return;
      auto expected = size_t(share * double(end - begin));
      if (!scan(entries, residual, begin, end, std::min(k, end - begin), threshold, expected, found[range]))
        memory = false;
    });
    if (!memory) return false;
    total = 0;
    for (const Candidates& part : found) total += part.count;
    if (residual != nullptr) {  // it holds the sums now
      entries = {residual, DType::float32, x.count};
      residual = nullptr;
    }
    last_key = threshold;
  }
  if (!join(found, out)) return false;
  if (out.count > k) last_key = out.keep_largest(k);
  return true;
}

bool join(std::vector<Candidates>& found, Candidates& out) {
  size_t total = 0;
  for (const Candidates& part : found) total += part.count;
  out = std::move(found[0]);
  if (!out.reserve(total)) return false;
  for (size_t range = 1; range < found.size(); ++range) {
    memcpy(out.index.get() + out.count, found[range].index.get(), found[range].count * sizeof(uint32_t));
    memcpy(out.value.get() + out.count, found[range].value.get(), found[range].count * sizeof(float));
    out.count += found[range].count;
  }
  return true;
}

bool select_chunks(const Entries& x, float* residual, size_t k, size_t chunk, uint32_t* index, float* value) {
  const Kernels& kernels = active();
  const size_t chunks = (x.count + chunk - 1) / chunk, per_task = std::max<size_t>(1, kChunk / chunk);
  const size_t tasks = x.count < kParallelFrom ? 1 : (chunks + per_task - 1) / per_task;
  const size_t group = (chunks + tasks - 1) / tasks;
  std::atomic<bool> memory{true};
  parallel_for(tasks, [&](size_t task) {
    Candidates found;
    if (!found.reserve(std::min(chunk, x.count) + kCollectSlack)) {
      memory = false;
      return;
    }
    uint32_t threshold = 0;  // for the next chunk: a little below the k-th key of the last
    for (size_t c = task * group; c < std::min(chunks, (task + 1) * group); ++c) {
      size_t begin = c * chunk, n = std::min(chunk, x.count - begin), kept = std::min(k, n);
      Entries entries{x.at(begin), x.dtype, n};
      float* sums = residual ? residual + begin : nullptr;
      auto base = static_cast<uint32_t>(begin);
      uint32_t step = 1u << 22;
      found.count = 0;
      for (bool first = true; found.count < kept; first = false) {
        if (!first) {  // half an octave lower, then one, two, ...
          threshold = threshold > step ? threshold - step : 0;
          step *= 2;
        }
        int from = dtype_slot(entries.dtype);
        if (sums != nullptr && first) {
          found.count = kernels.accumulate_collect[from](entries.data, sums, n, base, threshold, found.index.get(),
                                                         found.value.get());
          entries = {sums, DType::float32, n};
        } else {
          found.count = kernels.collect[from](entries.data, n, base, threshold, found.index.get(), found.value.get());
        }
      }
      uint32_t kth = found.keep_largest(kept);
      threshold = kth > 1u << 20 ? std::min(kth, kInfinity) - (1u << 20) : 0;
      memcpy(index + c * k, found.index.get(), kept * sizeof(uint32_t));
      memcpy(value + c * k, found.value.get(), kept * sizeof(float));
    }
  });
  return memory;
}

}  // namespace tersegrad::topk
