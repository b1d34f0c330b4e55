// Walks random bytes through every entry of the kernel, each array in memory of just its size: for the sanitizers, and,
// by a hash of every number that comes out, to compare processors.
#include "kernel.cpp"

#include <stdio.h>

static uint64_t state = 88172645463325252ull;
static uint64_t next() {
  state ^= state << 13, state ^= state >> 7, state ^= state << 17;
  return state;
}
static uint8_t* bytes(size_t n, int which) {  // random bytes, or numbers as they come; exactly n of them
  uint8_t* p = (uint8_t*)malloc(n);
  for (size_t i = 0; i < n; i++) p[i] = (uint8_t)next();
  if (which == 1)
    for (size_t i = 0; i + 4 <= n; i += 4) {
      float x = (float)((double)(next() % 1000) / 300 - 3);
      memcpy(p + i, &x, 4);
    }
  return p;
}

static uint64_t hash = 14695981039346656037ull;
template <class T>
static void note(const void* numbers, size_t n) {  // a NaN's bits differ between processors, and are no result
  for (size_t i = 0; i < n; i++) {
    T x;
    memcpy(&x, (const uint8_t*)numbers + i * sizeof(T), sizeof(T));
    uint64_t bits = 1;
    if (x == x) memcpy(&(bits = 0), &x, sizeof(T));
    hash = (hash ^ bits) * 1099511628211ull;
  }
}

// The walks of records: runs of a vector, float32, with a mask; anything else must be refused.
static bool walk_records(const Input& in, bool finite) {
  const size_t sequences = (size_t)in.sequences;
  int64_t* buckets = (int64_t*)bytes(sequences * 8, 0);
  float* ratios = (float*)bytes(sequences * 4, 1);
  static int32_t column[1024], row[1024];
  static double positions[POSITIONS * BUCKETS * ROWS], probabilities[PROBABILITIES * BUCKETS * 4];
  static int64_t shapes[SHAPES + 1], density[DENSITY + 1];
  for (int i = 0; i < 1024; i++) column[i] = (int32_t)(next() % 50) * 85, row[i] = (int32_t)(next() % 85);
  double *each = (double*)malloc(sequences * WHOLE * 8), *found = (double*)malloc(sequences * 6 * 8);
  memset(positions, 0, sizeof positions), memset(probabilities, 0, sizeof probabilities);
  const Tables tables = {column, row};
  const Places places = {each, positions, probabilities, shapes, density};
  const Factor factors[2] = {{(int32_t)(next() % 2), (int32_t)(next() % 3), -1, 1, 1}, {PREFIX, CLIP, -3, 2, -2}};
  uint8_t *keep = bytes(sequences, 0), *moved = bytes(sequences, 0);
  const Trial trials[2] = {{factors, 2, nullptr, nullptr, nullptr, found}, {factors, 1, ratios, keep, moved, found}};
  const bool fits = of_records(in) && (!in.slots || in.mu);
  const int32_t a = JOIN(rw_where, SUFFIX)(&in, buckets, &tables, &places);
  const int32_t b = JOIN(rw_weigh, SUFFIX)(&in, ratios, trials, 2);
  if (a == DONE && finite) {  // a NaN is out of the mask before it comes here
    note<double>(each, sequences * WHOLE), note<double>(positions, sizeof(positions) / 8);
    note<double>(probabilities, sizeof(probabilities) / 8), note<int64_t>(shapes, SHAPES + 1), note<int64_t>(density, DENSITY + 1);
  }
  if (b == DONE && finite) note<double>(found, sequences * 6);
  free(buckets), free(ratios), free(each), free(found), free(keep), free(moved);
  return (a == DONE) == fits && (b == DONE) == of_records(in);
}

int main(int, char** args) {
  const int inputs = atoi(args[1]);
  static const int64_t sizes[] = {0, 1, 15, 16, 17, 63, 64, 65, 255, 256, 257, 1100};
  static const size_t each[] = {4, 8, 2, 2};
  double* token = (double*)malloc(SIZE * 8);
  double* sequence = (double*)malloc(SIZE * 8);
  double* turn = (double*)malloc(SIZE * 8);
  for (int i = 0; i < inputs; i++) {
    Input in = {};
    in.sequences = (int64_t)(next() % 4), in.slots = sizes[next() % 12], in.kind = (int32_t)(next() % 4);
    const bool packed = next() % 2;
    const int how = next() % 2;
    const size_t n = (size_t)(packed ? in.slots : in.sequences * in.slots);
    uint8_t* held[7] = {bytes(n * each[in.kind], how), bytes(n * each[in.kind], how),
                        next() % 3 ? nullptr : bytes(n * each[in.kind], how),
                        next() % 3 ? bytes(n, 0) : nullptr, nullptr, bytes(n * 8, 0),
                        next() % 2 ? bytes((size_t)in.sequences * 8, 0) : nullptr};
    if (packed) {
      int64_t* offsets = (int64_t*)malloc((size_t)(in.sequences + 1) * 8);
      held[4] = (uint8_t*)offsets;
      const bool wild = next() % 3 == 0;
      int64_t last = 0;
      for (int64_t k = 0; k <= in.sequences; k++) {
        if (wild) offsets[k] = (int64_t)(next() % 3 ? next() % 2000 : next());
        else offsets[k] = last = last + (int64_t)(next() % (uint64_t)(in.slots - last + 1));
      }
    }
    in.pi = held[0], in.mu = held[1], in.given = held[2], in.mask = held[3];
    in.offsets = (const int64_t*)held[4], in.turn = (const int64_t*)held[5], in.group = (const int64_t*)held[6];
    in.pi_row = in.mu_row = in.given_row = in.mask_row = in.slots;
    const int32_t answer = JOIN(rw_stats, SUFFIX)(&in, token, sequence, turn);
    if (!answer) note<double>(token, SIZE), note<double>(sequence, SIZE), note<double>(turn, SIZE);
    double* by_seq = (double*)malloc((size_t)in.sequences * 6 * 8);
    int64_t odd = 0;
    if (JOIN(rw_fold, SUFFIX)(&in, 1, by_seq, &odd) != answer) return 1;
    if (!answer) note<double>(by_seq, (size_t)in.sequences * 6);
    if (JOIN(rw_fold, SUFFIX)(&in, 0, by_seq, &odd) != answer) return 1;
    if (in.mask && JOIN(rw_count, SUFFIX)(&in, (int64_t*)by_seq) != answer) return 1;
    if (!walk_records(in, how == 1)) return 1;
    if (in.kind > 1) in.kind = FLOAT32;
    uint8_t *weights = bytes((size_t)in.sequences * 8, 0), *out = bytes(n * each[in.kind], 0);
    if (JOIN(rw_spread, SUFFIX)(&in, weights, out) != answer) return 1;
    if (!answer) in.kind == FLOAT32 ? note<float>(out, n) : note<double>(out, n);
    free(by_seq), free(weights), free(out);
    for (uint8_t* p : held) free(p);
  }
  free(token), free(sequence), free(turn);
  printf("%d inputs %016llx\n", inputs, (unsigned long long)hash);
  return 0;
}
