// csrc/power.h for Python.
#include "../csrc/power.h"

extern "C" double real_power(double base, double exponent) {
  return spectramind::real_power(base, exponent);
}
