// Fills one Kernels from the families. Each variant includes this file once, compiled with its own flags; everything it
// instantiates has internal linkage.
#pragma once

#include "../cast/kernel.h"
#include "../crc/kernel.h"
#include "../integers/kernel.h"
#include "../kernels.h"
#include "../quantize/kernel.h"
#include "../rotate/kernel.h"
#include "../sign/kernel.h"
#include "../threshold/kernel.h"
#include "../topk/kernel.h"

#define TG_PER_DTYPE(kernel) {kernel<DType::float32>, kernel<DType::float16>, kernel<DType::bfloat16>}
#define TG_PER_WIDTH(kernel) {kernel<8>, kernel<4>, kernel<2>}
#define TG_PER_INTEGER(kernel) {kernel<8>, kernel<16>, kernel<32>}
#define TG_PER_ROTATION_WIDTH(kernel) {kernel<1>, kernel<2>, kernel<3>, kernel<4>}

#define TERSEGRAD_DEFINE_KERNELS(variant)        \
  namespace tersegrad {                          \
  extern const Kernels variant##_kernels;        \
  const Kernels variant##_kernels = {            \
      #variant,                                  \
      TG_PER_DTYPE(max_key),                     \
      TG_PER_DTYPE(widen),                       \
      TG_PER_DTYPE(accumulate),                  \
      TG_PER_DTYPE(narrow),                      \
      TG_PER_DTYPE(round_values),                \
      multiply,                                  \
      add_scaled,                                \
      stream,                                    \
      end_stream,                                \
      subtract,                                  \
      TG_PER_DTYPE(collect),                     \
      TG_PER_DTYPE(accumulate_collect),          \
      band,                                      \
      count_at_least,                            \
      compact,                                   \
      TG_PER_WIDTH(quantize),                    \
      TG_PER_WIDTH(dequantize),                  \
      TG_PER_INTEGER(to_integers),               \
      TG_PER_INTEGER(from_integers),             \
      pack_signs,                                \
      unpack_signs,                              \
      rotation_signs,                            \
      rotate_block,                              \
      unrotate_block,                            \
      TG_PER_ROTATION_WIDTH(quantize_rotated),   \
      TG_PER_ROTATION_WIDTH(dequantize_rotated), \
      sum_of_squares,                            \
      moments,                                   \
      crc32c,                                    \
  };                                             \
  }
