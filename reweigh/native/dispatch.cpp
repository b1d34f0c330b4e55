// Picks the build of the kernel that this processor runs. The arithmetic is the same in all, to the last bit.
#include "kernel.h"

#define API extern "C" __attribute__((visibility("default")))
#if defined(_WIN32)
#undef API
#define API extern "C" __declspec(dllexport)
#endif
#define DECLARE(S)                                                         \
  extern "C" int32_t rw_stats##S(const Input*, double*, double*, double*); \
  extern "C" int32_t rw_fold##S(const Input*, int32_t, double*, int64_t*); \
  extern "C" int32_t rw_count##S(const Input*, int64_t*);                  \
  extern "C" int32_t rw_spread##S(const Input*, const void*, void*);       \
  extern "C" int32_t rw_where##S(const Input*, const int64_t*, const Tables*, const Places*); \
  extern "C" int32_t rw_weigh##S(const Input*, const float*, const Trial*, int64_t);

DECLARE(_base)
static int32_t limit = 9;  // tests set it

#if defined(__x86_64__)
DECLARE(_v3)
DECLARE(_v4)

static void cpuid(uint32_t leaf, uint32_t* r) {
  __asm__ volatile("cpuid" : "=a"(r[0]), "=b"(r[1]), "=c"(r[2]), "=d"(r[3]) : "a"(leaf), "c"(0));
}

// The level of x86-64 that processor and system have: 1, 3 (AVX2) or 4 (AVX-512).
static int32_t detect() {
  uint32_t r[4], low, high;
  cpuid(0, r);
  if (r[0] < 7) return 1;
  cpuid(1, r);
  const uint32_t basic = 1u << 12 | 1u << 22 | 1u << 23 | 1u << 27 | 1u << 28 | 1u << 29;  // FMA, MOVBE, POPCNT, OSXSAVE, AVX, F16C
  if ((r[2] & basic) != basic) return 1;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  if ((low & 0x06) != 0x06) return 1;  // the system saves the wide registers
  cpuid(7, r);
  const uint32_t leaf7 = r[1];
  cpuid(0x80000001, r);
  const uint32_t avx2 = 1u << 3 | 1u << 5 | 1u << 8;  // BMI1, AVX2, BMI2
  if ((leaf7 & avx2) != avx2 || !(r[2] >> 5 & 1)) return 1;  // and LZCNT
  const uint32_t avx512 = 1u << 16 | 1u << 17 | 1u << 28 | 1u << 30 | 1u << 31;  // F, DQ, CD, BW, VL
  return (leaf7 & avx512) == avx512 && (low & 0xe0) == 0xe0 ? 4 : 3;
}
static int32_t level() {
  static int32_t found = 0;  // two threads that ask at once write the same
  if (!found) found = detect();
  return found < limit ? found : limit;
}
#define CALL(f, ...) \
  (level() >= 4 ? f##_v4(__VA_ARGS__) : level() == 3 ? f##_v3(__VA_ARGS__) : f##_base(__VA_ARGS__))
#else
static int32_t level() { return 0; }
#define CALL(f, ...) f##_base(__VA_ARGS__)
#endif

API int32_t rw_version() { return VERSION; }
API int32_t rw_level(int32_t most) {  // and limits it
  limit = most;
  return level();
}
API int32_t rw_stats(const Input* in, double* token, double* sequence, double* turn) {
  return CALL(rw_stats, in, token, sequence, turn);
}
API int32_t rw_fold(const Input* in, int32_t all, double* out, int64_t* odd) { return CALL(rw_fold, in, all, out, odd); }
API int32_t rw_count(const Input* in, int64_t* out) { return CALL(rw_count, in, out); }
API int32_t rw_spread(const Input* in, const void* weights, void* out) { return CALL(rw_spread, in, weights, out); }
API int32_t rw_where(const Input* in, const int64_t* buckets, const Tables* tables, const Places* out) {
  return CALL(rw_where, in, buckets, tables, out);
}
API int32_t rw_weigh(const Input* in, const float* ratios, const Trial* trials, int64_t many) {
  return CALL(rw_weigh, in, ratios, trials, many);
}
