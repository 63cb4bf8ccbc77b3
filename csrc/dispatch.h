// Which kernels this processor can run, and which are in use.
#pragma once

#include <string>
#include <vector>

#include "kernels.h"

namespace tersegrad {

// The variants this processor supports, best first; the last is "scalar".
const std::vector<const Kernels*>& available();

// Makes a variant active for the whole process; false if it is not available.
bool use(const std::string& name);

}  // namespace tersegrad
