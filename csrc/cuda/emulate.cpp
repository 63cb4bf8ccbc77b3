#include "emulate.h"

#include <algorithm>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <vector>

#if defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__)
#define TERSEGRAD_OWN_SWITCH 1
#else
#include <ucontext.h>
#endif

namespace tersegrad::emulation {
namespace {

constexpr size_t kStackBytes = 64 * 1024;
constexpr unsigned kWarp = 32;

#if TERSEGRAD_OWN_SWITCH
// Saves what a function must preserve, and the stack pointer in *save; continues where `sp` was saved. swapcontext
// would also save the mask of signals, by a system call each time.
extern "C" void tersegrad_switch(void** save, void* sp);
asm(R"(
.text
.globl tersegrad_switch
.hidden tersegrad_switch
.type tersegrad_switch, @function
tersegrad_switch:
  endbr64
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size tersegrad_switch, .-tersegrad_switch
)");

class Context {
 public:
  void start(char* stack, void (*entry)()) {
    auto* top = reinterpret_cast<void**>(stack + kStackBytes);
    top[-1] = nullptr;
    top[-2] = reinterpret_cast<void*>(entry);
    std::fill(top - 8, top - 2, nullptr);  // the six registers
    sp_ = top - 8;
  }
  void leave_for(Context& other) { tersegrad_switch(&sp_, other.sp_); }

 private:
  void* sp_ = nullptr;
};
#else
class Context {
 public:
  void start(char* stack, void (*entry)()) {
    getcontext(&context_);
    context_.uc_stack.ss_sp = stack;
    context_.uc_stack.ss_size = kStackBytes;
    context_.uc_link = nullptr;
    makecontext(&context_, entry, 0);
  }
  void leave_for(Context& other) { swapcontext(&context_, &other.context_); }

 private:
  ucontext_t context_;
};
#endif

enum class State { ready, at_barrier, at_warp, done };

struct Fiber {
  Context context;
  State state;
  int barriers;    // passed so far
  unsigned turns;  // warp operations so far
};

struct Warp {
  uint32_t value[2][kWarp];  // of this operation and the next, which a fast lane may begin
};

Order chosen = Order::ascending;
int dropped_barrier = -1;
uint32_t shuffle = 1;

Context scheduler;
std::vector<Fiber> fibers;
std::vector<Warp> warps;
std::unique_ptr<char[]> stacks;
unsigned stacks_for = 0;
unsigned current, block, blocks, block_size_, launched;
const std::function<void()>* kernel;

void wait(State state) {
  fibers[current].state = state;
  fibers[current].context.leave_for(scheduler);
}

void fiber_main() {
  (*kernel)();
  wait(State::done);
}

std::vector<unsigned> turns(unsigned count) {
  std::vector<unsigned> order(count);
  std::iota(order.begin(), order.end(), 0u);
  if (chosen == Order::descending) std::reverse(order.begin(), order.end());
  return order;
}

void shuffle_turns(std::vector<unsigned>& order) {
  if (chosen != Order::shuffled) return;
  for (size_t i = order.size(); i > 1; --i) {
    shuffle = shuffle * 1664525u + 1013904223u;
    std::swap(order[i - 1], order[(shuffle >> 8) % i]);
  }
}

bool all_are(unsigned begin, unsigned end, State state) {
  bool any = false;
  for (unsigned t = begin; t < end; ++t) {
    if (fibers[t].state != State::done && fibers[t].state != state) return false;
    any |= fibers[t].state == state;
  }
  return any;
}

bool release(unsigned begin, unsigned end, State state) {
  if (!all_are(begin, end, state)) return false;
  for (unsigned t = begin; t < end; ++t) {
    if (fibers[t].state == state) fibers[t].state = State::ready;
  }
  return true;
}

void run_block(unsigned threads) {
  for (unsigned t = 0; t < threads; ++t) {
    fibers[t].context.start(stacks.get() + t * kStackBytes, fiber_main);
    fibers[t].state = State::ready;
    fibers[t].barriers = 0;
    fibers[t].turns = 0;
  }
  std::vector<unsigned> order = turns(threads);
  for (;;) {
    shuffle_turns(order);
    for (unsigned t : order) {
      if (fibers[t].state != State::ready) continue;
      current = t;
      scheduler.leave_for(fibers[t].context);
    }
    bool progress = release(0, threads, State::at_barrier);
    for (unsigned t = 0; t < threads; t += kWarp) {
      progress |= release(t, std::min(t + kWarp, threads), State::at_warp);
    }
    if (progress) continue;
    for (unsigned t = 0; t < threads; ++t) {
      if (fibers[t].state != State::done) throw std::logic_error("threads of a block wait at different barriers");
    }
    return;
  }
}

}  // namespace

void configure(Order order, int dropped) {
  chosen = order;
  dropped_barrier = dropped;
}

unsigned launches() { return launched; }

void run(unsigned grid, unsigned threads, const std::function<void()>& body) {
  ++launched;
  if (threads > stacks_for) {
    stacks.reset(new char[threads * kStackBytes]);
    stacks_for = threads;
    fibers.resize(threads);
    warps.resize((threads + kWarp - 1) / kWarp);
  }
  kernel = &body;
  blocks = grid;
  block_size_ = threads;
  std::vector<unsigned> order = turns(grid);
  shuffle_turns(order);
  for (unsigned b : order) {
    block = b;
    run_block(threads);
  }
}

Index thread_index() { return {current}; }
Index block_index() { return {block}; }
Index block_size() { return {block_size_}; }
Index grid_size() { return {blocks}; }

void sync_threads() {
  if (fibers[current].barriers++ != dropped_barrier) wait(State::at_barrier);
}

void sync_warp() {
  if (fibers[current].barriers++ != dropped_barrier) wait(State::at_warp);
}

const uint32_t* exchange(uint32_t value) {
  uint32_t* slots = warps[current / kWarp].value[fibers[current].turns++ % 2];
  slots[current % kWarp] = value;
  wait(State::at_warp);
  return slots;
}

}  // namespace tersegrad::emulation
