// The loops of half.h, once for each kind of vectors. All of n is whole pieces.

inline void widen_pieces(const float16* from, float* to, int64_t n) {
  for (int64_t i = 0; i < n; i += kVector) widen(from + i, to + i);
}

inline void narrow_pieces(const float* from, float16* to, int64_t n) {
  for (int64_t i = 0; i < n; i += kVector) narrow(from + i, to + i);
}

// P is what the parameter is held in: float16, or float where more is to follow than rounding.
template <class Rule, int States, class P>
void update_pieces(P* p, const float16* g, float16* const* states, const float* scalars,
                   int64_t n) {
  float c[Rule::C::COLUMNS];
  for (int j = 0; j < Rule::C::COLUMNS; ++j) c[j] = scalars[COMMON_SCALARS + j];
  const float grad_factor = scalars[GRAD_FACTOR];
  float wide[2 + States][kPieceOfBlock];
  for (int64_t at = 0; at < n; at += kPieceOfBlock) {
    float* param = wide[0];
    if constexpr (sizeof(P) == sizeof(float))
      param = p + at;
    else
      widen_pieces(p + at, param, kPieceOfBlock);
    widen_pieces(g + at, wide[1], kPieceOfBlock);
    for (int j = 0; j < States; ++j) widen_pieces(states[j] + at, wide[2 + j], kPieceOfBlock);
#pragma GCC ivdep
    for (int64_t i = 0; i < kPieceOfBlock; ++i) {
      float values[States + 1];
      for (int j = 0; j < States; ++j) values[j] = wide[2 + j][i];
      Rule::template update<States>(param[i], wide[1][i] * grad_factor, values, c);
      for (int j = 0; j < States; ++j) wide[2 + j][i] = values[j];
    }
    if constexpr (sizeof(P) < sizeof(float)) narrow_pieces(param, p + at, kPieceOfBlock);
    for (int j = 0; j < States; ++j) narrow_pieces(wide[2 + j], states[j] + at, kPieceOfBlock);
  }
}
