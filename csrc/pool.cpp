#include "pool.h"

#include <pthread.h>
#include <sched.h>
#include <time.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <thread>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace tersegrad {
namespace {

constexpr int kMostThreads = 256;

// A positive integer from the environment; OMP_NUM_THREADS may be a list, of which the first counts.
int environment_number(const char* name) {
  const char* text = std::getenv(name);
  long value = text ? std::strtol(text, nullptr, 10) : 0;
  return static_cast<int>(std::clamp(value, 0L, static_cast<long>(kMostThreads)));
}

int default_thread_count() {
  cpu_set_t cpus;
  CPU_ZERO(&cpus);
  int processors = sched_getaffinity(0, sizeof cpus, &cpus) == 0 ? CPU_COUNT(&cpus) : 1;
  int share = std::max(1, processors / std::max(1, environment_number("LOCAL_WORLD_SIZE")));
  int wanted = environment_number("OMP_NUM_THREADS");
  return wanted > 0 ? std::min(wanted, share) : std::min(share, kMostThreads);
}

std::atomic<int> chosen_threads{0};

struct Job {
  void (*run)(void*, size_t);
  void* body;
  size_t tasks;
  std::atomic<size_t> next{0};

  void work() {
    for (size_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) run(body, task);
  }
};

double seconds(clockid_t clock) {
  timespec now{};
  clock_gettime(clock, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

// Whether more threads than one pay. Where the cores are taken, threads wait for each other's turn and a call becomes
// slower than it is alone. The processors that a call really had tell: the time its threads ran over the time it took.
// A call that had too few makes the next ones run alone, ever more of them as it happens again.
class Contention {
 public:
  bool alone() { return calls_alone_ > 0 && calls_alone_-- > 0; }

  void judge(double ran, double took, int threads) {
    double enough = took < kShort ? 1.0 : 0.5 * (1 + threads);  // in a short call, waking up takes a good part
    backoff_ = ran >= enough * took ? 0 : std::clamp(2 * backoff_, 4, 64);
    calls_alone_ = backoff_;
  }

 private:
  static constexpr double kShort = 1e-3;
  int backoff_ = 0, calls_alone_ = 0;
};

class Pool {
 public:
  // False when another call is using the pool, or when one thread is the better choice.
  bool run(Job& job, int threads) {
    std::unique_lock<std::mutex> caller(callers_, std::try_to_lock);
    if (!caller || contention_.alone()) return false;
    double start = seconds(CLOCK_MONOTONIC), ran = seconds(CLOCK_THREAD_CPUTIME_ID);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      while (workers_ < threads - 1 && start_worker()) {
      }
      job_ = &job;
      seats_ = threads - 1;
      workers_ran_ = 0;
      ++generation_;
    }
    wake_.notify_all();
    job.work();
    ran = seconds(CLOCK_THREAD_CPUTIME_ID) - ran;
    std::unique_lock<std::mutex> lock(mutex_);
    job_ = nullptr;  // workers that have not started stay out
    done_.wait(lock, [this] { return busy_ == 0; });
    contention_.judge(ran + workers_ran_, seconds(CLOCK_MONOTONIC) - start, threads);
    return true;
  }

 private:
  bool start_worker() {
    try {
      std::thread([this] { serve(); }).detach();
    } catch (const std::system_error&) {
      return false;  // the caller does the work alone
    }
    ++workers_;
    return true;
  }

  void serve() {
    FloatEnvironment environment;
    size_t seen = 0;
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [&] { return job_ != nullptr && generation_ != seen && seats_ > 0; });
      seen = generation_;
      --seats_;
      ++busy_;
      Job* job = job_;
      lock.unlock();
      double ran = seconds(CLOCK_THREAD_CPUTIME_ID);
      job->work();
      ran = seconds(CLOCK_THREAD_CPUTIME_ID) - ran;
      lock.lock();
      workers_ran_ += ran;
      if (--busy_ == 0) done_.notify_one();
    }
  }

  std::mutex callers_;  // one job at a time; guards contention_
  Contention contention_;
  std::mutex mutex_;  // guards what follows
  std::condition_variable wake_, done_;
  Job* job_ = nullptr;
  size_t generation_ = 0;
  int workers_ = 0, seats_ = 0, busy_ = 0;
  double workers_ran_ = 0;
};

// Never destroyed: its detached workers may outlive main. A forked child has none of them, so it gets a new pool; the
// old one, whose locks may be held for ever, is left behind.
std::atomic<Pool*> pool{nullptr};

Pool& shared_pool() {
  Pool* current = pool.load(std::memory_order_acquire);
  if (current == nullptr) {
    static std::once_flag once;
    std::call_once(once, [] { pthread_atfork(nullptr, nullptr, [] { pool.store(nullptr); }); });
    auto* fresh = new Pool;
    if (pool.compare_exchange_strong(current, fresh)) return *fresh;
    delete fresh;
  }
  return *current;
}

}  // namespace

int thread_count() {
  int chosen = chosen_threads.load(std::memory_order_relaxed);
  if (chosen > 0) return chosen;
  static const int fallback = default_thread_count();
  return fallback;
}

void set_thread_count(int count) { chosen_threads.store(std::clamp(count, 0, kMostThreads)); }

namespace detail {

void run_tasks(size_t tasks, void (*run)(void*, size_t), void* body) {
  Job job{run, body, tasks};
  int threads = static_cast<int>(std::min<size_t>(static_cast<size_t>(thread_count()), tasks));
  if (threads <= 1 || !shared_pool().run(job, threads)) job.work();
}

}  // namespace detail

#if defined(__x86_64__)
FloatEnvironment::FloatEnvironment() : saved_(_mm_getcsr()) { _mm_setcsr(0x1f80); }
FloatEnvironment::~FloatEnvironment() { _mm_setcsr(static_cast<unsigned>(saved_)); }
#elif defined(__aarch64__)
FloatEnvironment::FloatEnvironment() {
  __asm__ volatile("mrs %0, fpcr" : "=r"(saved_));
  __asm__ volatile("msr fpcr, %0" : : "r"(0ul));
}
FloatEnvironment::~FloatEnvironment() { __asm__ volatile("msr fpcr, %0" : : "r"(saved_)); }
#else
FloatEnvironment::FloatEnvironment() : saved_(0) {}
FloatEnvironment::~FloatEnvironment() = default;
#endif

}  // namespace tersegrad
