#include "table.h"

TERSEGRAD_DEFINE_KERNELS(neon)
