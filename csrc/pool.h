// A small thread pool that survives fork. Tasks are handed out one by one and the caller takes its share, so a busy
// machine costs no more than running alone: nobody waits for a worker that has not started.
#pragma once

#include <cstddef>

namespace tersegrad {

// The number of threads a call may use: as set, or OMP_NUM_THREADS, or the processors this process may run on divided
// by LOCAL_WORLD_SIZE; at least 1.
int thread_count();
void set_thread_count(int count);  // 0 returns to the default

namespace detail {
void run_tasks(size_t tasks, void (*run)(void* body, size_t task), void* body);
}

// Calls body(task) once for every task below `tasks`, on any thread, in any order; returns when all are done. body must
// not throw.
template <class Body>
void parallel_for(size_t tasks, Body&& body) {
  if (tasks == 1) return body(size_t{0});
  detail::run_tasks(tasks, [](void* b, size_t task) { (*static_cast<Body*>(b))(task); }, &body);
}

// IEEE arithmetic for the calling thread until the end of the scope: round to nearest, denormals kept, whatever
// torch.set_flush_denormal or another library has set.
class FloatEnvironment {
 public:
  FloatEnvironment();
  ~FloatEnvironment();
  FloatEnvironment(const FloatEnvironment&) = delete;
  FloatEnvironment& operator=(const FloatEnvironment&) = delete;

 private:
  unsigned long saved_;
};

}  // namespace tersegrad
