#include "operation.h"

#include <vector>

#include "../blocks.h"
#include "spec.h"

namespace tersegrad::threshold {
namespace {

using topk::Candidates;

constexpr size_t kScan = 32 * 1024;  // entries between two looks at the room that is left

// One thread's part of a pass.
bool scan(const Entries& x, float* residual, size_t begin, size_t end, uint32_t key, size_t expected,
          Candidates& found) {
  const Kernels& kernels = active();
  const int from = dtype_slot(x.dtype);
  if (!found.reserve(expected + kCollectSlack)) return false;
  for (size_t i = begin; i < end; i += kScan) {
    const size_t n = std::min(kScan, end - i), room = found.count + n + kCollectSlack;
    if (room > found.capacity && !found.reserve(std::min(end - begin + kCollectSlack, room + found.capacity))) {
      return false;
    }
    uint32_t* index = found.index.get() + found.count;
    float* value = found.value.get() + found.count;
    const auto base = static_cast<uint32_t>(i);
    found.count += residual ? kernels.accumulate_collect[from](x.at(i), residual + i, n, base, key, index, value)
                            : kernels.collect[from](x.at(i), n, base, key, index, value);
  }
  return true;
}

// One pass over memory, whose parts are then put side by side. `expected` entries are found, about.
bool collect(const Entries& x, float* residual, uint32_t key, size_t expected, Candidates& out) {
  const size_t ranges = x.count < kParallelFrom ? 1 : static_cast<size_t>(thread_count());
  const size_t length = (x.count + ranges - 1) / ranges;
  std::vector<Candidates> found(ranges);
  std::atomic<bool> memory{true};
  parallel_for(ranges, [&](size_t range) {
    const size_t begin = std::min(x.count, range * length), end = std::min(x.count, begin + length);
    if (!scan(x, residual, begin, end, key, std::min(expected / ranges, end - begin), found[range])) memory = false;
  });
  return memory && topk::join(found, out);
}

struct Sums {
  double sum = 0, squares = 0;
};

// Sums over all magnitudes: pieces as the kernel adds them, then piece by piece. A residual becomes x + residual.
Sums sums_of_all(const Entries& x, float* residual, bool* finite) {
  const Kernels& kernels = active();
  std::vector<Moments> pieces((x.count + kPiece - 1) / kPiece);
  LargestKey largest;
  for_each_chunk(x.count, kPiece, [&](size_t begin, size_t end) {
    uint32_t key = 0;
    for_each_piece(begin, end, [&](size_t i, size_t n) {
      float scratch[kPiece];
      const Moments& own = pieces[i / kPiece] = kernels.moments(float_entries(x, residual, i, n, scratch), n);
      key = std::max(key, own.max_key);
    });
    largest.add(key);
  });
  Sums total;
  for (const Moments& piece : pieces) {
    total.sum += static_cast<double>(piece.sum);
    total.squares += static_cast<double>(piece.squares);
  }
  *finite = largest.is_finite();
  return total;
}

// Sums of the distances to `level`, entry i in lane i mod 8.
Sums sums_above(const Candidates& tail, float level) {
  double sum[8] = {}, squares[8] = {};
  const float* value = tail.value.get();
  for (size_t i = 0; i < tail.count; ++i) {
    const double distance = static_cast<double>(float_of(key_of(value[i]))) - static_cast<double>(level);
    sum[i % 8] += distance;
    squares[i % 8] += distance * distance;
  }
  auto total = [](const double(&lane)[8]) {
    return ((lane[0] + lane[4]) + (lane[2] + lane[6])) + ((lane[1] + lane[5]) + (lane[3] + lane[7]));
  };
  return {total(sum), total(squares)};
}

size_t count_reaching(const Candidates& tail, uint32_t key) {
  const float* value = tail.value.get();
  size_t count = 0;
  for (size_t i = 0; i < tail.count; ++i) count += key_of(value[i]) >= key;
  return count;
}

void keep_reaching(Candidates& tail, uint32_t key) {
  tail.count = active().compact(tail.index.get(), tail.value.get(), tail.count, key - 1, 0);
}

}  // namespace

Selected select(const Entries& x, float* residual, float value, Candidates& out) {
  return collect(x, residual, bits_of(value), 0, out) ? Selected::ok : Selected::out_of_memory;
}

Selected select_about(const Entries& x, float* residual, size_t k, Candidates& out) {
  bool finite;
  const Sums all = sums_of_all(x, residual, &finite);
  if (!finite) return Selected::not_finite;
  const Entries entries = residual ? Entries{residual, DType::float32, x.count} : x;

  ThresholdSearch search = start_search(x.count, k, all.sum, all.squares);
  Candidates tail, beyond;  // the entries above search.low if that is not zero; those above a level that few reached
  bool has_tail = false, has_beyond = false, near = false;
  float level, chosen = 0;
  while (!near && next_level(search, &level)) {
    const uint32_t key = bits_of(level);
    size_t count;
    if (has_tail) {
      count = count_reaching(tail, key);
      if (count >= k) keep_reaching(tail, key);
    } else {
      Candidates found;
      if (!collect(entries, nullptr, key, std::min(x.count, 6 * k), found)) return Selected::out_of_memory;
      count = found.count;
      has_tail = count >= k;
      has_beyond = !has_tail;
      (has_tail ? tail : beyond) = std::move(found);
    }
    if (count >= k) {
      const Sums above = sums_above(tail, level);
      reached_by_enough(search, level, count, above.sum, above.squares);
    } else {
      reached_by_fewer(search, level, count);
    }
    near = is_near(search, count);
    if (near) chosen = level;
  }
  if (!near) chosen = found_threshold(search);
  if (has_tail) {
    keep_reaching(tail, bits_of(chosen));
    out = std::move(tail);
  } else if (has_beyond && chosen == search.high) {
    out = std::move(beyond);
  } else if (!collect(entries, nullptr, bits_of(chosen), std::min(x.count, 2 * k), out)) {
    return Selected::out_of_memory;
  }
  return Selected::ok;
}

}  // namespace tersegrad::threshold
