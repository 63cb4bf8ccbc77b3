// A codec on the device: the same bytes as codec.h, enqueued. Addresses are the device's; nothing here waits, allocates
// or touches the default stream. Plain C++, so that compilers other than nvcc can call it.
#pragma once

#include "../codec.h"

namespace tersegrad::cuda {

// What has no form on the device, or null.
const char* unsupported(const Codec& codec);

// Arithmetic: the same for encode and decode.
size_t workspace_bytes(const Codec& codec, size_t n, DType dtype);

struct Work {
  void* memory;  // aligned to 16 bytes
  void* stream;
};

struct StepSource {
  uint32_t value;
  const uint32_t* at;  // on the device, or null; it is what counts
};

struct Encoding {
  Entries x;
  float* residual;  // or null
  DType dtype;
  StepSource step;
  uint32_t* status;      // Status of call.cuh
  const uint32_t* skip;  // or null: where it is not zero, nothing is to be sent
  uint8_t* body;         // aligned to 16 bytes
  bool checked;          // x is finite, or the residual may be lost
};

void encode(const Codec& codec, const Encoding& call, const Work& work);
void decode(const Codec& codec, const uint8_t* body, DType dtype, StepSource step, const Output& out, const Work& work);

void is_zero(const Entries& x, uint32_t* flag, void* stream);     // flag = whether
void not_finite(const Entries& x, uint32_t* flag, void* stream);  // sets it, or leaves it
// How many entries of x + residual have at least this magnitude, none if it is not finite or `skip` is set; as encode,
// it leaves in `status` which. Its workspace is of count_workspace_bytes.
size_t count_workspace_bytes();
void count_reaching(const Entries& x, float* residual, float threshold, const uint32_t* skip, uint32_t* status,
                    uint32_t* count, const Work& work);
void copy_if(const uint32_t* flag, const uint8_t* source, uint8_t* target, size_t bytes, void* stream);
void zero_if(const uint32_t* flag, uint8_t* target, size_t bytes, void* stream);

// What the runtime says; zero without a driver.
int driver_version();
int runtime_version();
int device_count();
const char* launch_error();  // of the last launch, or null

}  // namespace tersegrad::cuda
