// The kernels and their launches, on the host.
#include "codec.cu"  // NOLINT: the very same source
