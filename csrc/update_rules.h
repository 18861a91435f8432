// The arithmetic of each optimizer, on values that are already in registers.
//
// A rule is two pure functions of the compute type T (float, or double for
// float64 parameters). `scalars` runs once per tensor and step, in double: it turns the
// hyperparameters of the parameter group and the step count into the few numbers an element needs.
// `update` runs per element. Nothing here knows memory, threads or dtypes, so CPU and CUDA share
// it.
//
// Rounding: where a product is added to something it is an fma, in so many words, and a mean moves
// towards its new value (`lerp`) instead of being multiplied by a rounded beta, which would bias
// it. The order of operations is that of spectramind_fused/kernels/triton/rules.py, and the
// compiler contracts nothing by itself, so the two give the same bits. Variants of a rule (AMSGrad,
// SGD without momentum) differ in how many states they hold, and where that does not tell them
// apart (centered RMSprop) in their name; everything else is a number.
#pragma once

#include <cmath>
#include <cstdint>

#ifdef __CUDACC__
#define SPECTRAMIND_HD __host__ __device__
#else
#define SPECTRAMIND_HD
#endif

namespace spectramind {

// base^exponent by repeated squaring: only multiplications, so every backend
// rounds alike, which no pow() of two libraries does. Where 1 - base^exponent is
// then used in float64, the last bits count: there it is libm's pow, as in torch.
template <class T>
SPECTRAMIND_HD inline double power(double base, int64_t exponent) {
  if (sizeof(T) == sizeof(double)) return std::pow(base, double(exponent));
  double result = 1.0;
  for (; exponent > 0; exponent >>= 1) {
    if (exponent & 1) result *= base;
    base *= base;
  }
  return result;
}

// a * b + c, rounded once.
SPECTRAMIND_HD inline float fma(float a, float b, float c) { return std::fma(a, b, c); }
SPECTRAMIND_HD inline double fma(double a, double b, double c) { return std::fma(a, b, c); }

// torch.lerp: from the nearer end, so that weight 0 and 1 are exact.
template <class T>
SPECTRAMIND_HD inline T lerp(T start, T end, T weight) {
  const T way = end - start;
  return weight < T(0.5) ? fma(weight, way, start) : fma(weight - T(1), way, end);
}

// One addition to p for decay and step together: each is rounded by its own, small, size.
template <class T>
SPECTRAMIND_HD inline T stepped(T p, T neg_decay, T neg_step, T way) {
  const T decay = neg_decay != T(0) ? neg_decay * p : T(0);
  return p + fma(neg_step, way, decay);
}

// A momentum buffer: like a mean it loses a part of itself, and gains. One rounding of its size.
// An infinite one stays so, as in torch.
template <class T>
SPECTRAMIND_HD inline T gathered(T buffer, T neg_lose, T gain) {
  const bool finite = std::fabs(buffer) < T(INFINITY);
  return buffer + (finite ? fma(neg_lose, buffer, gain) : gain);
}

// Coupled decay, a part of the gradient.
template <class T>
SPECTRAMIND_HD inline T with_l2(T g, T l2, T p) {
  return l2 != T(0) ? fma(l2, p, g) : g;
}

// torch.maximum: a NaN on either side wins.
template <class T>
SPECTRAMIND_HD inline T maximum(T a, T b) {
  return (a > b || a != a) ? a : b;
}

// torch.sign: 0 of a NaN.
template <class T>
SPECTRAMIND_HD inline T sign(T value) {
  return T(value > T(0)) - T(value < T(0));
}

// Adam (Kingma and Ba 2015), AdamW (Loshchilov and Hutter 2019) by `decoupled`,
// AMSGrad (Reddi et al. 2018) by a third state.
struct Adam {
  static constexpr const char* name = "adam";
  enum { LR, BETA1, BETA2, EPS, WEIGHT_DECAY, DECOUPLED, HYPERPARAMETERS };
  enum { NEG_DECAY, L2, WEIGHT1, WEIGHT2, NEG_STEP, ROOT_CORRECTION2, EPSILON, SCALARS };

  template <class T>
  SPECTRAMIND_HD static void scalars(const double* h, int64_t step, double* c) {
    const bool decoupled = h[DECOUPLED] != 0;
    c[NEG_DECAY] = decoupled ? -(h[LR] * h[WEIGHT_DECAY]) : 0;
    c[L2] = decoupled ? 0 : h[WEIGHT_DECAY];
    c[WEIGHT1] = 1 - h[BETA1];
    c[WEIGHT2] = 1 - h[BETA2];
    c[NEG_STEP] = -(h[LR] / (1 - power<T>(h[BETA1], step)));
    c[ROOT_CORRECTION2] = std::sqrt(1 - power<T>(h[BETA2], step));
    c[EPSILON] = h[EPS];
  }

  // states: exp_avg, exp_avg_sq, and for AMSGrad max_exp_avg_sq
  template <int States, class T>
  SPECTRAMIND_HD static void update(T& p, T g, T* state, const T* c) {
    g = with_l2(g, c[L2], p);
    state[0] = lerp(state[0], g, c[WEIGHT1]);
    state[1] = lerp(state[1], g * g, c[WEIGHT2]);
    T second = state[1];
    if (States == 3) second = state[2] = maximum(state[2], second);
    const T denominator = std::sqrt(second) / c[ROOT_CORRECTION2] + c[EPSILON];
    p = stepped(p, c[NEG_DECAY], c[NEG_STEP], state[0] / denominator);
  }
};

// SGD with momentum (Sutskever et al. 2013, in torch's form) and Nesterov.
struct SGD {
  static constexpr const char* name = "sgd";
  enum { LR, MOMENTUM, DAMPENING, WEIGHT_DECAY, NESTEROV, HYPERPARAMETERS };
  enum { L2, NEG_LOSE, TAKE, LOOK, IS_NESTEROV, NEG_LR, SCALARS };

  template <class T>
  SPECTRAMIND_HD static void scalars(const double* h, int64_t step, double* c) {
    const bool first = step == 1;  // the first momentum buffer is the undampened gradient
    c[L2] = h[WEIGHT_DECAY];
    c[NEG_LOSE] = first ? -1 : h[MOMENTUM] - 1;
    c[TAKE] = first ? 1 : 1 - h[DAMPENING];
    c[LOOK] = h[MOMENTUM];
    c[IS_NESTEROV] = h[NESTEROV];
    c[NEG_LR] = -h[LR];
  }

  // states: momentum_buffer, or none where momentum is 0
  template <int States, class T>
  SPECTRAMIND_HD static void update(T& p, T g, T* state, const T* c) {
    g = with_l2(g, c[L2], p);
    if (States == 1) {
      state[0] = gathered(state[0], c[NEG_LOSE], c[TAKE] * g);
      g = c[IS_NESTEROV] != T(0) ? fma(c[LOOK], state[0], g) : state[0];
    }
    p = fma(c[NEG_LR], g, p);
  }
};

// RMSprop (Hinton 2012), with momentum by one more state; centered by Graves (2013): what the
// gradient's square is above the square of its mean.
template <bool Centered>
struct RMSprop {
  static constexpr const char* name = Centered ? "centered_rmsprop" : "rmsprop";
  enum { LR, ALPHA, EPS, WEIGHT_DECAY, MOMENTUM, HYPERPARAMETERS };
  enum { L2, WEIGHT, EPSILON, NEG_LOSE, NEG_LR, SCALARS };

  template <class T>
  SPECTRAMIND_HD static void scalars(const double* h, int64_t, double* c) {
    c[L2] = h[WEIGHT_DECAY];
    c[WEIGHT] = 1 - h[ALPHA];
    c[EPSILON] = h[EPS];
    c[NEG_LOSE] = h[MOMENTUM] - 1;
    c[NEG_LR] = -h[LR];
  }

  // states: square_avg, if centered grad_avg, and where momentum is not 0 momentum_buffer
  template <int States, class T>
  SPECTRAMIND_HD static void update(T& p, T g, T* state, const T* c) {
    constexpr int momentum = 1 + Centered;
    g = with_l2(g, c[L2], p);
    T second = state[0] = lerp(state[0], g * g, c[WEIGHT]);
    if (Centered) {
      state[1] = lerp(state[1], g, c[WEIGHT]);
      second = fma(-state[1], state[1], second);
    }
    T way = g / (std::sqrt(second) + c[EPSILON]);
    if (States > momentum) way = state[momentum] = gathered(state[momentum], c[NEG_LOSE], way);
    p = fma(c[NEG_LR], way, p);
  }
};

// Lion (Chen et al. 2023): the sign of a mean, so every element moves by lr. Near 0 the last bit
// of the means decides, so they are rounded after every operation, as plain torch does it.
struct Lion {
  static constexpr const char* name = "lion";
  enum { LR, BETA1, BETA2, WEIGHT_DECAY, HYPERPARAMETERS };
  enum { NEG_DECAY, KEEP1, WEIGHT1, KEEP2, WEIGHT2, NEG_LR, SCALARS };

  template <class T>
  SPECTRAMIND_HD static void scalars(const double* h, int64_t, double* c) {
    c[NEG_DECAY] = -(h[LR] * h[WEIGHT_DECAY]);
    c[KEEP1] = h[BETA1];
    c[WEIGHT1] = 1 - h[BETA1];
    c[KEEP2] = h[BETA2];
    c[WEIGHT2] = 1 - h[BETA2];
    c[NEG_LR] = -h[LR];
  }

  // states: exp_avg
  template <int States, class T>
  SPECTRAMIND_HD static void update(T& p, T g, T* state, const T* c) {
    const T direction = state[0] * c[KEEP1] + c[WEIGHT1] * g;
    p = stepped(p, c[NEG_DECAY], c[NEG_LR], sign(direction));
    state[0] = state[0] * c[KEEP2] + c[WEIGHT2] * g;
  }
};

// Every rule with every number of states it may hold.
#define SPECTRAMIND_EVERY_RULE(DO)     \
  DO(Adam, 2)                          \
  DO(Adam, 3) /* AMSGrad */            \
  DO(SGD, 0)                           \
  DO(SGD, 1) /* momentum */            \
  DO(RMSprop<false>, 1)                \
  DO(RMSprop<false>, 2) /* momentum */ \
  DO(RMSprop<true>, 2)                 \
  DO(RMSprop<true>, 3) /* momentum */  \
  DO(Lion, 1)

// Lookahead's sync (Zhang et al. 2019): the slow weights go a part of the way to
// the fast ones, which then start again from there.
template <class T>
SPECTRAMIND_HD inline void lookahead_sync(T& fast, T& slow, T alpha) {
  slow = fma(alpha, fast - slow, slow);
  fast = slow;
}

// torch.nn.utils.clip_grad_norm_'s; a norm that is not a number gives none either.
SPECTRAMIND_HD inline double clip_coefficient(double norm, double max_norm) {
  const double coefficient = max_norm / (norm + 1e-6);
  return coefficient > 1 ? 1 : coefficient;
}

}  // namespace spectramind
