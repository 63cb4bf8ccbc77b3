// A codec on the device: the same bytes as codec.h, enqueued. Addresses are the device's; nothing here waits, allocates
// or touches the default stream. Plain C++, so that compilers other than nvcc can call it.
#pragma once

#include "../codec.h"

namespace tersegrad::cuda {

// What has no form on the device, or null.
const char* unsupported(const Codec& codec);

// Arithmetic: the same for encode and decode, of so many bodies.
size_t workspace_bytes(const Codec& codec, size_t n, DType dtype, size_t bodies);

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
  uint32_t* last_key;    // or null: as of topk::select, on the device
};

void encode(const Codec& codec, const Encoding& call, const Work& work);
void decode(const Codec& codec, const uint8_t* body, DType dtype, StepSource step, const Output& out, const Work& work);
// out = start + scale * body + scale * body + ... in this order, or with a null start onto what out holds. Out is of
// float32 and `work` for min(count, kBodies) bodies.
void add_many(const Codec& codec, const uint8_t* const* bodies, size_t count, DType dtype, StepSource step,
              const float* start, const Output& out, const Work& work);

// The sum of `count` bodies of Integers, each of `bytes` bytes, code by code. `beyond` is set where it leaves the bits;
// null lets it wrap. More than 16 bodies need `partial`: an int64 for each code, counted up to a whole word of codes.
void add_integers(const uint8_t* const* bodies, size_t count, int bits, size_t bytes, uint8_t* total, int64_t* partial,
                  uint32_t* beyond, void* stream);

void not_zero(const Entries& x, uint32_t* flag, void* stream);    // clears it, or leaves it
void not_finite(const Entries& x, uint32_t* flag, void* stream);  // sets it, or leaves it
// How many entries of x + residual have at least this magnitude, none if it is not finite or `skip` is set; as encode,
// it leaves in `status` which. Its workspace is of count_workspace_bytes.
size_t count_workspace_bytes();
void count_reaching(const Entries& x, float* residual, float threshold, const uint32_t* skip, uint32_t* status,
                    uint32_t* count, const Work& work);
void copy_if(const uint32_t* flag, const uint8_t* source, uint8_t* target, size_t bytes, void* stream);
void zero_if(const uint32_t* flag, uint8_t* target, size_t bytes, void* stream);

// Heads of messages between ranks. `head` is how all of them begin, but for the step, which is put into it.
struct HeadCall {
  const uint8_t* head;
  uint32_t step;
  size_t slots;  // parameters, a mark each
};
// The marks are the statuses of encoders: one for each slot, or with first_piece (slots + 1 of them) the largest of
// several.
void write_head(const HeadCall& call, const uint32_t* status, const uint32_t* first_piece, bool failed,
                uint8_t* message, void* stream);
// Words of a verdict: whether a head is wrong; then of each slot whether it is lost, which all are then, whether no
// rank sent it, and the float with which its sum begins: NaN or 0.
void judge(const HeadCall& call, const uint8_t* messages, size_t stride, size_t ranks, const uint32_t* before,
           uint32_t* verdict, void* stream);
// The counts of ddp/ledger.py: lost in this step, lost, wrong, steps undone.
void note(const uint32_t* verdict, size_t slots, uint32_t* counts, void* stream);
void close_step(uint32_t* counts, bool counted, void* stream);

// What the runtime says; zero without a driver.
int driver_version();
int runtime_version();
int device_count();
const char* launch_error();  // of the last launch, or null

}  // namespace tersegrad::cuda
