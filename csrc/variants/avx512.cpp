#include "table.h"

TERSEGRAD_DEFINE_KERNELS(avx512)
