// Sixteen numbers at a time, on every machine: vectors, their sums in one fixed order, exponentials, and how log-probs
// are read. Only additions, multiplications, comparisons and square roots, each rounded as IEEE 754 says, none
// contracted: so SSE2, AVX2, AVX-512 and NEON give the same bits.
#pragma once
#include <stdint.h>
#include <string.h>

constexpr int LANES = 16;
typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef uint8_t Bytes __attribute__((vector_size(16)));
typedef uint8_t Flags __attribute__((vector_size(64)));  // of 64 slots
typedef uint16_t Shorts __attribute__((vector_size(32)));
typedef double Doubles __attribute__((vector_size(128)));
typedef int64_t Longs __attribute__((vector_size(128)));

constexpr double LOG2 = 0.693147180559945309417232121458;
constexpr double INF = __builtin_inf();

template <class To, class From> inline To bits_of(From x) {
  static_assert(sizeof(To) == sizeof(From), "bits are kept, not converted");
  To y;
  memcpy(&y, &x, sizeof y);
  return y;
}

inline Floats floats(float x) { return Floats{} + x; }
inline Ints ints(int32_t x) { return Ints{} + x; }
inline Doubles doubles(double x) { return Doubles{} + x; }
inline Doubles widened(Floats x) { return __builtin_convertvector(x, Doubles); }
inline Floats kept(Ints where, Floats x) { return (Floats)(where & (Ints)x); }  // 0 elsewhere
inline Doubles kept(Ints where, Doubles x) { return (Doubles)(__builtin_convertvector(where, Longs) & (Longs)x); }
inline Floats absolute(Floats x) { return (Floats)((Ints)x & ints(0x7fffffff)); }
inline Doubles absolute(Doubles x) { return x > -x ? x : -x; }
// Of a NaN and a number the second is taken.
template <class V> inline V larger(V a, V b) { return a > b ? a : b; }
template <class V> inline V smaller(V a, V b) { return a < b ? a : b; }
#if defined(__clang__)
inline bool any(Ints x) { return __builtin_reduce_or(x) != 0; }
inline uint32_t lanes_of(Ints where) {  // a bit a lane
  typedef bool Bits __attribute__((ext_vector_type(LANES)));
  return bits_of<uint16_t>(__builtin_convertvector(where, Bits));
}
inline int64_t count(Ints where) { return -(int64_t)__builtin_reduce_add(where); }  // True is -1
inline int64_t count(Longs where) { return -__builtin_reduce_add(where); }
inline int64_t count(Flags x) { return __builtin_reduce_add((Flags)(x != 0) & 1); }  // at most 64
inline Doubles root(Doubles x) { return __builtin_elementwise_sqrt(x); }
#else  // g++, whose sanitizers the tests use
inline uint32_t lanes_of(Ints where) {
  uint32_t lanes = 0;
  for (int i = 0; i < LANES; i++) lanes |= (uint32_t)(where[i] != 0) << i;
  return lanes;
}
inline bool any(Ints x) { return lanes_of(x) != 0; }
inline int64_t count(Ints where) { return __builtin_popcount(lanes_of(where)); }
inline int64_t count(Longs where) { return count(__builtin_convertvector(where, Ints)); }
inline int64_t count(Flags x) {
  int64_t n = 0;
  for (int i = 0; i < 64; i++) n += x[i] != 0;
  return n;
}
inline Doubles root(Doubles x) {
  for (int i = 0; i < LANES; i++) x[i] = __builtin_sqrt(x[i]);
  return x;
}
#endif

inline float sum(Floats x) {
  typedef float F8 __attribute__((vector_size(32)));
  typedef float F4 __attribute__((vector_size(16)));
  F8 a = __builtin_shufflevector(x, x, 0, 1, 2, 3, 4, 5, 6, 7) +
         __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15);
  F4 b = __builtin_shufflevector(a, a, 0, 1, 2, 3) + __builtin_shufflevector(a, a, 4, 5, 6, 7);
  return (b[0] + b[2]) + (b[1] + b[3]);
}
inline double sum(Doubles x) {
  typedef double D8 __attribute__((vector_size(64)));
  typedef double D4 __attribute__((vector_size(32)));
  D8 a = __builtin_shufflevector(x, x, 0, 1, 2, 3, 4, 5, 6, 7) +
         __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15);
  D4 b = __builtin_shufflevector(a, a, 0, 1, 2, 3) + __builtin_shufflevector(a, a, 4, 5, 6, 7);
  return (b[0] + b[2]) + (b[1] + b[3]);
}
template <class V> inline auto largest(V x) {
  auto m = x[0];
  for (int i = 1; i < LANES; i++) m = x[i] > m ? x[i] : m;
  return m;
}
template <class V> inline auto smallest(V x) { return -largest(-x); }

// e^x = scale + scale * rest, where scale is a power of two and rest is e^y - 1 for a y in [-log(2)/2, log(2)/2]. So
// e^x - 1 = (scale - 1) + scale * rest loses no digits: near x = 0 the scale is 1 and it is the rest.
struct Exponential {
  Floats scale, rest;
  Floats value() const { return scale + scale * rest; }
  Floats complement() const { return (1.0f - scale) - scale * rest; }  // 1 - e^x
};

inline Exponential exponential(Floats x) {  // for x <= 88; 1e-38 for all below -87
  x = larger(x, floats(-87.0f));
  const Floats magic = floats(12582912.0f);  // 1.5 * 2^23: to add it is to round to an integer, in the low bits
  Floats shifted = x * 1.44269504f + magic, n = shifted - magic;
  Floats y = (x - n * 0.693359375f) - n * -2.12194440e-4f;  // log(2) in two parts, the first exact times n
  Floats p = floats(1.9875691500e-4f);  // the coefficients are Cephes's
  p = p * y + 1.3981999507e-3f;
  p = p * y + 8.3334519073e-3f;
  p = p * y + 4.1665795894e-2f;
  p = p * y + 1.6666665459e-1f;
  p = p * y + 5.0000001201e-1f;
  return {(Floats)(((Ints)shifted << 23) + ints(0x3f800000)), p * (y * y) + y};
}

// e^x - 1 for |x| <= log(2)/2: the series, of which the first term that is left out is below 4e-9 of it.
inline Floats less_one(Floats x) {
  Floats p = floats(1 / 40320.0f);
  p = p * x + 1 / 5040.0f;
  p = p * x + 1 / 720.0f;
  p = p * x + 1 / 120.0f;
  p = p * x + 1 / 24.0f;
  p = p * x + 1 / 6.0f;
  p = p * x + 0.5f;
  return x + x * x * p;
}
inline Floats less_one_half(Floats x) {  // the same for |x| <= log(2)/4, with two terms less
  Floats p = floats(1 / 720.0f);
  p = p * x + 1 / 120.0f;
  p = p * x + 1 / 24.0f;
  p = p * x + 1 / 6.0f;
  p = p * x + 0.5f;
  return x + x * x * p;
}

template <class D> struct Whole;
template <> struct Whole<double> { typedef int64_t type; };
template <> struct Whole<Doubles> { typedef Longs type; };

// The same in double, of one number or of sixteen.
template <class D> struct DoubleExponential {
  typedef typename Whole<D>::type I;
  I n;
  D rest;
  D under, over;  // 0 where the value underflows to 0, infinite where it overflows, else 1

  D value() const {  // 2^n in two factors, so that neither it nor a subnormal result is out of range
    I half = n >> 1;
    D p = 1.0 + rest;
    return p * bits_of<D>((half + 1023) << 52) * bits_of<D>((n - half + 1023) << 52) * under * over;
  }
  D less_one() const {  // of x over 700 some large number
    I m = n < -1022 ? I{} - 1022 : n;
    m = m > 1010 ? I{} + 1010 : m;
    D scale = bits_of<D>((m + 1023) << 52);
    return (scale - 1.0) + scale * rest;
  }
};

template <class D> inline DoubleExponential<D> exponential(D x) {
  const D zero = D{}, one = zero + 1.0, high = zero + 709.78, low = zero - 745.0;
  D over = x > high ? zero + INF : one, under = x < low ? zero : one;
  x = x > high ? high : x;
  x = x < low ? low : x;
  D shifted = x * 1.4426950408889634 + 6755399441055744.0, n = shifted - 6755399441055744.0;
  D y = (x - n * 6.93147180369123816490e-01) - n * 1.90821492927058770002e-10;
  D p = zero + 1 / 6227020800.0;
  p = p * y + 1 / 479001600.0;
  p = p * y + 1 / 39916800.0;
  p = p * y + 1 / 3628800.0;
  p = p * y + 1 / 362880.0;
  p = p * y + 1 / 40320.0;
  p = p * y + 1 / 5040.0;
  p = p * y + 1 / 720.0;
  p = p * y + 1 / 120.0;
  p = p * y + 1 / 24.0;
  p = p * y + 1 / 6.0;
  p = p * y + 0.5;
  typedef typename Whole<D>::type I;
  return {(bits_of<I>(shifted) << 32) >> 32, y + y * y * p, under, over};
}
inline double power_of_e(double x) {
  if (!(x - x == 0)) return x > 0 ? INF : x < 0 ? 0.0 : x;
  return exponential(x).value();
}
inline Doubles power_of_e(Doubles x) { return exponential(x).value(); }

// Log-probs as they come. A half is read with its exponent in the place of a float's, then times 2^112.
struct BFloat16 { uint16_t bits; };
struct Float16 { uint16_t bits; };

inline Floats read(const float* p) {
  Floats x;
  memcpy(&x, p, sizeof x);
  return x;
}
inline Doubles read(const double* p) {
  Doubles x;
  memcpy(&x, p, sizeof x);
  return x;
}
inline Floats read(const BFloat16* p) {
  Shorts x;
  memcpy(&x, p, sizeof x);
  return (Floats)(__builtin_convertvector(x, Ints) << 16);
}
inline Floats read(const Float16* p) {
  Shorts x;
  memcpy(&x, p, sizeof x);
  Ints h = __builtin_convertvector(x, Ints), size = h & 0x7fff;
  Ints value = (Ints)((Floats)(size << 13) * 0x1p112f);
  value = size >= 0x7c00 ? value | 0x7f800000 : value;  // infinite, or not a number
  return (Floats)(value | ((h & 0x8000) << 16));
}
inline Ints read(const int32_t* p) {
  Ints x;
  memcpy(&x, p, sizeof x);
  return x;
}
inline Ints read_mask(const uint8_t* p) {
  Bytes x;
  memcpy(&x, p, sizeof x);
  return __builtin_convertvector(x, Ints) != 0;
}
