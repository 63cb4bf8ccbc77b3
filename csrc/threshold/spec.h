// Entries above a threshold, and the threshold that a share of them reaches: docs/format.md, codec 16. The magnitudes
// above a high level are near a generalized Pareto distribution, whose two parameters follow from two moments. All of
// it is + - * / and sqrt on float64, so that every machine finds the same threshold.
#pragma once

#include "../bits.h"

namespace tersegrad {

constexpr double kLog2 = 0.6931471805599453;

// The natural logarithm of a number from 1: a power of two times m in [sqrt(1/2), sqrt(2)), and log(m) by the series of
// the area hyperbolic tangent of s = (m - 1) / (m + 1).
TG_SPEC double log_of(double x) {
  int exponent;
  double m = frexp(x, &exponent);
  if (m < 0.7071067811865476) {
    m = m * 2;
    exponent = exponent - 1;
  }
  const double s = (m - 1) / (m + 1), square = s * s;
  double sum = 0;
  for (int j = 21; j > 0; j -= 2) sum = sum * square + 1.0 / j;
  return 2 * s * sum + exponent * kLog2;
}

// e^x for |x| below 100.
TG_SPEC double exp_of(double x) {
  const double power = floor(x / kLog2 + 0.5), rest = x - power * kLog2;
  double sum = 1;
  for (int j = 14; j > 0; --j) sum = 1 + rest * sum / j;
  return ldexp(sum, static_cast<int>(power));
}

// How far above the level a share 1 / ratio of the entries above it reaches, when the mean and the variance of their
// distances to it are these.
TG_SPEC double pareto_excess(double mean, double variance, double ratio) {
  const double log_ratio = log_of(ratio);
  if (!(variance > 0 && variance <= 1e300)) return mean * log_ratio;
  const double shape_of_moments = mean * mean / variance;
  double shape = 0.5 * (1 - shape_of_moments);
  const double scale = 0.5 * mean * (shape_of_moments + 1);
  if (shape < -2) shape = -2;
  if (shape > -1e-6 && shape < 1e-6) return scale * log_ratio;
  return scale / shape * (exp_of(shape * log_ratio) - 1);
}

// The search for a threshold that k of n entries reach. Levels rise towards it, each from a fit to what lies above the
// last; one that too few reach closes a bracket, in which the logarithm of the count is taken as linear.
struct ThresholdSearch {
  uint64_t k;
  float low, high;         // the highest level that k entries or more reach, the lowest that fewer do
  uint64_t above, beyond;  // how many reach low and high
  double mean, variance;   // of the distances of those above to low
  bool bracketed;
  int rounds;
};

constexpr int kThresholdRounds = 8;
constexpr int kFullRounds = 4;                               // of them, at most, over all entries
constexpr float kLeastThreshold = 1.40129846432481707e-45f;  // 2^-149: zeros are never sent

TG_SPEC ThresholdSearch start_search(uint64_t n, uint64_t k, double sum, double squares) {
  const double mean = sum / static_cast<double>(n);
  return {k, 0, 0, n, 0, mean, squares / static_cast<double>(n) - mean * mean, false, 0};
}

// The next level to count, or false when the search is over.
TG_SPEC bool next_level(ThresholdSearch& s, float* level) {
  if (s.above <= s.k || s.rounds == kThresholdRounds || (s.low == 0 && s.rounds == kFullRounds)) return false;
  const double ratio = static_cast<double>(s.above) / static_cast<double>(s.k);
  double step;
  if (s.bracketed) {
    const double beyond = s.beyond == 0 ? 0.5 : static_cast<double>(s.beyond);
    const double share = log_of(ratio) / log_of(static_cast<double>(s.above) / beyond);
    step = (static_cast<double>(s.high) - static_cast<double>(s.low)) * share;
  } else {
    // A fit is good for a factor of four beyond what it has seen, and the first one sees mostly what is small.
    const double root = sqrt(ratio), quarter = ratio / 4;
    const double aim = s.rounds > 0 && ratio <= 4 ? ratio : quarter > root ? quarter : root;
    step = pareto_excess(s.mean, s.variance, aim);
  }
  const double wanted = static_cast<double>(s.low) + step;
  *level = wanted < static_cast<double>(float_of(kLargest)) ? static_cast<float>(wanted) : float_of(kLargest);
  s.rounds = s.rounds + 1;
  return *level > s.low && !(s.bracketed && *level >= s.high);
}

// Within a sixteenth of k.
TG_SPEC bool is_near(const ThresholdSearch& s, uint64_t count) {
  return 16 * count >= 15 * s.k && 16 * count <= 17 * s.k;
}

TG_SPEC void reached_by_fewer(ThresholdSearch& s, float level, uint64_t count) {
  s.high = level;
  s.beyond = count;
  s.bracketed = true;
}

TG_SPEC void reached_by_enough(ThresholdSearch& s, float level, uint64_t count, double sum, double squares) {
  s.low = level;
  s.above = count;
  s.mean = sum / static_cast<double>(count);
  s.variance = squares / static_cast<double>(count) - s.mean * s.mean;
}

// Of both ends, the one whose count is nearer to k by its ratio; but rather too many entries than none.
TG_SPEC float found_threshold(const ThresholdSearch& s) {
  const float end = s.bracketed && s.above * s.beyond > s.k * s.k ? s.high : s.low;
  return end > kLeastThreshold ? end : kLeastThreshold;
}

}  // namespace tersegrad
