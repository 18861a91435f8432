// The arithmetic of each optimizer, on values that are already in registers.
//
// A rule is two pure functions of the compute type T (float, or double for float64 parameters).
// `scalars` runs once per tensor and step, in double: it turns the hyperparameters of the parameter
// group (h, columns H) and the step count into the few numbers that an element needs (c, columns
// C), and moves what the rule keeps of the tensor (n, columns N). `update` runs per element.
// Nothing here knows memory, threads or dtypes, so CPU and CUDA share it.
//
// Rounding: products are added by fma, except in Lion. A mean moves towards its new value by
// `lerp`: multiplying it by a rounded beta would bias it. The operations and their order are those
// of spectramind_fused/kernels/triton/rules.py, and the compiler adds no fma of its own, so both
// give the same bits.
//
// Variants of a rule (AMSGrad, SGD without momentum) differ in how many states they hold. Where
// that does not tell them apart (centered RMSprop), they differ in their name.
#pragma once

#include <cmath>
#include <cstdint>

#include "power.h"

// Numbers that a rule reads from an array, by name: `h[H::LR]`.
#define SPECTRAMIND_COLUMNS(Of, ...) \
  struct Of {                        \
    enum { __VA_ARGS__, COLUMNS };   \
  }

namespace spectramind {

// What a rule keeps of a tensor beside its states, such as a product of all its momenta.
struct Number {
  double value;
  bool wide;  // stored as float64, else as float32

  SPECTRAMIND_HD void set(double to) { value = wide ? to : double(float(to)); }

  // As torch multiplies it in its place.
  SPECTRAMIND_HD void multiply(double factor) {
    value = wide ? value * factor : double(float(value) * float(factor));
  }
};

struct WithoutNumbers {
  struct N {
    enum { COLUMNS };
  };
};

// a * b + c, rounded once.
SPECTRAMIND_HD inline float fma(float a, float b, float c) { return std::fma(a, b, c); }
SPECTRAMIND_HD inline double fma(double a, double b, double c) { return std::fma(a, b, c); }

// torch.lerp: from the nearer end, so that weight 0 and 1 are exact.
template <class T>
SPECTRAMIND_HD inline T lerp(T start, T end, T weight) {
  const T distance = end - start;
  return weight < T(0.5) ? fma(weight, distance, start) : fma(weight - T(1), distance, end);
}

// lerp for the mean of g * g. Where that overflows, torch's own operations: the weighted square may
// be finite, and a mean that has overflowed stays infinite, where lerp would subtract infinities.
template <class T>
SPECTRAMIND_HD inline T next_mean_square(T mean, T g, T weight) {
  const T square = g * g;
  const bool finite = std::fabs(square - mean) < T(INFINITY);
  return finite ? lerp(mean, square, weight) : fma(weight * g, g, (T(1) - weight) * mean);
}

// p - lr * weight_decay * p - step_size * direction, as one addition to p: so the decay and the
// step are rounded at their own size, which is small, and p only once.
template <class T>
SPECTRAMIND_HD inline T apply_step(T p, T neg_decay, T neg_step, T direction) {
  const T decay = neg_decay != T(0) ? neg_decay * p : T(0);
  return p + fma(neg_step, direction, decay);
}

// momentum * buffer + gain, as one addition to the buffer, so that it is rounded once. An infinite
// buffer stays infinite, as in torch.
template <class T>
SPECTRAMIND_HD inline T next_momentum(T buffer, T momentum_minus_one, T gain) {
  const bool finite = std::fabs(buffer) < T(INFINITY);
  return buffer + (finite ? fma(momentum_minus_one, buffer, gain) : gain);
}

// Coupled weight decay (L2): it is added to the gradient.
template <class T>
SPECTRAMIND_HD inline T add_l2(T g, T l2, T p) {
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

// Weight decay apart from the gradient, or as a part of it: the one or the other is 0.
SPECTRAMIND_HD inline double neg_decay_of(double lr, double weight_decay, double decoupled) {
  return decoupled != 0 ? -(lr * weight_decay) : 0;
}
SPECTRAMIND_HD inline double l2_of(double weight_decay, double decoupled) {
  return decoupled != 0 ? 0 : weight_decay;
}

// Adam (Kingma and Ba 2015), AdamW (Loshchilov and Hutter 2019) by `decoupled`,
// AMSGrad (Reddi et al. 2018) by a third state.
struct Adam : WithoutNumbers {
  static constexpr const char* name = "adam";
  SPECTRAMIND_COLUMNS(H, LR, BETA1, BETA2, EPS, WEIGHT_DECAY, DECOUPLED);
  SPECTRAMIND_COLUMNS(C, NEG_DECAY, L2, WEIGHT1, WEIGHT2, NEG_STEP, ROOT_CORRECTION2, EPSILON);

  template <class T>
  SPECTRAMIND_HD static void scalars(const double* h, int64_t step, Number*, double* c) {
    c[C::NEG_DECAY] = neg_decay_of(h[H::LR], h[H::WEIGHT_DECAY], h[H::DECOUPLED]);
    c[C::L2] = l2_of(h[H::WEIGHT_DECAY], h[H::DECOUPLED]);
    c[C::WEIGHT1] = 1 - h[H::BETA1];
    c[C::WEIGHT2] = 1 - h[H::BETA2];
    c[C::NEG_STEP] = -(h[H::LR] / (1 - power<T>(h[H::BETA1], step)));
    c[C::ROOT_CORRECTION2] = std::sqrt(1 - power<T>(h[H::BETA2], step));
    c[C::EPSILON] = h[H::EPS];
  }

  // states: exp_avg, exp_avg_sq, and for AMSGrad max_exp_avg_sq
  template <int States, class T>
  SPECTRAMIND_HD static void update(T& p, T g, T* state, const T* c) {
    g = add_l2(g, c[C::L2], p);
    state[0] = lerp(state[0], g, c[C::WEIGHT1]);
    state[1] = next_mean_square(state[1], g, c[C::WEIGHT2]);
    T second = state[1];
    if (States == 3) second = state[2] = maximum(state[2], second);
    const T denominator = std::sqrt(second) / c[C::ROOT_CORRECTION2] + c[C::EPSILON];
    p = apply_step(p, c[C::NEG_DECAY], c[C::NEG_STEP], state[0] / denominator);
  }
};

// SGD with momentum (Sutskever et al. 2013, in torch's form) and Nesterov.
struct SGD : WithoutNumbers {
  static constexpr const char* name = "sgd";
  SPECTRAMIND_COLUMNS(H, LR, MOMENTUM, DAMPENING, WEIGHT_DECAY, NESTEROV);
  SPECTRAMIND_COLUMNS(C, L2, MOMENTUM_MINUS_ONE, ONE_MINUS_DAMPENING, MOMENTUM, NESTEROV, NEG_LR);

  template <class T>
  SPECTRAMIND_HD static void scalars(const double* h, int64_t step, Number*, double* c) {
    const bool first = step == 1;  // the first buffer is the gradient, undampened
    c[C::L2] = h[H::WEIGHT_DECAY];
    c[C::MOMENTUM_MINUS_ONE] = first ? -1 : h[H::MOMENTUM] - 1;
    c[C::ONE_MINUS_DAMPENING] = first ? 1 : 1 - h[H::DAMPENING];
    c[C::MOMENTUM] = h[H::MOMENTUM];
    c[C::NESTEROV] = h[H::NESTEROV];
    c[C::NEG_LR] = -h[H::LR];
  }

  // states: momentum_buffer, or none where momentum is 0
  template <int States, class T>
  SPECTRAMIND_HD static void update(T& p, T g, T* state, const T* c) {
    g = add_l2(g, c[C::L2], p);
    if (States == 1) {
      state[0] = next_momentum(state[0], c[C::MOMENTUM_MINUS_ONE], c[C::ONE_MINUS_DAMPENING] * g);
      g = c[C::NESTEROV] != T(0) ? fma(c[C::MOMENTUM], state[0], g) : state[0];
    }
    p = fma(c[C::NEG_LR], g, p);
  }
};

// RMSprop (Hinton 2012), with momentum by one more state. Centered (Graves 2013): the mean square
// minus the square of the mean, so the variance.
template <bool Centered>
struct RMSprop : WithoutNumbers {
  static constexpr const char* name = Centered ? "centered_rmsprop" : "rmsprop";
  SPECTRAMIND_COLUMNS(H, LR, ALPHA, EPS, WEIGHT_DECAY, MOMENTUM);
  SPECTRAMIND_COLUMNS(C, L2, WEIGHT, EPSILON, MOMENTUM_MINUS_ONE, NEG_LR);

  template <class T>
  SPECTRAMIND_HD static void scalars(const double* h, int64_t, Number*, double* c) {
    c[C::L2] = h[H::WEIGHT_DECAY];
    c[C::WEIGHT] = 1 - h[H::ALPHA];
    c[C::EPSILON] = h[H::EPS];
    c[C::MOMENTUM_MINUS_ONE] = h[H::MOMENTUM] - 1;
    c[C::NEG_LR] = -h[H::LR];
  }

  // states: square_avg, if centered grad_avg, and where momentum is not 0 momentum_buffer
  template <int States, class T>
  SPECTRAMIND_HD static void update(T& p, T g, T* state, const T* c) {
    constexpr int momentum = 1 + Centered;
    g = add_l2(g, c[C::L2], p);
    T second = state[0] = next_mean_square(state[0], g, c[C::WEIGHT]);
    if (Centered) {
      state[1] = lerp(state[1], g, c[C::WEIGHT]);
      second = fma(-state[1], state[1], second);
    }
    T direction = g / (std::sqrt(second) + c[C::EPSILON]);
    if (States > momentum)
      direction = state[momentum] =
          next_momentum(state[momentum], c[C::MOMENTUM_MINUS_ONE], direction);
    p = fma(c[C::NEG_LR], direction, p);
  }
};

// Lion (Chen et al. 2023): the sign of a mean, so every element moves by lr. Where the mean is near
// 0 its last bit decides the sign, so it is rounded after every operation, as plain torch does it.
struct Lion : WithoutNumbers {
  static constexpr const char* name = "lion";
  SPECTRAMIND_COLUMNS(H, LR, BETA1, BETA2, WEIGHT_DECAY);
  SPECTRAMIND_COLUMNS(C, NEG_DECAY, BETA1, WEIGHT1, BETA2, WEIGHT2, NEG_LR);

  template <class T>
  SPECTRAMIND_HD static void scalars(const double* h, int64_t, Number*, double* c) {
    c[C::NEG_DECAY] = -(h[H::LR] * h[H::WEIGHT_DECAY]);
    c[C::BETA1] = h[H::BETA1];
    c[C::WEIGHT1] = 1 - h[H::BETA1];
    c[C::BETA2] = h[H::BETA2];
    c[C::WEIGHT2] = 1 - h[H::BETA2];
    c[C::NEG_LR] = -h[H::LR];
  }

  // states: exp_avg
  template <int States, class T>
  SPECTRAMIND_HD static void update(T& p, T g, T* state, const T* c) {
    const T direction = state[0] * c[C::BETA1] + c[C::WEIGHT1] * g;
    p = apply_step(p, c[C::NEG_DECAY], c[C::NEG_LR], sign(direction));
    state[0] = state[0] * c[C::BETA2] + c[C::WEIGHT2] * g;
  }
};

// NAdam (Dozat 2016): Adam with Nesterov's momentum, which grows step by step. The product of all
// momenta so far is kept.
struct NAdam {
  static constexpr const char* name = "nadam";
  SPECTRAMIND_COLUMNS(H, LR, BETA1, BETA2, EPS, WEIGHT_DECAY, MOMENTUM_DECAY, DECOUPLED);
  SPECTRAMIND_COLUMNS(N, MU_PRODUCT);
  SPECTRAMIND_COLUMNS(C, NEG_DECAY, L2, WEIGHT1, WEIGHT2, CORRECTION2, EPSILON, OF_GRADIENT,
                      OF_MEAN);

  SPECTRAMIND_HD static double mu(const double* h, double step) {
    return h[H::BETA1] * (1 - 0.5 * real_power(0.96, step * h[H::MOMENTUM_DECAY]));
  }

  template <class T>
  SPECTRAMIND_HD static void scalars(const double* h, int64_t step, Number* n, double* c) {
    const double now = mu(h, double(step)), next = mu(h, double(step + 1));
    n[N::MU_PRODUCT].multiply(now);
    const double product = n[N::MU_PRODUCT].value;
    c[C::NEG_DECAY] = neg_decay_of(h[H::LR], h[H::WEIGHT_DECAY], h[H::DECOUPLED]);
    c[C::L2] = l2_of(h[H::WEIGHT_DECAY], h[H::DECOUPLED]);
    c[C::WEIGHT1] = 1 - h[H::BETA1];
    c[C::WEIGHT2] = 1 - h[H::BETA2];
    c[C::CORRECTION2] = 1 - power<T>(h[H::BETA2], step);
    c[C::EPSILON] = h[H::EPS];
    c[C::OF_GRADIENT] = -h[H::LR] * (1 - now) / (1 - product);
    c[C::OF_MEAN] = -h[H::LR] * next / (1 - product * next);
  }

  // states: exp_avg, exp_avg_sq
  template <int States, class T>
  SPECTRAMIND_HD static void update(T& p, T g, T* state, const T* c) {
    g = add_l2(g, c[C::L2], p);
    state[0] = lerp(state[0], g, c[C::WEIGHT1]);
    state[1] = next_mean_square(state[1], g, c[C::WEIGHT2]);
    const T denominator = std::sqrt(state[1] / c[C::CORRECTION2]) + c[C::EPSILON];
    const T step = fma(c[C::OF_GRADIENT], g, c[C::OF_MEAN] * state[0]) / denominator;
    p = apply_step(p, c[C::NEG_DECAY], T(1), step);
  }
};

// RAdam (Liu et al. 2020): Adam whose step is rectified by how much is known of the variance, and
// plain momentum as long as that is too little.
struct RAdam : WithoutNumbers {
  static constexpr const char* name = "radam";
  SPECTRAMIND_COLUMNS(H, LR, BETA1, BETA2, EPS, WEIGHT_DECAY, DECOUPLED);
  SPECTRAMIND_COLUMNS(C, NEG_DECAY, L2, WEIGHT1, WEIGHT2, OF_MEAN, NEG_STEP, EPSILON, ADAPTIVE);

  template <class T>
  SPECTRAMIND_HD static void scalars(const double* h, int64_t step, Number*, double* c) {
    const double beta2_power = power<T>(h[H::BETA2], step), correction2 = 1 - beta2_power;
    const double longest = 2 / (1 - h[H::BETA2]) - 1;  // the length of the average, at last and now
    const double length = longest - 2 * double(step) * beta2_power / correction2;
    const bool adaptive = length > 5;
    const double rectified =
        (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length);
    const double factor = adaptive ? std::sqrt(correction2) * std::sqrt(rectified) : 1;
    c[C::NEG_DECAY] = neg_decay_of(h[H::LR], h[H::WEIGHT_DECAY], h[H::DECOUPLED]);
    c[C::L2] = l2_of(h[H::WEIGHT_DECAY], h[H::DECOUPLED]);
    c[C::WEIGHT1] = 1 - h[H::BETA1];
    c[C::WEIGHT2] = 1 - h[H::BETA2];
    c[C::OF_MEAN] = 1 / (1 - power<T>(h[H::BETA1], step));
    c[C::NEG_STEP] = -(h[H::LR] * factor);
    c[C::EPSILON] = h[H::EPS];
    c[C::ADAPTIVE] = adaptive;
  }

  // states: exp_avg, exp_avg_sq
  template <int States, class T>
  SPECTRAMIND_HD static void update(T& p, T g, T* state, const T* c) {
    g = add_l2(g, c[C::L2], p);
    state[0] = lerp(state[0], g, c[C::WEIGHT1]);
    state[1] = next_mean_square(state[1], g, c[C::WEIGHT2]);
    const T denominator = c[C::ADAPTIVE] != T(0) ? std::sqrt(state[1]) + c[C::EPSILON] : T(1);
    const T step = c[C::NEG_STEP] * (c[C::OF_MEAN] * state[0] / denominator);
    p = next_momentum(p, c[C::NEG_DECAY], step);  // an infinite one stays so
  }
};

// Adagrad (Duchi et al. 2011): every element's gradients so far, squared, are summed.
struct Adagrad : WithoutNumbers {
  static constexpr const char* name = "adagrad";
  SPECTRAMIND_COLUMNS(H, LR, LR_DECAY, WEIGHT_DECAY, EPS);
  SPECTRAMIND_COLUMNS(C, L2, NEG_STEP, EPSILON);

  template <class T>
  SPECTRAMIND_HD static void scalars(const double* h, int64_t step, Number*, double* c) {
    c[C::L2] = h[H::WEIGHT_DECAY];
    c[C::NEG_STEP] = -(h[H::LR] / (1 + double(step - 1) * h[H::LR_DECAY]));
    c[C::EPSILON] = h[H::EPS];
  }

  // states: sum
  template <int States, class T>
  SPECTRAMIND_HD static void update(T& p, T g, T* state, const T* c) {
    g = add_l2(g, c[C::L2], p);
    state[0] = fma(g, g, state[0]);
    p = fma(c[C::NEG_STEP], g / (std::sqrt(state[0]) + c[C::EPSILON]), p);
  }
};

// Adamax (Kingma and Ba 2015): Adam by the largest gradient instead of the mean square.
struct Adamax : WithoutNumbers {
  static constexpr const char* name = "adamax";
  SPECTRAMIND_COLUMNS(H, LR, BETA1, BETA2, EPS, WEIGHT_DECAY);
  SPECTRAMIND_COLUMNS(C, L2, WEIGHT1, BETA2, NEG_STEP, EPSILON);

  template <class T>
  SPECTRAMIND_HD static void scalars(const double* h, int64_t step, Number*, double* c) {
    c[C::L2] = h[H::WEIGHT_DECAY];
    c[C::WEIGHT1] = 1 - h[H::BETA1];
    c[C::BETA2] = h[H::BETA2];
    c[C::NEG_STEP] = -(h[H::LR] / (1 - power<T>(h[H::BETA1], step)));
    c[C::EPSILON] = h[H::EPS];
  }

  // states: exp_avg, exp_inf
  template <int States, class T>
  SPECTRAMIND_HD static void update(T& p, T g, T* state, const T* c) {
    g = add_l2(g, c[C::L2], p);
    state[0] = lerp(state[0], g, c[C::WEIGHT1]);
    state[1] = maximum(state[1] * c[C::BETA2], std::fabs(g) + c[C::EPSILON]);
    p = fma(c[C::NEG_STEP], state[0] / state[1], p);
  }
};

// Adadelta (Zeiler 2012): the step's own mean square in the place of a learning rate.
struct Adadelta : WithoutNumbers {
  static constexpr const char* name = "adadelta";
  SPECTRAMIND_COLUMNS(H, LR, RHO, EPS, WEIGHT_DECAY);
  SPECTRAMIND_COLUMNS(C, L2, WEIGHT, EPSILON, NEG_LR);

  template <class T>
  SPECTRAMIND_HD static void scalars(const double* h, int64_t, Number*, double* c) {
    c[C::L2] = h[H::WEIGHT_DECAY];
    c[C::WEIGHT] = 1 - h[H::RHO];
    c[C::EPSILON] = h[H::EPS];
    c[C::NEG_LR] = -h[H::LR];
  }

  // states: square_avg, acc_delta
  template <int States, class T>
  SPECTRAMIND_HD static void update(T& p, T g, T* state, const T* c) {
    g = add_l2(g, c[C::L2], p);
    state[0] = next_mean_square(state[0], g, c[C::WEIGHT]);
    const T before = std::sqrt(state[1] + c[C::EPSILON]);
    const T delta = before / std::sqrt(state[0] + c[C::EPSILON]) * g;
    state[1] = next_mean_square(state[1], delta, c[C::WEIGHT]);
    p = fma(c[C::NEG_LR], delta, p);
  }
};

// ASGD (Polyak and Juditsky 1992, in torch's form): SGD beside which an average of the parameters
// is kept, with the weight mu from step t0 on. Both eta, the learning rate, and mu are of the step
// before, and are kept. The first step's eta is its lr, for steps before it may have been skipped.
struct ASGD {
  static constexpr const char* name = "asgd";
  SPECTRAMIND_COLUMNS(H, LR, LAMBD, ALPHA, T0, WEIGHT_DECAY);
  SPECTRAMIND_COLUMNS(N, ETA, MU);
  SPECTRAMIND_COLUMNS(C, L2, NEG_DECAY, NEG_ETA, MU);

  template <class T>
  SPECTRAMIND_HD static void scalars(const double* h, int64_t step, Number* n, double* c) {
    const double lr = h[H::LR], since = double(step) - h[H::T0];
    if (step == 1) n[N::ETA].set(lr);
    c[C::L2] = h[H::WEIGHT_DECAY];
    c[C::NEG_DECAY] = -(h[H::LAMBD] * n[N::ETA].value);
    c[C::NEG_ETA] = -n[N::ETA].value;
    c[C::MU] = n[N::MU].value;
    n[N::ETA].value = lr / real_power(1 + h[H::LAMBD] * lr * double(step), h[H::ALPHA]);
    n[N::MU].value = since > 1 ? 1 / since : 1;
  }

  // states: ax
  template <int States, class T>
  SPECTRAMIND_HD static void update(T& p, T g, T* state, const T* c) {
    g = add_l2(g, c[C::L2], p);
    p = next_momentum(p, c[C::NEG_DECAY], c[C::NEG_ETA] * g);  // an infinite one stays so
    state[0] = c[C::MU] == T(1) ? p : fma(c[C::MU], p - state[0], state[0]);
  }
};

// Rprop (Riedmiller and Braun 1993): every element has a step size of its own, which grows while
// the gradient keeps its sign. Where the sign has changed, there is no step. The first step's size
// is its lr, for steps before it may have been skipped.
struct Rprop : WithoutNumbers {
  static constexpr const char* name = "rprop";
  SPECTRAMIND_COLUMNS(H, LR, SHRINK, GROW, LEAST, MOST);
  SPECTRAMIND_COLUMNS(C, FIRST, SHRINK, GROW, LEAST, MOST);

  template <class T>
  SPECTRAMIND_HD static void scalars(const double* h, int64_t step, Number*, double* c) {
    for (int j = 0; j < C::COLUMNS; ++j) c[j] = h[j];
    if (step != 1) c[C::FIRST] = -1;
  }

  // states: prev, step_size
  template <int States, class T>
  SPECTRAMIND_HD static void update(T& p, T g, T* state, const T* c) {
    const T turn = g * state[0];
    const T factor = turn > T(0) ? c[C::GROW] : turn < T(0) ? c[C::SHRINK] : T(1);
    T size = (c[C::FIRST] < T(0) ? state[1] : c[C::FIRST]) * factor;
    size = size < c[C::LEAST] ? c[C::LEAST] : size;
    state[1] = size > c[C::MOST] ? c[C::MOST] : size;
    state[0] = turn < T(0) ? T(0) : g;
    p = fma(-sign(state[0]), state[1], p);
  }
};

// Muon (Jordan et al. 2024), before the products of whole matrices: its momentum, and what is to be
// made orthogonal, which is written in the place of a parameter.
struct MuonMomentum : WithoutNumbers {
  static constexpr const char* name = "muon_momentum";
  SPECTRAMIND_COLUMNS(H, MOMENTUM, NESTEROV);
  SPECTRAMIND_COLUMNS(C, WEIGHT, MOMENTUM, NESTEROV);

  template <class T>
  SPECTRAMIND_HD static void scalars(const double* h, int64_t, Number*, double* c) {
    c[C::WEIGHT] = 1 - h[H::MOMENTUM];
    c[C::MOMENTUM] = h[H::MOMENTUM];
    c[C::NESTEROV] = h[H::NESTEROV];
  }

  // states: momentum_buffer
  template <int States, class T>
  SPECTRAMIND_HD static void update(T& p, T g, T* state, const T* c) {
    state[0] = lerp(state[0], g, c[C::WEIGHT]);
    p = c[C::NESTEROV] != T(0) ? lerp(g, state[0], c[C::MOMENTUM]) : state[0];
  }
};

// Muon, after them: the orthogonal matrix comes in the place of a gradient.
struct Muon : WithoutNumbers {
  static constexpr const char* name = "muon";
  SPECTRAMIND_COLUMNS(H, LR, WEIGHT_DECAY, RATIO);
  SPECTRAMIND_COLUMNS(C, NEG_DECAY, NEG_STEP);

  template <class T>
  SPECTRAMIND_HD static void scalars(const double* h, int64_t, Number*, double* c) {
    c[C::NEG_DECAY] = -(h[H::LR] * h[H::WEIGHT_DECAY]);
    c[C::NEG_STEP] = -(h[H::LR] * h[H::RATIO]);
  }

  template <int States, class T>
  SPECTRAMIND_HD static void update(T& p, T g, T*, const T* c) {
    p = apply_step(p, c[C::NEG_DECAY], c[C::NEG_STEP], g);
  }
};

// Adafactor (Shazeer and Stern 2018, in torch's form): Adam without a mean, its step relative to
// the size of the parameter. The mean square of a matrix is the product of a row's and a column's,
// which factored.h moves on, and stands in the place of the state; of what has fewer dimensions it
// is a state. How long the step is depends on all elements: `scale` fills it in, when `measure` has
// added up their squares.
template <bool Factored>
struct Adafactor : WithoutNumbers {
  static constexpr const char* name = Factored ? "adafactor" : "adafactor_of_vectors";
  SPECTRAMIND_COLUMNS(H, LR, BETA2_DECAY, EPS1, EPS2, D, WEIGHT_DECAY);
  SPECTRAMIND_COLUMNS(C, NEG_DECAY, WEIGHT, EPS1, LEAST, NEG_STEP);

  template <class T>
  SPECTRAMIND_HD static void scalars(const double* h, int64_t step, Number*, double* c) {
    // (An infinite lr means the step's own length.)
    c[C::NEG_DECAY] = h[H::WEIGHT_DECAY] != 0 ? -(h[H::LR] * h[H::WEIGHT_DECAY]) : 0;
    c[C::WEIGHT] = real_power(double(step), h[H::BETA2_DECAY]);
    c[C::EPS1] = h[H::EPS1];
    c[C::LEAST] = h[H::EPS1] * h[H::EPS1];
    c[C::NEG_STEP] = 0;
  }

  // Of the whole tensor: the mean squares of its steps' directions and of its elements.
  SPECTRAMIND_HD static double neg_step(const double* h, double step, double direction, double p) {
    const double size = std::sqrt(p), excess = std::sqrt(direction) / h[H::D];
    const double decayed = 1 / std::sqrt(step);
    const double relative = decayed < h[H::LR] ? decayed : h[H::LR];
    const double length = (size > h[H::EPS2] ? size : h[H::EPS2]) * relative;
    return -(length / (excess > 1 ? excess : 1));
  }

  template <class T>
  SPECTRAMIND_HD static T direction(T g, T& second, const T* c) {
    if (!Factored) second = lerp(second, g * g, c[C::WEIGHT]);
    return g / std::sqrt(second < c[C::LEAST] ? c[C::LEAST] : second);
  }

  // states: the product of both factors, which is not written; else variance
  template <int States, class T>
  SPECTRAMIND_HD static void update(T& p, T g, T* state, const T* c) {
    p = apply_step(p, c[C::NEG_DECAY], c[C::NEG_STEP], direction(g, state[0], c));
  }
};

// Rules whose step depends on what `measure` finds.
template <class Rule>
constexpr bool is_measured = false;
template <bool Factored>
constexpr bool is_measured<Adafactor<Factored>> = true;
template <class Rule>
constexpr bool is_factored = false;
template <>
constexpr bool is_factored<Adafactor<true>> = true;

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
  DO(Lion, 1)                          \
  DO(NAdam, 2)                         \
  DO(RAdam, 2)                         \
  DO(Adagrad, 1)                       \
  DO(Adamax, 2)                        \
  DO(Adadelta, 2)                      \
  DO(ASGD, 1)                          \
  DO(Rprop, 2)                         \
  DO(MuonMomentum, 1)                  \
  DO(Muon, 0)                          \
  DO(Adafactor<true>, 1)               \
  DO(Adafactor<false>, 1)

// Lookahead's sync (Zhang et al. 2019): the slow weights go a part of the way to
// the fast ones, which then start again from there.
template <class T>
SPECTRAMIND_HD inline void lookahead_sync(T& fast, T& slow, T alpha) {
  slow = fma(alpha, fast - slow, slow);
  fast = slow;
}

// The coefficient of torch.nn.utils.clip_grad_norm_. It is NaN if the norm is NaN.
SPECTRAMIND_HD inline double clip_coefficient(double norm, double max_norm) {
  const double coefficient = max_norm / (norm + 1e-6);
  return coefficient > 1 ? 1 : coefficient;
}

}  // namespace spectramind
