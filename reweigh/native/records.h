// Two walks for records in memory, where one pass makes many sums: where the gap sits, and what estimators do to tokens.
// Both read log ratios that are given, float32, 0 where there is no token, of runs of a vector. `reweigh/audit/where.py`,
// `pictures.py` and `trial.py` compute the same with numpy and torch.

constexpr int POSITIONS = 53, PROBABILITIES = 25, ROWS = 5, WHOLE = 8, COPIES = 4, SHAPES = 1 << 14;

// The first slot of a bin of positions: 0, 4, 8, 12, then a quarter of an octave each.
int64_t start_of(int bin) { return bin < 4 ? 4 * bin : (int64_t)(4 + (bin - 4) % 4) << ((bin - 4) / 4 + 2); }

struct Where {
  double by_probability[COPIES][BUCKETS][PROBABILITIES + 1][4];  // a token's neighbours add to other copies: none waits
};

void where(Where& w, const Input& in, const int64_t* buckets, const Tables& tables, const Places& out) {
  memset(w.by_probability, 0, sizeof w.by_probability);
  typedef double Four __attribute__((vector_size(32)));
  const Floats zero = Floats{};
  for (int64_t i = 0; i < in.sequences; i++) {
    const Slots<float, true> s(in, i);
    const int64_t bucket = buckets[i] & (BUCKETS - 1);
    double* whole = out.sequences + WHOLE * i;
    for (int k = 0; k < ROWS; k++) whole[k] = 0;
    Doubles k3 = Doubles{};
    Floats k3_part = zero, low = floats((float)INF), high = floats((float)-INF);
    double k3_beyond = 0;
    const auto add = [&](int bin, const double* row) {
      double* at = out.positions + ((int64_t)bin * BUCKETS + bucket) * ROWS;
      for (int k = 0; k < ROWS; k++) at[k] += row[k], whole[k] += row[k];
    };
    const int64_t vectors = s.vectors();
    Floats part[4] = {zero, zero, zero, zero};
    Ints alive = Ints{};
    double beyond = 0;  // of r - 1, where it is no float
    int bin = 0, held = 0;
    const auto flush = [&] {
      if (!held) return;
      const double row[ROWS] = {(double)-count(alive), (double)sum(part[0]), (double)sum(part[1]),
                                (double)sum(part[2]), (double)sum(part[3]) + beyond};
      add(bin, row);
      for (auto& x : part) x = zero;
      k3 += widened(k3_part), k3_part = zero;
      alive = Ints{}, beyond = 0, held = 0;
    };
    for (int64_t v = 0; v < vectors; v++) {
      const Ints live = s.live(v);
      const Floats l = kept(live, log_ratio<true>(s, v)), mu = kept(live, read(s.part(s.mu, s.last_mu, v)));
      const Floats size = absolute(l), squared = l * l;
      Floats excess = less_one(l);
      double large[LANES];
      bool wide = false;
      if (__builtin_expect(any(~(size < NEAR)), 0)) {
        const Exponential e = exponential(smaller(l, floats(80.0f)));
        const Ints far = (Ints)(l > 80.0f);
        excess = kept(~far, size < NEAR ? excess : (e.scale - 1.0f) + e.scale * e.rest);
        if (any(far)) {
          wide = true;
          for (int j = 0; j < LANES; j++) large[j] = l[j] > 80.0f ? power_of_e((double)l[j]) - 1 : 0;
        }
      }
      k3_part += excess - kept(~(Ints)(l > 80.0f), l);
      if (wide) for (int j = 0; j < LANES; j++) k3_beyond += large[j] - (l[j] > 80.0f ? (double)l[j] : 0.0);
      low = live ? smaller(low, l) : low, high = live ? larger(high, l) : high;
      // The first 64 slots: a bin is four or eight of them. From there on a vector is in one bin.
      if (v < 4) {
        for (int j = 0; j < 4; j++) {
          double row[ROWS] = {};
          for (int k = 4 * j; k < 4 * j + 4; k++) {
            row[0] -= live[k], row[1] += l[k], row[2] += size[k], row[3] += squared[k], row[4] += excess[k];
            if (wide) row[4] += large[k];
          }
          add(v < 2 ? 4 * (int)v + j : 4 + 2 * (int)v + j / 2, row);
        }
      } else {
        if (held == TILE || (bin < POSITIONS - 1 && v * LANES >= start_of(bin + 1))) {
          flush();
          while (bin < POSITIONS - 1 && v * LANES >= start_of(bin + 1)) bin++;
        }
        alive -= live, part[0] += l, part[1] += size, part[2] += squared, part[3] += excess, held++;
        if (wide) for (double x : large) beyond += x;
      }
      // Each token by probability, by log ratio, and by both. What is no token goes to a cell that nobody reads.
      const Floats quarters = smaller(larger(mu * (float)(-4 / 2.302585092994046), zero), floats(PROBABILITIES - 1));
      const Ints column = live ? __builtin_convertvector(quarters, Ints) : ints(PROBABILITIES);
      const Ints ratio_bits = (Ints)l, mu_bits = (Ints)mu;
      int32_t columns[LANES], ratios[LANES], probabilities[LANES], on[LANES];
      float ls[LANES], sizes[LANES], squares[LANES];
      memcpy(columns, &column, sizeof column), memcpy(ratios, &ratio_bits, sizeof ratio_bits);
      memcpy(probabilities, &mu_bits, sizeof mu_bits), memcpy(on, &live, sizeof live);
      memcpy(ls, &l, sizeof l), memcpy(sizes, &size, sizeof size), memcpy(squares, &squared, sizeof squared);
      for (int j = 0; j < LANES; j++) {
        const uint32_t bits = (uint32_t)ratios[j];
        const Four row = {1.0, (double)ls[j], (double)sizes[j], (double)squares[j]};
        double* at = w.by_probability[j % COPIES][bucket][columns[j]];
        Four sums;
        memcpy(&sums, at, sizeof sums);
        sums += row;
        memcpy(at, &sums, sizeof sums);
        const int64_t cell = tables.column[(uint32_t)probabilities[j] >> 22] + tables.row[bits >> 22];
        out.shapes[on[j] ? bits >> 18 : SHAPES]++;
        out.density[on[j] ? cell : DENSITY]++;
      }
    }
    flush();
    whole[5] = sum(k3 + widened(k3_part)) + k3_beyond, whole[6] = (double)largest(high), whole[7] = (double)smallest(low);
  }
  for (int c = 0; c < COPIES; c++)
    for (int p = 0; p < PROBABILITIES; p++)
      for (int b = 0; b < BUCKETS; b++)
        for (int k = 0; k < 4; k++) out.probabilities[(p * BUCKETS + b) * 4 + k] += w.by_probability[c][b][p][k];
}

// What an estimator does to the tokens of each sequence: `out` has, by sequence, the tokens that are kept, those of them
// at a bound, the largest log-weight, and the sums of the weights, of their squares and of (weight - ratio)_+, where ratio
// is that of the sequence. Weights have a bound that is small, so that nothing overflows.
void weigh(const Input& in, const float* ratios, const Trial* trials, int64_t many, Buffer<float>& prefix) {
  bool running = false;
  for (int64_t t = 0; t < many; t++)
    for (int64_t k = 0; k < trials[t].size; k++) running |= trials[t].factors[k].level == PREFIX;
  for (int64_t i = 0; i < in.sequences; i++) {
    const Slots<float, true> s(in, i);
    const int64_t vectors = s.vectors();
    if (running) {
      if (!prefix.make_room((vectors + 1) * LANES)) return;
      double total = 0;  // so that what stands before a token is as exact at the end as at the beginning
      for (int64_t v = 0; v < vectors; v++) {
        Doubles x = widened(kept(s.live(v), log_ratio<true>(s, v)));
        const Doubles none = Doubles{};
        x += __builtin_shufflevector(none, x, 0, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30);
        x += __builtin_shufflevector(none, x, 0, 0, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29);
        x += __builtin_shufflevector(none, x, 0, 0, 0, 0, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27);
        x += __builtin_shufflevector(none, x, 0, 0, 0, 0, 0, 0, 0, 0, 16, 17, 18, 19, 20, 21, 22, 23);
        const Floats narrow = __builtin_convertvector(x + total, Floats);
        memcpy(prefix.at + v * LANES, &narrow, sizeof narrow);
        total += x[LANES - 1];
      }
    }
    for (int64_t t = 0; t < many; t++) {
      const Trial& trial = trials[t];
      const float base = trial.log_w ? trial.log_w[i] : 0;
      const Ints stays = ints(trial.keep && !trial.keep[i] ? 0 : -1), moves = ints(trial.moved && trial.moved[i] ? -1 : 0);
      const Floats ratio = floats(ratios[i]), zero = Floats{};
      Doubles total = Doubles{}, squares = Doubles{}, over = Doubles{};
      Floats top = floats((float)-INF);
      int64_t kept_here = 0, bounded_here = 0;
      double* out = trial.out + 6 * i;
      const auto tile = [&](int64_t v0, int64_t v1, Floats* log_w, Ints* keep, Ints* bounded) {
        for (int64_t v = v0; v < v1; v++) log_w[v - v0] = floats(base), keep[v - v0] = s.live(v) & stays, bounded[v - v0] = moves;
        for (int64_t k = 0; k < trial.size; k++) {
          const Factor& f = trial.factors[k];
          const Floats low = floats(f.low), high = floats(f.high), scale = floats(f.scale);
          for (int64_t v = v0; v < v1; v++) {
            const Floats x = scale * (f.level == PREFIX ? read(prefix.at + v * LANES) : kept(s.live(v), log_ratio<true>(s, v)));
            Floats& to = log_w[v - v0];
            const Ints inside = (Ints)(x >= low) & (Ints)(x <= high);
            if (f.how == CLIP) to += smaller(larger(x, low), high), bounded[v - v0] |= ~inside;
            else keep[v - v0] &= inside, to += f.how == REJECT ? x : zero;
          }
        }
      };
      Floats log_w[TILE];
      Ints keep[TILE], bounded[TILE];
      for (int64_t v0 = 0; v0 < vectors; v0 += TILE) {
        const int64_t v1 = v0 + TILE < vectors ? v0 + TILE : vectors;
        tile(v0, v1, log_w, keep, bounded);
        Floats w1 = zero, w2 = zero, above = zero;
        Ints n = Ints{}, b = Ints{};
        for (int64_t j = 0; j < v1 - v0; j++) {
          const Floats w = kept(keep[j], exponential(smaller(log_w[j], floats(80.0f))).value());
          w1 += w, w2 += w * w, above += larger(w - ratio, zero);
          n -= keep[j], b -= keep[j] & bounded[j];
          top = larger(top, keep[j] ? log_w[j] : floats((float)-INF));
        }
        total += widened(w1), squares += widened(w2), over += widened(above);
        kept_here += -count(n), bounded_here += -count(b);
      }
      out[0] = (double)kept_here, out[1] = (double)bounded_here, out[2] = (double)largest(top);
      out[3] = sum(total), out[4] = sum(squares), out[5] = sum(over);
      if (kept_here && out[2] < -20) {  // the square of e^-60 is no float
        total = squares = Doubles{};
        for (int64_t v0 = 0; v0 < vectors; v0 += TILE) {
          const int64_t v1 = v0 + TILE < vectors ? v0 + TILE : vectors;
          tile(v0, v1, log_w, keep, bounded);
          for (int64_t j = 0; j < v1 - v0; j++) {
            const Doubles w = kept(keep[j], power_of_e(widened(log_w[j])));
            total += w, squares += w * w;
          }
        }
        out[3] = sum(total), out[4] = sum(squares);
      }
    }
  }
}
