#include "dispatch.h"

#include <atomic>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace tersegrad {

extern const Kernels scalar_kernels;
extern const Kernels avx2_kernels;
extern const Kernels avx512_kernels;
extern const Kernels neon_kernels;

namespace {

#if defined(__x86_64__)
// Asked of the processor itself: compilers' own feature tests disagree with each other. The operating system must save
// the wide registers too (XCR0), or using them kills the process.
struct Cpu {
  bool avx2 = false, avx512 = false;

  Cpu() {
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return;
    const unsigned sse42 = 1u << 20, popcnt = 1u << 23, osxsave = 1u << 27, avx = 1u << 28, f16c = 1u << 29;
    const unsigned first = sse42 | popcnt | osxsave | avx | f16c;
    if ((c & first) != first) return;
    unsigned low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    if ((low & 0x6u) != 0x6u) return;  // xmm and ymm state
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return;
    const unsigned bmi1 = 1u << 3, avx2_bit = 1u << 5, bmi2 = 1u << 8;
    const unsigned f = 1u << 16, dq = 1u << 17, bw = 1u << 30, vl = 1u << 31;
    unsigned ea, eb, ec, ed;
    bool lzcnt = __get_cpuid(0x80000001u, &ea, &eb, &ec, &ed) && (ec & (1u << 5));
    avx2 = lzcnt && (b & (bmi1 | avx2_bit | bmi2)) == (bmi1 | avx2_bit | bmi2);
    bool zmm = (low & 0xe6u) == 0xe6u;  // opmask and zmm state
    avx512 = avx2 && zmm && (b & (f | dq | bw | vl)) == (f | dq | bw | vl);
  }
};
#endif

std::vector<const Kernels*> supported() {
  std::vector<const Kernels*> list;
#if defined(__x86_64__)
  Cpu cpu;
  if (cpu.avx512) list.push_back(&avx512_kernels);
  if (cpu.avx2) list.push_back(&avx2_kernels);
#elif defined(__aarch64__)
  list.push_back(&neon_kernels);
#endif
  list.push_back(&scalar_kernels);
  return list;
}

std::atomic<const Kernels*> in_use{nullptr};

}  // namespace

const std::vector<const Kernels*>& available() {
  static const std::vector<const Kernels*> list = supported();
  return list;
}

const Kernels& active() {
  const Kernels* kernels = in_use.load(std::memory_order_acquire);
  if (kernels == nullptr) {
    kernels = available().front();
    in_use.store(kernels, std::memory_order_release);
  }
  return *kernels;
}

bool use(const std::string& name) {
  for (const Kernels* kernels : available()) {
    if (name == kernels->name) {
      in_use.store(kernels, std::memory_order_release);
      return true;
    }
  }
  return false;
}

}  // namespace tersegrad
