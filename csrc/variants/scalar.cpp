#include "table.h"

TERSEGRAD_DEFINE_KERNELS(scalar)
