// Index streams of form 5, runs: docs/format.md section 3.
#pragma once

#include "rice.h"

namespace tersegrad::index {

// As encode in operation.h.
size_t encode_runs(const uint32_t* index, size_t n, size_t k, uint8_t* stream);
// As measure_rice.
Fault measure_runs(const uint8_t* stream, size_t available, size_t n, size_t k, size_t* bytes);

// As RiceReader.
class RunsReader {
 public:
  RunsReader(const uint8_t* stream, size_t bytes, size_t n, size_t k)
      : stream_(stream), bytes_(bytes), n_(n), k_(k), single_(stream, bytes, n, k), starts_(single_), ends_(single_) {}
  Fault start();
  Fault read(uint32_t* index, size_t count);
  Fault finish() const;

 private:
  Fault read_single(uint32_t* index, size_t count);
  Fault fill();

  static constexpr size_t kAtOnce = 256;  // runs that are decoded together: whole Rice groups

  const uint8_t* stream_;
  size_t bytes_, n_, k_;
  bool in_runs_ = false;
  RiceReader single_, starts_, ends_;
  size_t runs_ = 0, runs_read_ = 0;          // of all; of those, how many were decoded
  size_t at_ = 0, filled_ = 0;               // the run at hand in the buffers, and how many they hold
  size_t done_ = 0;                          // indices that were given
  uint32_t start_[kAtOnce], last_[kAtOnce];  // entries before each run that are not in the set; its last index's number
  size_t single_runs_ = 0, last_index_ = 0;  // single: runs so far; one more than the index before
};

}  // namespace tersegrad::index
