// What the Python side (__init__.py) and the kernel tell each other. Change VERSION with anything here, and with results
// that the self-test does not see.
#pragma once
#include <stdint.h>

constexpr int VERSION = 3;
enum Kind : int32_t { FLOAT32, FLOAT64, BFLOAT16, FLOAT16 };
enum Answer : int32_t { DONE = 0, NO_MEMORY = 1, BAD_OFFSETS = 2 };

// Log-probs of sequences: rows of a matrix, or runs of a vector.
struct Input {
  const void *pi, *mu;     // of one kind; pi is not read where the ratio is given
  const void* given;       // log ratios, of the same kind; or null: log pi - log mu
  const uint8_t* mask;     // a byte a slot, not 0 where a token counts; or null: everywhere
  const int64_t* offsets;  // sequence i is slots offsets[i] to offsets[i + 1]; or null: rows
  const int64_t* turn;     // of each slot, rows without gaps; or null
  const int64_t* group;    // of each sequence; or null: each is its own
  int64_t sequences;
  int64_t slots;           // of a row; or of the vector
  int64_t pi_row, mu_row, given_row, mask_row;  // elements from one row to the next
  int32_t kind;
};

// What `rw_where` reads beside the tokens, and where it adds to: everything but `sequences` holds what was there before.
constexpr int DENSITY = 50 * 85;  // cells
struct Tables {
  const int32_t *column, *row;  // by the first ten bits of a float32: of the density
};
struct Places {
  double* sequences;      // [S, 8]: tokens, sums of l, |l|, l^2, r - 1 and k3, the largest and the smallest l
  double* positions;      // [53, 64, 5]
  double* probabilities;  // [25, 64, 4]
  int64_t* shapes;        // [2^14 + 1], by the first bits of l; the last is of what is no token
  int64_t* density;       // [DENSITY + 1]
};

// An estimator as factors of its tokens, and one of each sequence.
enum LevelOf : int32_t { TOKEN, PREFIX };
enum How : int32_t { CLIP, REJECT, SCREEN };
struct Factor {
  int32_t level, how;
  float low, high, scale;  // nats; scale multiplies the log ratio first
};
struct Trial {
  const Factor* factors;
  int64_t size;
  const float* log_w;           // of each sequence, nats; or null
  const uint8_t *keep, *moved;  // of each sequence; or null
  double* out;                  // [S, 6]
};
