// The entries of a whole tensor whose magnitude reaches a threshold: docs/format.md, codec 16.
#pragma once

#include "../topk/operation.h"

namespace tersegrad::threshold {

enum class Selected { ok, not_finite, out_of_memory };

// The entries with |x + residual| >= `value`, in order. A residual is left holding x + residual. An infinity or NaN is
// among them.
Selected select(const Entries& x, float* residual, float value, topk::Candidates& out);

// The same with a threshold that about k entries reach, found by fitting their distribution. 0 < k <= x.count.
Selected select_about(const Entries& x, float* residual, size_t k, topk::Candidates& out);

}  // namespace tersegrad::threshold
