// The part of the CUDA runtime that csrc/cuda calls: what it launches is handed to Python.
//
// Linked with the very object code that a GPU machine gets, so that choosing kernels, cutting
// launches and packing arguments are tested too.
#include <cuda_runtime_api.h>

#include <cstdlib>
#include <map>
#include <string>

namespace {

using Launched = int (*)(const char* kernel, unsigned blocks, unsigned threads, void** arguments);

std::map<const void*, std::string>& names() {
  static std::map<const void*, std::string> of;
  return of;
}
Launched launched = nullptr;
int driver_version = 13000;

}  // namespace

extern "C" {

// For the tests.
void emulated_begin(Launched callback) { launched = callback; }
void emulated_driver_version(int version) { driver_version = version; }

// What nvcc's output calls when it is loaded: every kernel has an address here, and a name in PTX.
void** __cudaRegisterFatBinary(void*) {
  static void* handle = nullptr;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterFunction(void**, const char* address, char*, const char* name, int, void*, void*,
                            void*, void*, int*) {
  names()[address] = name;
}

// Only the <<< >>> syntax would call these.
unsigned __cudaPopCallConfiguration(dim3*, dim3*, size_t*, void*) { std::abort(); }
cudaError_t __cudaGetKernel(cudaKernel_t*, const void*) { std::abort(); }
cudaError_t __cudaLaunchKernel(cudaKernel_t, dim3, dim3, void**, size_t, cudaStream_t) {
  std::abort();
}

cudaError_t cudaDriverGetVersion(int* version) {
  *version = driver_version;
  return cudaSuccess;
}
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes*, const void* kernel) {
  return names().count(kernel) ? cudaSuccess : cudaErrorInvalidDeviceFunction;
}
const char* cudaGetErrorString(cudaError_t) { return "an emulated error"; }
cudaError_t cudaLaunchKernel(const void* kernel, dim3 grid, dim3 block, void** arguments, size_t,
                             cudaStream_t) {
  return cudaError_t(launched(names().at(kernel).c_str(), grid.x, block.x, arguments));
}
}
