// Runs of neighbouring indices, each by where it starts and how long it is: docs/format.md section 3, form 5. Both are
// index sets of their own, as Rice streams: starts, counted in the entries that are not in the set, and the number of
// each run's last index, counted in those that are. Any two such sets are the runs of one set of indices.
#include "runs.h"

#include <memory>

namespace tersegrad::index {
namespace {

constexpr Fault kWrongRuns = "the index stream has not the number of runs that its indices form";

// The first index begins a run, and every one that does not follow the one before.
size_t count_runs(const uint32_t* index, size_t k) {
  size_t runs = 1;
  for (size_t j = 1; j < k; ++j) runs += index[j] != index[j - 1] + 1;
  return runs;
}

// Sixteen neighbours are written at a time where there is room, the surplus to be overwritten.
constexpr size_t kWide = 16;

void write_run(uint32_t* index, uint32_t first, size_t length, size_t room) {
  size_t j = 0;
  for (; j < length && room - j >= kWide; j += kWide) {
    for (uint32_t i = 0; i < kWide; ++i) index[j + i] = first + static_cast<uint32_t>(j) + i;
  }
  for (; j < length; ++j) index[j] = first + static_cast<uint32_t>(j);
}

// The number of runs in front of the stream; zero for a stream of single indices.
Fault read_count(const uint8_t* stream, size_t available, size_t n, size_t k, size_t* runs) {
  if (available < runs_bytes_at_least(k)) return kWrongSize;
  uint32_t count;
  memcpy(&count, stream, sizeof count);
  *runs = count;
  return are_runs_short(count, k) && count <= n - k + 1 ? nullptr : kWrongRuns;
}

}  // namespace

size_t encode_runs(const uint32_t* index, size_t n, size_t k, uint8_t* stream) {
  if (k < kRunsLeast) return encode_rice(index, n, k, stream);
  const size_t runs = count_runs(index, k);
  const bool in_runs = are_runs_short(runs, k);
  const uint32_t count = in_runs ? static_cast<uint32_t>(runs) : 0;
  memcpy(stream, &count, kRunsHead);
  if (!in_runs) return kRunsHead + encode_rice(index, n, k, stream + kRunsHead);

  // Written at every index, and left behind where a run ends: no branch that a processor could guess wrong.
  const std::unique_ptr<uint32_t[]> starts(new uint32_t[2 * runs]);
  uint32_t* const lasts = starts.get() + runs;
  size_t run = 0;
  starts[0] = index[0];
  for (size_t j = 1; j < k; ++j) {
    lasts[run] = static_cast<uint32_t>(j - 1);
    run += index[j] != index[j - 1] + 1;
    // Inside of a run this is the run's own start again.
    starts[run] = index[j] - static_cast<uint32_t>(j);
  }
  size_t bytes = kRunsHead + encode_rice(starts.get(), n - k + 1, runs, stream + kRunsHead);
  return bytes + encode_rice(lasts, k - 1, runs - 1, stream + bytes);
}

Fault measure_runs(const uint8_t* stream, size_t available, size_t n, size_t k, size_t* bytes) {
  *bytes = 0;
  if (k < kRunsLeast) return measure_rice(stream, available, n, k, bytes);
  size_t runs, first, second = 0;
  if (Fault fault = read_count(stream, available, n, k, &runs)) return fault;
  stream += kRunsHead;
  available -= kRunsHead;
  if (Fault fault = runs == 0 ? measure_rice(stream, available, n, k, &first)
                              : measure_rice(stream, available, n - k + 1, runs, &first)) {
    return fault;
  }
  if (runs > 0) {
    if (Fault fault = measure_rice(stream + first, available - first, k - 1, runs - 1, &second)) return fault;
  }
  *bytes = kRunsHead + first + second;
  return nullptr;
}

Fault RunsReader::start() {
  if (k_ < kRunsLeast) return single_.start();
  if (Fault fault = read_count(stream_, bytes_, n_, k_, &runs_)) return fault;
  const uint8_t* stream = stream_ + kRunsHead;
  const size_t bytes = bytes_ - kRunsHead;
  in_runs_ = runs_ > 0;
  if (!in_runs_) {
    single_ = RiceReader(stream, bytes, n_, k_);
    return single_.start();
  }
  size_t first;
  if (Fault fault = measure_rice(stream, bytes, n_ - k_ + 1, runs_, &first)) return fault;
  starts_ = RiceReader(stream, first, n_ - k_ + 1, runs_);
  ends_ = RiceReader(stream + first, bytes - first, k_ - 1, runs_ - 1);
  if (Fault fault = starts_.start()) return fault;
  return ends_.start();
}

Fault RunsReader::read_single(uint32_t* index, size_t count) {
  if (Fault fault = single_.read(index, count)) return fault;
  if (k_ < kRunsLeast || count == 0) return nullptr;
  single_runs_ += count_runs(index, count) - (done_ > 0 && index[0] == last_index_);
  last_index_ = index[count - 1] + size_t{1};
  done_ += count;
  return nullptr;
}

Fault RunsReader::fill() {
  const size_t left = runs_ - runs_read_;
  filled_ = std::min(kAtOnce, left);
  at_ = 0;
  if (filled_ == 0) return kWrongCount;
  if (Fault fault = starts_.read(start_, filled_)) return fault;
  const bool is_end = filled_ == left;
  if (Fault fault = ends_.read(last_, filled_ - is_end)) return fault;
  if (is_end) last_[filled_ - 1] = static_cast<uint32_t>(k_ - 1);
  runs_read_ += filled_;
  return nullptr;
}

Fault RunsReader::read(uint32_t* index, size_t count) {
  if (!in_runs_) return read_single(index, count);
  const size_t end = done_ + count;
  size_t done = done_;
  while (done < end) {
    if (at_ == filled_) {
      if (Fault fault = fill()) return fault;
    }
    // Starts stay below n - k + 1 and numbers below k, so their sum stays below n.
    const size_t next = last_[at_] + size_t{1}, length = std::min(next, end) - done;
    write_run(index, start_[at_] + static_cast<uint32_t>(done), length, end - done);
    index += length;
    done += length;
    at_ += done == next;
  }
  done_ = done;
  return nullptr;
}

Fault RunsReader::finish() const {
  if (in_runs_) {
    if (Fault fault = starts_.finish()) return fault;
    return ends_.finish();
  }
  if (Fault fault = single_.finish()) return fault;
  return k_ < kRunsLeast || !are_runs_short(single_runs_, k_) ? nullptr : kWrongRuns;
}

}  // namespace tersegrad::index
