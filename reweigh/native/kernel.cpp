// One walk over the tokens of a batch that makes all of RatioStats (reweigh/stats/sums.py says what each sum is, and
// computes the same in torch), and two small ones: sums by sequence for estimators, and weights spread over tokens.
//
// Near and far. A token is near if its log ratio l and its log mu are below half of log 2 in size, as nearly all are. For
// near tokens nothing can overflow, e^l needs no range reduction, and every r = e^l lies in one of the two cells of the
// grid around 1. So they are summed sixteen at a time in float32, as r^k - 1, which keeps the digits of a small gap and
// makes a slot without a token (l = 0) add nothing. All others go to a list that is worked off in double, each with a
// shift against overflow and a cell of its own. The result does not depend on which way a token went, but by rounding.
#include "kernel.h"
#include "lanes.h"

#include <stdlib.h>

#ifndef SUFFIX
#define SUFFIX _base
#endif
#define JOIN2(a, b) a##b
#define JOIN(a, b) JOIN2(a, b)
#define ENTRY(name) extern "C" __attribute__((visibility("hidden"))) JOIN(name, SUFFIX)

inline void* operator new(size_t, void* p) noexcept { return p; }

namespace {

constexpr int BINS = 14, CELLS = 50, TOP = 256, BUCKETS = 64;
constexpr int FIRST_EDGE = 4, LAST_EDGE = 16;   // length bins: edges are 2^4 to 2^16
constexpr int CELL_OF_ONE = 9;                  // a ratio of 1 begins it
constexpr double GRID_TOP = 20 * LOG2;          // log of the largest cap
constexpr float NEAR = 0.3465733f;              // log(2) / 2 = 0.34657359, and a little less
constexpr double TOP_OF_GRID = 1048576;         // 2^20, the largest cap
constexpr double SHIFT_STEP = 16;
constexpr double SAFE = 300;                    // nats: e^300 times e^-300 is far from both ends of a double
constexpr float NOT_A_NUMBER = 1e30f;           // nats, as batch.py has it
constexpr int TILE = 16;                        // vectors that are summed in float32 before double takes over
constexpr int AHEAD = 48;                       // vectors
constexpr int64_t BLOCK_SIZES[3] = {1, 8, 64};  // in vectors: 16, 128 and 1,024 slots

// One level's result: doubles, in the order of RatioStats's fields.
constexpr int MOMENTS = 0, SHIFT = MOMENTS + 13 * BINS, POWERS = SHIFT + BINS, GRID = POWERS + 5 * BINS,
              BLOCKS = GRID + 3 * BINS * CELLS, PEAKS = BLOCKS + 12, LARGEST = PEAKS + 3, CLUSTERS = LARGEST + TOP,
              DROPPED = CLUSTERS + BUCKETS * 7, SIZE = DROPPED + 1;

// Sums over the units of one sequence. HALF to FOURTH are sums of e^(k (l - shift)).
enum { UNITS, L, L2, ABS, BELOW, BELOW2, GAP, LOST, HALF, FIRST, SECOND, THIRD, FOURTH, SUMS };

double exponent_of(int power) { return power ? power : 0.5; }  // of POWERS in sums.py

double shift_below(double l) {  // the largest multiple of 16 up to l, or 0
  if (!(l > 0)) return 0;
  double steps = l / SHIFT_STEP;
  return SHIFT_STEP * (steps < 1e15 ? (double)(int64_t)steps : steps);
}

int bin_of(int64_t length) {
  int bin = 0;
  for (int k = FIRST_EDGE; k <= LAST_EDGE; k++) bin += length >= (int64_t{1} << k);
  return bin;
}

int bucket_of(const int64_t* group, int64_t i) {  // multiplicative hashing, as in sums.py
  uint64_t key = group ? (uint64_t)group[i] * 0x9E3779B97F4A7C1ull : (uint64_t)i << 40;
  return (int)((key >> 40) & (BUCKETS - 1));
}

template <class T> struct Buffer {  // grows, and remembers if it could not
  T* at = nullptr;
  int64_t size = 0, capacity = 0;
  bool failed = false;
  ~Buffer() { free(at); }
  bool make_room(int64_t wanted) {
    if (wanted <= capacity) return true;
    T* grown = (T*)realloc(at, (size_t)(2 * wanted) * sizeof(T));
    if (!grown) return !(failed = true);
    at = grown, capacity = 2 * wanted;
    return true;
  }
};

// The largest 256 of what is pushed. Twice as many are held before the lesser half is thrown away, so a push costs
// little; and once 256 are there, nearly all of what follows is no larger than the least of them and is not pushed.
struct Largest {
  double held[2 * TOP];
  int size = 0;
  double least = -INF;

  void push(double x) {
    if (!(x > least)) return;
    held[size++] = x;
    if (size == 2 * TOP) {
      select();
      size = TOP, least = held[0];
      for (int i = 1; i < TOP; i++) least = held[i] < least ? held[i] : least;
    }
  }
  void select() {  // quickselect: the 256 largest first, in any order
    for (int low = 0, high = size - 1; low < high;) {
      double pivot = held[low + (high - low) / 2];
      int i = low, j = high;
      while (i <= j) {
        while (held[i] > pivot) i++;
        while (held[j] < pivot) j--;
        if (i <= j) { double x = held[i]; held[i++] = held[j]; held[j--] = x; }
      }
      if (TOP - 1 <= j) high = j;
      else if (TOP - 1 >= i) low = i;
      else return;
    }
  }
  void write(double* out) {  // in falling order
    static const int gaps[] = {132, 57, 23, 10, 4, 1};
    for (int gap : gaps)
      for (int i = gap, j; i < size; i++) {
        double x = held[i];
        for (j = i; j >= gap && held[j - gap] < x; j -= gap) held[j] = held[j - gap];
        held[j] = x;
      }
    for (int i = 0; i < TOP; i++) out[i] = i < size ? held[i] : -INF;
  }
};

// Blocks of one size: how many, sums of r^2 and r^4 of the block's ratio, scaled by a shift that only rises.
struct Blocks {
  double number = 0, squares = 0, fourths = 0, shift = 0;
  void raise(double to) {
    if (!(to > shift)) return;
    double down = power_of_e(2 * (shift - to));
    squares *= down, fourths *= down * down, shift = to;
  }
};

struct Level {
  double out[SIZE];
  Largest largest;
  double low = 0, largest_gap = -INF, shift_of_clusters = 0;
  Level() { memset(out, 0, sizeof out); }

  // The grid's cells are half octaves, so that the exponent of r^2 counts them. In the cell over the top only the number
  // is kept.
  void to_grid(int bin, Doubles ratios, int size) {
    const Longs first = Longs{}, last = Longs{} + (CELLS - 1);
    Longs cells = (Longs)(((Longs)(ratios * ratios) >> 52) - (1023 - CELL_OF_ONE));
    cells = smaller(larger(cells, first), last);
    for (int i = 0; i < size; i++) {
      double* at = out + GRID + bin * CELLS + cells[i];
      at[0] += 1;
      if (cells[i] < CELLS - 1) at[BINS * CELLS] += ratios[i], at[2 * BINS * CELLS] += ratios[i] * ratios[i];
    }
  }

  // The grid from sums. r = e^l of near tokens lies in (2^-1/2, 2^1/2), which is the cell that ends at 1 and the one that
  // begins there. Let f = (1 - r)_+. In the lower cell r = 1 - f and in the upper f = 0, so that
  //   number in the lower = #(r < 1),   sum of r = #(r < 1) - sum f,   sum of r^2 = #(r < 1) - 2 sum f + sum f^2;
  // and the upper cell has the rest of all near tokens. All of these sums are wanted in any case.
  void near_to_grid(int bin, double number, double less, double f, double f2, double r, double r2) {
    const double all[3] = {number, r, r2}, lower[3] = {less, less - f, less - 2 * f + f2};
    for (int k = 0; k < 3; k++) {
      double* at = out + GRID + (k * BINS + bin) * CELLS + CELL_OF_ONE;
      const double below = less == number ? all[k] : less > 0 ? lower[k] : 0;  // what is left of equal sums is rounding
      at[-1] += below, at[0] += all[k] - below;
    }
  }

  // Adds a sequence's sums. A bin's powers have one shift, the largest of its sequences', and the clusters the largest of
  // all bins; where it rises, what is there is scaled down.
  void add(const double* sums, double shift, double over, double longer, int64_t tokens, int bucket) {
    const int bin = bin_of(tokens);
    double& own = out[SHIFT + bin];
    if (shift > own) {
      for (int k = 0; k < 5; k++) out[POWERS + k * BINS + bin] *= power_of_e(exponent_of(k) * (own - shift));
      own = shift;
    }
    if (own > shift_of_clusters) {
      double down = power_of_e(shift_of_clusters - own);
      for (int i = 0; i < BUCKETS; i++) out[CLUSTERS + 7 * i + 5] *= down, out[CLUSTERS + 7 * i + 6] *= down * down;
      shift_of_clusters = own;
    }
    double powers[5];
    for (int k = 0; k < 5; k++) {
      powers[k] = sums[HALF + k] * (shift == own ? 1 : power_of_e(exponent_of(k) * (shift - own)));
      out[POWERS + k * BINS + bin] += powers[k];
    }
    const double row[13] = {sums[UNITS],  1,           sums[L], sums[L2],    sums[ABS], sums[BELOW],   sums[BELOW2],
                            sums[GAP],    sums[LOST],  over,    over * over, longer,    (double)tokens};
    for (int k = 0; k < 13; k++) out[MOMENTS + k * BINS + bin] += row[k];
    const double down = own == shift_of_clusters ? 1 : power_of_e(own - shift_of_clusters);
    const double cluster[7] = {sums[UNITS], sums[L],          sums[ABS],               sums[L2],
                               sums[BELOW], powers[1] * down, powers[2] * down * down};
    for (int k = 0; k < 7; k++) out[CLUSTERS + 7 * bucket + k] += cluster[k];
  }

  void write(double* to, bool gaps) {
    double* peaks = out + PEAKS;
    largest.write(out + LARGEST);
    peaks[0] = out[LARGEST], peaks[1] = largest.size ? -low : -INF, peaks[2] = gaps ? largest_gap : -INF;
    memcpy(to, out, sizeof out);
  }
};

// The slots of one sequence, as vectors; what is beyond its end reads as no token. Nothing outside of it is read.
template <class T, bool MASKED> struct Slots {
  const T *pi, *mu, *given;
  const uint8_t* mask;
  int64_t size, whole;  // slots, and vectors that are full
  T last_pi[LANES], last_mu[LANES], last_given[LANES];
  uint8_t last_mask[LANES];

  Slots(const Input& in, int64_t i) {
    const int64_t first = in.offsets ? in.offsets[i] : 0, row = in.offsets ? 0 : i;
    size = in.offsets ? in.offsets[i + 1] - first : in.slots;
    pi = in.pi && !in.given ? (const T*)in.pi + first + row * in.pi_row : nullptr;
    mu = in.mu ? (const T*)in.mu + first + row * in.mu_row : nullptr;
    given = in.given ? (const T*)in.given + first + row * in.given_row : nullptr;
    mask = MASKED ? in.mask + first + row * in.mask_row : nullptr;
    whole = size / LANES;
    const int64_t at = whole * LANES, rest = size - at;
    if (!rest) return;
    memset(last_pi, 0, sizeof last_pi), memset(last_mu, 0, sizeof last_mu), memset(last_given, 0, sizeof last_given);
    memset(last_mask, 0, sizeof last_mask);
    if (pi) memcpy(last_pi, pi + at, (size_t)rest * sizeof(T));
    if (mu) memcpy(last_mu, mu + at, (size_t)rest * sizeof(T));
    if (given) memcpy(last_given, given + at, (size_t)rest * sizeof(T));
    if (MASKED) memcpy(last_mask, mask + at, (size_t)rest);
    else memset(last_mask, 1, (size_t)rest);
  }
  int64_t vectors() const { return (size + LANES - 1) / LANES; }
  const T* part(const T* of, const T* last, int64_t v) const { return v < whole ? of + v * LANES : last; }
  Ints live(int64_t v) const {
    if (v >= whole) return read_mask(last_mask);
    return MASKED ? read_mask(mask + v * LANES) : ints(-1);
  }
};

template <bool GIVEN, class T, bool MASKED>
__attribute__((always_inline)) inline Floats log_ratio(const Slots<T, MASKED>& s, int64_t v) {
  if (GIVEN) return read(s.part(s.given, s.last_given, v));
  return read(s.part(s.pi, s.last_pi, v)) - read(s.part(s.mu, s.last_mu, v));
}

// Asks for what is read some vectors later: several streams at once are more than the processor sees coming.
template <bool GIVEN, class T, bool MASKED>
__attribute__((always_inline)) inline void ahead_of(const Slots<T, MASKED>& s, int64_t v) {
  if (v + AHEAD >= s.whole) return;
  __builtin_prefetch((GIVEN ? s.given : s.pi) + (v + AHEAD) * LANES);
  if (s.mu) __builtin_prefetch(s.mu + (v + AHEAD) * LANES);
}

struct Walk {
  Level token, sequence, turn;
  Blocks blocks[3];
  Buffer<double> small;   // log ratio of each block of 16 slots of a sequence, -inf unless all are tokens
  Buffer<double> ratios;  // e^l of a sequence's far tokens
  bool failed() const { return small.failed || ratios.failed; }
};

// What is summed of one sequence: its far units are added as they come, with a shift that only rises.
struct Sums {
  double at[SUMS] = {};
  double shift = 0;
  void raise(double to) {
    if (!(to > shift)) return;
    for (int k = 0; k < 5; k++) at[HALF + k] *= power_of_e(exponent_of(k) * (shift - to));
    shift = to;
  }
};

// A list of up to 16 far units, and how they are summed.
struct Far {
  double l[LANES], mu[LANES];
  int size = 0;

  // Adds them to a level and to the sums of their sequence, and keeps their ratios if there is a place for them.
  void flush(Level& level, Sums& sums, int bin, Buffer<double>* ratios) {
    if (!size) return;
    double on[LANES] = {};
    for (int i = 0; i < size; i++) on[i] = 1;
    for (int i = size; i < LANES; i++) l[i] = mu[i] = 0;
    const Doubles x = read(l), y = read(mu), unit = read(on), zero = Doubles{};
    const double most = largest(x), least = smallest(x);
    sums.raise(shift_below(most));
    const auto e = exponential(x);
    const Doubles r = e.value(), m = power_of_e(y), f = larger(-e.less_one(), zero);  // (1 - r)_+
    Doubles p = m * r, scaled = r;
    if (most > SAFE || smallest(y) < -SAFE) p = power_of_e(x + y);  // a factor of it may be infinite, or 0
    if (sums.shift > 0) scaled = most > SAFE ? power_of_e(x - sums.shift) : r * power_of_e(-sums.shift);
    scaled *= unit;
    const Doubles squared = scaled * scaled, gap = absolute(p - m) * unit, lost = (1.0 - smaller(p, m)) * unit;
    sums.at[UNITS] += size, sums.at[L] += sum(x), sums.at[L2] += sum(x * x), sums.at[ABS] += sum(absolute(x));
    sums.at[BELOW] += sum(f), sums.at[BELOW2] += sum(f * f), sums.at[GAP] += sum(gap), sums.at[LOST] += sum(lost);
    sums.at[HALF] += sum(root(scaled)), sums.at[FIRST] += sum(scaled), sums.at[SECOND] += sum(squared);
    sums.at[THIRD] += sum(scaled * squared), sums.at[FOURTH] += sum(squared * squared);
    level.to_grid(bin, r, size);
    level.low = least < level.low ? least : level.low;
    const double widest = largest(gap);
    level.largest_gap = widest > level.largest_gap ? widest : level.largest_gap;
    if (most > level.largest.least || level.largest.least < 0)  // 0 stands where there is no unit
      for (int i = 0; i < size; i++) level.largest.push(l[i]);
    if (ratios && ratios->make_room(ratios->size + size)) {
      const Doubles capped = smaller(r, doubles(TOP_OF_GRID));
      memcpy(ratios->at + ratios->size, &capped, (size_t)size * sizeof(double));
      ratios->size += size;
    }
    size = 0;
  }
  void push(double ratio, double log_mu, Level& level, Sums& sums, int bin, Buffer<double>* ratios) {
    l[size] = ratio, mu[size] = log_mu;
    if (++size == LANES) flush(level, sums, bin, ratios);
  }
};

template <class X> X finite(X x) { return x - x == 0 ? x : 0; }

// Near tokens of a sequence, in the order in which they are summed; powers as sums of r^k - 1.
struct Near {
  double number = 0, below = 0;  // tokens; those with r < 1
  double ratios_less_one = 0;    // sum of r - 1
  float low = 0, high = 0;       // smallest and largest l, and 0
};

// Counts the tokens, and leaves out the padding behind the last of them.
template <class T, bool MASKED> int64_t trimmed(Slots<T, MASKED>& s) {
  if (!MASKED) return s.size;
  int64_t tokens = 0, end = 0;
  const int64_t in_place = s.whole * LANES;
  for (int64_t i = 0; i < in_place; i += 64) {
    Flags flags = Flags{};
    memcpy(&flags, s.mask + i, (size_t)(in_place - i < 64 ? in_place - i : 64));
    const int64_t here = count(flags);
    if (here) tokens += here, end = i + 64;
  }
  if (s.size > in_place) {
    const int64_t here = count(read_mask(s.last_mask));
    if (here) return tokens + here;
  }
  if (end < s.size) s.size = end, s.whole = end / LANES;
  return tokens;
}

// Walks a sequence: near tokens sixteen at a time, far ones through the list.
template <class T, bool MASKED, bool GIVEN>
__attribute__((noinline)) Near tokens_of(Walk& w, const Slots<T, MASKED>& s, Sums& sums, int bin) {
  const Floats zero = Floats{};
  enum { N_L, N_L2, N_ABS, N_F, N_F2, N_GAP, N_LOST, N_HALF, N_R, N_R2, N_R3, N_R4, N_BELOW, N_SUMS };
  Doubles total[N_SUMS];
  for (auto& x : total) x = Doubles{};
  Floats low = zero, high = zero, largest_gap = zero;
  int64_t number = 0;
  Far far;
  float least = (float)w.token.largest.least;
  const int64_t vectors = s.vectors();
  for (int64_t v0 = 0; v0 < vectors; v0 += TILE) {
    Floats l1 = zero, l2 = zero, absl = zero, f1 = zero, f2 = zero, gaps = zero, lost = zero;
    Floats halves = zero, r1 = zero, r2 = zero, r3 = zero, r4 = zero;
    Ints below = Ints{}, alive = Ints{};
    const int64_t v1 = v0 + TILE < vectors ? v0 + TILE : vectors;
    for (int64_t v = v0; v < v1; v++) {
      Ints live = s.live(v);
      if (MASKED && __builtin_expect(!any(live), 0)) {  // padding
        w.small.at[v] = -INF;
        continue;
      }
      ahead_of<GIVEN>(s, v);
      Floats l = kept(live, log_ratio<GIVEN>(s, v));
      Floats mu = kept(live, read(s.part(s.mu, s.last_mu, v)));
      const bool full = !any(~live);
      w.small.at[v] = -INF;
      // A NaN fails every comparison, so that it is looked at, too. (In `larger` the log ratio comes second: it stays.)
      Ints plain = (larger(mu, absolute(l)) < NEAR) & (l <= least);
      if (__builtin_expect(any(live & ~plain), 0)) {
        float ratios[LANES], others[LANES];
        int32_t near[LANES];
        memcpy(ratios, &l, sizeof l), memcpy(others, &mu, sizeof mu), memcpy(near, &live, sizeof live);
        for (uint32_t left = lanes_of(live & ~plain); left; left &= left - 1) {
          const int i = __builtin_ctz(left);
          others[i] = finite(others[i]), ratios[i] = finite(ratios[i]);  // as `tame` in batch.py has it
          if (__builtin_fabsf(ratios[i]) < NEAR && others[i] < NEAR) w.token.largest.push(ratios[i]);
          else {
            far.push(ratios[i], others[i], w.token, sums, bin, &w.ratios);
            near[i] = 0;
          }
        }
        if (full) w.small.at[v] = sum(read(ratios));
        least = (float)w.token.largest.least;
        live = read(near);
        l = kept(live, read(ratios)), mu = kept(live, read(others));
      } else if (full) w.small.at[v] = sum(l);
      if (GIVEN) mu = kept((mu - mu) == 0.0f, mu);  // here a NaN need not show in the log ratio
      alive -= live;
      low = smaller(low, l), high = larger(high, l);
      const Floats one_less = less_one(l), half_less = less_one_half(l * 0.5f);
      const Floats squared = one_less * (one_less + 2.0f);  // r^2 - 1
      const Floats f = larger(-one_less, zero);
      const Exponential m = exponential(mu);  // of a slot without a token: 1
      const Floats p = m.value(), gap = p * absolute(one_less);
      largest_gap = larger(largest_gap, gap);
      l1 += l, l2 += l * l, absl += absolute(l), f1 += f, f2 += f * f;
      gaps += gap, lost += m.complement() + p * f;  // 1 - min(pi, mu) = (1 - mu) + mu (1 - r)_+
      halves += half_less, r1 += one_less, r2 += squared;
      r3 += squared + one_less * (squared + 1.0f), r4 += squared * (squared + 2.0f);
      below -= (Ints)(one_less < 0.0f);
    }
    const Floats each[N_SUMS] = {l1, l2, absl, f1, f2, gaps, lost, halves, r1, r2, r3, r4,
                                 __builtin_convertvector(below, Floats)};
    for (int k = 0; k < N_SUMS; k++) total[k] += widened(each[k]);
    number += -count(alive);
  }
  far.flush(w.token, sums, bin, &w.ratios);
  Near near;
  double near_sums[N_SUMS];
  for (int k = 0; k < N_SUMS; k++) near_sums[k] = sum(total[k]);
  near.number = (double)number, near.below = near_sums[N_BELOW], near.ratios_less_one = near_sums[N_R];
  near.low = smallest(low), near.high = largest(high);
  if (number) {
    for (int k = 0; k < 5; k++)
      sums.at[HALF + k] += (near.number + near_sums[N_HALF + k]) *
                           (sums.shift > 0 ? power_of_e(-exponent_of(k) * sums.shift) : 1);
    w.token.near_to_grid(bin, near.number, near.below, near_sums[N_F], near_sums[N_F2],
                         near.number + near_sums[N_R], near.number + near_sums[N_R2]);
    double gap = largest(largest_gap);
    w.token.largest_gap = gap > w.token.largest_gap ? gap : w.token.largest_gap;
    w.token.low = near.low < w.token.low ? near.low : w.token.low;
  }
  static const int into[7] = {L, L2, ABS, BELOW, BELOW2, GAP, LOST};
  for (int k = 0; k < 7; k++) sums.at[into[k]] += near_sums[N_L + k];
  sums.at[UNITS] += near.number;
  return near;
}

// The same for float64: there every token is looked at in double.
template <bool MASKED, bool GIVEN>
__attribute__((noinline)) void wide_tokens_of(Walk& w, const Slots<double, MASKED>& s, Sums& sums, int bin) {
  Far far;
  for (int64_t v = 0; v < s.vectors(); v++) {
    const Ints live = s.live(v);
    const double *pi = s.part(s.pi, s.last_pi, v), *mu = s.part(s.mu, s.last_mu, v);
    const double* given = s.part(s.given, s.last_given, v);
    double block = 0;
    for (int i = 0; i < LANES; i++) {
      if (!live[i]) { block = -INF; continue; }
      const double l = finite(GIVEN ? given[i] : pi[i] - mu[i]);
      block += l;
      far.push(l, finite(mu[i]), w.token, sums, bin, &w.ratios);
    }
    w.small.at[v] = block;
  }
  far.flush(w.token, sums, bin, &w.ratios);
}

// Sum over tokens of (min(r_t, top of the grid) - R)_+, R = min(the sequence's ratio, top of the grid).
//
// Of near tokens, with a = the smallest and b = the largest r: if R <= a, no difference is negative, so that the sum is
// sum (r - 1) + n (1 - R), which is known; if R >= b, all are 0. Only in between the tokens are read again, from the
// cache. As a and b are rounded, the middle is taken wider by a millionth.
template <class T, bool MASKED, bool GIVEN>
double excess_of(const Walk& w, const Slots<T, MASKED>& s, const Near& near, double total) {
  const auto own = exponential(total < GRID_TOP ? total : GRID_TOP);
  const double R = own.value(), R_less_one = own.less_one();
  double over = 0;
  for (int64_t i = 0; i < w.ratios.size; i++) over += w.ratios.at[i] > R ? w.ratios.at[i] - R : 0;
  if (!(near.number > 0)) return over;
  const double a = power_of_e((double)near.low) - 1e-6, b = power_of_e((double)near.high) + 1e-6;
  if (R <= a) return over + (near.ratios_less_one - near.number * R_less_one);
  if (R >= b) return over;
  const Floats zero = Floats{}, base = floats((float)R_less_one);
  Doubles sums = Doubles{};
  const int64_t vectors = s.vectors();
  for (int64_t v0 = 0; v0 < vectors; v0 += TILE) {
    Floats part = zero;
    const int64_t v1 = v0 + TILE < vectors ? v0 + TILE : vectors;
    for (int64_t v = v0; v < v1; v++) {
      const Floats l = log_ratio<GIVEN>(s, v), mu = read(s.part(s.mu, s.last_mu, v));
      Ints inside = s.live(v) & (Ints)(absolute(l) < NEAR);
      // What tokens_of made of a token that is not finite is a near one of ratio 1.
      const Ints odd = s.live(v) & ~(Ints)((l - l) == 0.0f);
      inside = (inside | odd) & ~(Ints)(kept((mu - mu) == 0.0f, mu) >= NEAR);
      part += kept(inside, larger(less_one(kept(inside & ~odd, l)) - base, zero));
    }
    sums += widened(part);
  }
  return over + sum(sums);
}
template <bool MASKED, bool GIVEN>
double excess_of(const Walk& w, const Slots<double, MASKED>&, const Near&, double total) {
  const double R = power_of_e(total < GRID_TOP ? total : GRID_TOP);
  double over = 0;
  for (int64_t i = 0; i < w.ratios.size; i++) over += w.ratios.at[i] > R ? w.ratios.at[i] - R : 0;
  return over;
}

// Whole blocks of 16, 128 and 1,024 slots from the sequence's first on: those whose slots are all tokens.
void blocks_of(Walk& w, int64_t whole) {
  for (int k = 0; k < 3; k++) {
    const int64_t each = BLOCK_SIZES[k], blocks = whole / each;
    Blocks& sums = w.blocks[k];
    if (k) {  // eight blocks of the size before, in place: a block is read before its place is written
      for (int64_t i = 0; i < blocks; i++) {
        double l = 0;
        for (int j = 0; j < 8; j++) l += w.small.at[8 * i + j];
        w.small.at[i] = l;
      }
    }
    double most = 0;
    for (int64_t i = 0; i < blocks; i++) most = w.small.at[i] > most ? w.small.at[i] : most;
    sums.raise(most);
    for (int64_t i = 0; i < blocks; i += LANES) {
      Doubles l = doubles(-INF);
      memcpy(&l, w.small.at + i, (size_t)(blocks - i < LANES ? blocks - i : LANES) * sizeof(double));
      const Longs there = (Longs)(l > -INF);
      const Doubles squares = power_of_e(2.0 * (l - sums.shift));  // of -inf: 0
      sums.number += (double)count(there);
      sums.squares += sum(squares), sums.fourths += sum(squares * squares);
    }
  }
}

// A sequence as one unit of its own level.
void add_sequence(Level& level, double l, double over, int64_t tokens, int bucket) {
  const double shift = shift_below(l), cut = l < GRID_TOP ? l : GRID_TOP;
  const double r = power_of_e(l), f = l < 0 ? -exponential(l).less_one() : 0, scaled = power_of_e(l - shift);
  const double squared = scaled * scaled;
  const double sums[SUMS] = {1, l, l * l, l < 0 ? -l : l, f, f * f, 0, 0,
                             __builtin_sqrt(scaled), scaled, squared, squared * scaled, squared * squared};
  level.to_grid(bin_of(tokens), doubles(r), 1);
  level.largest.push(l);
  level.low = l < level.low ? l : level.low;
  level.add(sums, shift, over, exponential(cut).less_one() * (double)tokens, tokens, bucket);
}

// Turns are runs of slots of one number; a turn is a unit if it has a token. Their values go through the list.
template <class T, bool MASKED, bool GIVEN>
void turns_of(Walk& w, const Slots<T, MASKED>& s, const int64_t* turn, int64_t tokens, int bucket) {
  Far far;
  Sums sums;
  const int bin = bin_of(tokens);
  double l = 0;
  bool some = false;
  for (int64_t v = 0; v < s.vectors(); v++) {
    const Ints live = s.live(v);
    double ratio[LANES];
    if constexpr (sizeof(T) == 8) {
      for (int i = 0; i < LANES; i++)
        ratio[i] = GIVEN ? s.part(s.given, s.last_given, v)[i]
                         : s.part(s.pi, s.last_pi, v)[i] - s.part(s.mu, s.last_mu, v)[i];
    } else {
      const Floats x = log_ratio<GIVEN>(s, v);
      for (int i = 0; i < LANES; i++) ratio[i] = x[i];
    }
    for (int i = 0; i < LANES && v * LANES + i < s.size; i++) {
      const int64_t slot = v * LANES + i;
      if (slot && turn[slot] != turn[slot - 1]) {
        if (some) far.push(l, 0, w.turn, sums, bin, nullptr);
        l = 0, some = false;
      }
      if (live[i]) l += finite(ratio[i]), some = true;
    }
  }
  if (some) far.push(l, 0, w.turn, sums, bin, nullptr);
  far.flush(w.turn, sums, bin, nullptr);
  sums.at[GAP] = sums.at[LOST] = 0;
  w.turn.add(sums.at, sums.shift, 0, 0, tokens, bucket);
}

enum Levels { TOKENS_AND_SEQUENCES = 1, TURNS = 2 };

template <class T, bool MASKED, bool GIVEN> void walk(Walk& w, const Input& in, int levels) {
  for (int64_t i = 0; i < in.sequences && !w.failed(); i++) {
    Slots<T, MASKED> s(in, i);
    const int64_t tokens = trimmed(s);
    if (!tokens) continue;
    const int bucket = bucket_of(in.group, i), bin = bin_of(tokens);
    if (levels & TURNS)
      turns_of<T, MASKED, GIVEN>(w, s, in.turn + (in.offsets ? in.offsets[i] : i * in.slots), tokens, bucket);
    if (!(levels & TOKENS_AND_SEQUENCES)) continue;
    if (!w.small.make_room(s.vectors())) return;
    w.ratios.size = 0;
    Sums sums;
    Near near;
    if constexpr (sizeof(T) == 8) wide_tokens_of<MASKED, GIVEN>(w, s, sums, bin);
    else near = tokens_of<T, MASKED, GIVEN>(w, s, sums, bin);
    const double l = sums.at[L];
    w.token.add(sums.at, sums.shift, 0, 0, tokens, bucket);
    double over;
    if constexpr (sizeof(T) == 8) over = excess_of<MASKED, GIVEN>(w, s, near, l);
    else over = excess_of<T, MASKED, GIVEN>(w, s, near, l);
    add_sequence(w.sequence, l, over, tokens, bucket);
    blocks_of(w, s.whole);
  }
}

// Sums over the tokens of each sequence, for folds of estimators: their number, l, and if asked for (l^2, k3, the
// largest and the smallest l). A log ratio that is not finite, or of a placeholder, counts as 0, and in `odd`.
template <class T, bool MASKED, bool GIVEN, bool ALL> int64_t fold(const Input& in, double* out) {
  int64_t odd = 0;
  for (int64_t i = 0; i < in.sequences; i++) {
    const Slots<T, MASKED> s(in, i);
    int64_t number = 0;
    Doubles total = Doubles{}, squares = Doubles{}, k3 = Doubles{};
    Doubles low = doubles(INF), high = doubles(-INF);
    const int64_t vectors = s.vectors();
    for (int64_t v0 = 0; v0 < vectors; v0 += TILE) {
      const int64_t v1 = v0 + TILE < vectors ? v0 + TILE : vectors;
      Ints alive = Ints{};
      Floats part = Floats{}, peak = Floats{};
      if (MASKED) {  // of padding the mask alone is read
        Ints some = Ints{};
        for (int64_t v = v0; v < v1; v++) some |= s.live(v);
        if (!any(some)) continue;
      }
      for (int64_t v = v0; v < v1; v++) {
        Ints live = s.live(v);
        if constexpr (sizeof(T) == 8 || ALL) {
          if (!any(live)) continue;
          Doubles x;
          if constexpr (sizeof(T) == 8) {
            const T *pi = s.part(s.pi, s.last_pi, v), *mu = s.part(s.mu, s.last_mu, v);
            const T* given = s.part(s.given, s.last_given, v);
            for (int j = 0; j < LANES; j++) x[j] = GIVEN ? given[j] : pi[j] - mu[j];
          } else x = widened(log_ratio<GIVEN>(s, v));
          const Longs here = __builtin_convertvector(live, Longs), there = here & (Longs)(absolute(x) < (double)NOT_A_NUMBER);
          odd += count(here & ~there);
          const Doubles l = (Doubles)(there & (Longs)x);
          total += l;
          if (ALL) {
            const auto e = exponential(l);
            const Doubles less_one = l > 700.0 ? e.value() : e.less_one();
            squares += l * l, k3 += less_one - l;
            low = here ? smaller(low, l) : low, high = here ? larger(high, l) : high;
          }
        } else {
          ahead_of<GIVEN>(s, v);
          const Floats x = log_ratio<GIVEN>(s, v), l = kept(live, x);
          part += l, peak = larger(peak, absolute(l));  // a NaN may leave the peak; it stays in the sum
        }
        alive -= live;
      }
      if constexpr (!(sizeof(T) == 8 || ALL)) {
        const Doubles wide = widened(part);
        if (__builtin_expect(any(~(Ints)((part - part) == 0.0f) | ~(Ints)(peak < NOT_A_NUMBER)), 0)) {  // look at each
          Floats careful = Floats{};
          for (int64_t v = v0; v < v1; v++) {
            const Floats x = log_ratio<GIVEN>(s, v);
            const Ints live = s.live(v), there = live & (Ints)(absolute(x) < NOT_A_NUMBER);
            odd += count(live & ~there);
            careful += kept(there, x);
          }
          total += widened(careful);
        } else total += wide;
      }
      number += -count(alive);
    }
    double* row = out + i * (ALL ? 6 : 2);
    row[0] = (double)number, row[1] = sum(total);
    if (ALL) row[2] = sum(squares), row[3] = sum(k3), row[4] = largest(high), row[5] = smallest(low);
  }
  return odd;
}

// out[slot] = w[sequence] where there is a token, else 0.
template <class W, class V> void spread(const Input& in, const W* weights, W* out) {
  for (int64_t i = 0; i < in.sequences; i++) {
    const int64_t first = in.offsets ? in.offsets[i] : i * in.slots;
    const int64_t size = in.offsets ? in.offsets[i + 1] - first : in.slots;
    const uint8_t* mask = in.mask ? in.mask + (in.offsets ? first : i * in.mask_row) : nullptr;
    W* to = out + first;
    const V all = V{} + weights[i];
    int64_t j = 0;
    for (; j + LANES <= size; j += LANES) {
      const V x = mask ? kept(read_mask(mask + j), all) : all;
      memcpy(to + j, &x, sizeof x);
    }
    for (; j < size; j++) to[j] = !mask || mask[j] ? weights[i] : 0;
  }
}

// Whether no sequence reaches beyond the slots. Nothing is read before it is known.
bool sound(const Input& in) {
  if (in.sequences < 0 || in.slots < 0) return false;
  if (!in.offsets) return in.pi_row >= 0 && in.mu_row >= 0 && in.given_row >= 0 && in.mask_row >= 0;
  int64_t last = 0;
  for (int64_t i = 0; i <= in.sequences; i++) {
    if (in.offsets[i] < last || in.offsets[i] > in.slots) return false;
    last = in.offsets[i];
  }
  return true;
}


// Whether it is float32 ratios of a vector's runs, as `records.h` reads.
bool of_records(const Input& in) {
  return sound(in) && in.offsets && in.kind == FLOAT32 && (!in.slots || (in.given && in.mask));
}

#include "records.h"

}  // namespace

// The levels' results, SIZE doubles each; a null one is not wanted.
ENTRY(int32_t rw_stats)(const Input* in, double* token, double* sequence, double* turn) {
  if (!sound(*in)) return BAD_OFFSETS;
  void* place = malloc(sizeof(Walk));
  if (!place) return NO_MEMORY;
  Walk* w = new (place) Walk();
  const int levels = (token || sequence ? TOKENS_AND_SEQUENCES : 0) | (turn ? TURNS : 0);
#define WALK(T)                                                                           \
  (in->given ? in->mask ? walk<T, true, true>(*w, *in, levels) : walk<T, false, true>(*w, *in, levels) \
             : in->mask ? walk<T, true, false>(*w, *in, levels) : walk<T, false, false>(*w, *in, levels))
  switch (in->kind) {
    case FLOAT32: WALK(float); break;
    case FLOAT64: WALK(double); break;
    case BFLOAT16: WALK(BFloat16); break;
    default: WALK(Float16);
  }
  const bool failed = w->failed();
  if (!failed) {
    for (int k = 0; k < 3; k++) {
      const Blocks& b = w->blocks[k];
      const double row[4] = {b.number, b.squares, b.fourths, b.shift};
      memcpy(w->sequence.out + BLOCKS + 4 * k, row, sizeof row);
    }
    if (token) w->token.write(token, true);
    if (sequence) w->sequence.write(sequence, false);
    if (turn) w->turn.write(turn, false);
  }
  w->~Walk();
  free(place);
  return failed ? NO_MEMORY : DONE;
}

// Two doubles a sequence, or six; `odd` is how many log ratios are not finite.
ENTRY(int32_t rw_fold)(const Input* in, int32_t all, double* out, int64_t* odd) {
  if (!sound(*in)) return BAD_OFFSETS;
#define FOLD2(T, M, G) (all ? fold<T, M, G, true>(*in, out) : fold<T, M, G, false>(*in, out))
#define FOLD(T) \
  (in->given ? in->mask ? FOLD2(T, true, true) : FOLD2(T, false, true) : in->mask ? FOLD2(T, true, false) : FOLD2(T, false, false))
  switch (in->kind) {
    case FLOAT32: *odd = FOLD(float); break;
    case FLOAT64: *odd = FOLD(double); break;
    case BFLOAT16: *odd = FOLD(BFloat16); break;
    default: *odd = FOLD(Float16);
  }
  return DONE;
}

// The number of tokens of each sequence.
ENTRY(int32_t rw_count)(const Input* in, int64_t* out) {
  if (!sound(*in)) return BAD_OFFSETS;
  Input masks = *in;
  masks.pi = masks.mu = masks.given = nullptr;  // of whatever kind: they are not read
  for (int64_t i = 0; i < in->sequences; i++) {
    Slots<float, true> s(masks, i);
    out[i] = trimmed(s);
  }
  return DONE;
}

ENTRY(int32_t rw_spread)(const Input* in, const void* weights, void* out) {
  if (!sound(*in)) return BAD_OFFSETS;
  if (in->kind == FLOAT64) spread<double, Doubles>(*in, (const double*)weights, (double*)out);
  else spread<float, Floats>(*in, (const float*)weights, (float*)out);
  return DONE;
}

// Sums of where the gap sits; buckets are those of each sequence, 0 to 63. See `Places`.
ENTRY(int32_t rw_where)(const Input* in, const int64_t* buckets, const Tables* tables, const Places* out) {
  if (!of_records(*in) || (in->slots && !in->mu)) return BAD_OFFSETS;
  void* place = malloc(sizeof(Where));
  if (!place) return NO_MEMORY;
  where(*(Where*)place, *in, buckets, *tables, *out);
  free(place);
  return DONE;
}

// What estimators do to tokens; ratios are those of each sequence. See `Trial`.
ENTRY(int32_t rw_weigh)(const Input* in, const float* ratios, const Trial* trials, int64_t many) {
  if (!of_records(*in)) return BAD_OFFSETS;
  Buffer<float> prefix;
  weigh(*in, ratios, trials, many, prefix);
  return prefix.failed ? NO_MEMORY : DONE;
}
