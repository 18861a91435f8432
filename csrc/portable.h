// What makes a function one of CPUs and of GPUs.
#pragma once

#ifdef __CUDACC__
#define SPECTRAMIND_HD __host__ __device__
#else
#define SPECTRAMIND_HD
#endif
