#include "deeplight_kernels.h"

#include <dlfcn.h>

#include <cstddef>
#include <cstring>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

// kernels.bin without a copy in source form, which takes a compiler minutes to read
__asm__(
    ".section .rodata\n"
    ".balign 64\n"
    "deeplight_kernels_blob:\n"
    ".incbin \"" DEEPLIGHT_KERNELS_BLOB "\"\n"
    ".byte 0\n"
    ".previous\n");
extern "C" __attribute__((visibility("hidden"))) const char deeplight_kernels_blob[];

namespace {

struct Row {
  const char *key;
  const char *kernel;
  int arch;
  unsigned long long offset;
  unsigned long long size;
  int threads;
  int shared;
  int parameters;
};

constexpr Row kRows[] = {
#include "kernels.inc"
};
constexpr int kScratchPointers = 2;
constexpr int kDefaultShared = 48 * 1024;
constexpr int kMajor = 75, kMinor = 76, kMaxDynamicShared = 8;  // CUdevice_attribute, CUfunction_attribute

// The few types of cuda.h that are needed: opaque handles and a result.
using Result = int;
using Handle = void *;

struct Driver {
  Result (*init)(unsigned);
  Result (*current)(Handle *);
  Result (*device)(int *);
  Result (*attribute)(int *, int, int);
  Result (*load)(Handle *, const void *);
  Result (*function)(Handle *, Handle, const char *);
  Result (*set)(Handle, int, int);
  Result (*launch)(Handle, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, Handle, void **,
                   void **);
};

template <typename F>
bool find(void *library, const char *name, F &into) {
  into = reinterpret_cast<F>(dlsym(library, name));
  return into != nullptr;
}

const Driver *driver() {
  static const Driver *const loaded = [] {
    static Driver d;
    void *library = dlopen("libcuda.so.1", RTLD_NOW);
    const bool complete =
        library != nullptr && find(library, "cuInit", d.init) && find(library, "cuCtxGetCurrent", d.current) &&
        find(library, "cuCtxGetDevice", d.device) && find(library, "cuDeviceGetAttribute", d.attribute) &&
        find(library, "cuModuleLoadData", d.load) && find(library, "cuModuleGetFunction", d.function) &&
        find(library, "cuFuncSetAttribute", d.set) && find(library, "cuLaunchKernel", d.launch);
    return complete && d.init(0) == 0 ? &d : nullptr;
  }();
  return loaded;
}

thread_local Result last_error = 0;

deeplight_status checked(Result result) {
  if (result == 0) return DEEPLIGHT_OK;
  last_error = result;
  return DEEPLIGHT_CUDA_ERROR;
}

// Code for 8.0 also runs on later chips of the 8 series; from 9.0 on ours is for one architecture alone.
bool runs_on(const Row &row, int arch) { return row.arch == arch || (arch / 10 == 8 && row.arch / 10 == 8 && row.arch < arch); }

const Row *choose(const char *key, int arch) {
  const Row *best = nullptr;
  for (const Row &row : kRows)
    if (runs_on(row, arch) && std::strcmp(row.key, key) == 0 && (best == nullptr || row.arch > best->arch)) best = &row;
  return best;
}

deeplight_status current_arch(const Driver &d, Handle &context, int &arch) {
  int device = 0, major = 0, minor = 0;
  if (d.current(&context) != 0 || context == nullptr || d.device(&device) != 0) return DEEPLIGHT_NO_DEVICE;
  if (d.attribute(&major, kMajor, device) != 0 || d.attribute(&minor, kMinor, device) != 0) return DEEPLIGHT_NO_DEVICE;
  arch = 10 * major + minor;
  return DEEPLIGHT_OK;
}

deeplight_status loaded_function(const Driver &d, Handle context, const Row &row, Handle &function) {
  static std::mutex lock;
  static std::map<std::pair<Handle, const Row *>, Handle> functions;
  const std::lock_guard<std::mutex> guard(lock);
  const auto known = functions.find({context, &row});
  if (known != functions.end()) {
    function = known->second;
    return DEEPLIGHT_OK;
  }
  Handle module = nullptr;
  deeplight_status status = checked(d.load(&module, deeplight_kernels_blob + row.offset));
  if (status == DEEPLIGHT_OK) status = checked(d.function(&function, module, row.kernel));
  if (status == DEEPLIGHT_OK && row.shared > kDefaultShared)
    status = checked(d.set(function, kMaxDynamicShared, row.shared));
  if (status == DEEPLIGHT_OK) functions[{context, &row}] = function;
  return status;
}

bool known_key(const char *key, int count, bool &count_fits) {
  for (const Row &row : kRows)
    if (std::strcmp(row.key, key) == 0) {
      count_fits = row.parameters - kScratchPointers == count;
      return true;
    }
  return false;
}

}  // namespace

extern "C" {

int deeplight_kernels_abi(void) { return DEEPLIGHT_KERNELS_ABI; }

const char *deeplight_kernels_version(void) { return DEEPLIGHT_VERSION; }

int deeplight_kernels_count(void) { return static_cast<int>(sizeof(kRows) / sizeof(kRows[0])); }

const deeplight_kernel_info *deeplight_kernels_get(int index) {
  static const std::vector<deeplight_kernel_info> infos = [] {
    std::vector<deeplight_kernel_info> all;
    for (const Row &row : kRows)
      all.push_back({row.key, row.kernel, row.arch, row.threads, row.shared, row.parameters - kScratchPointers});
    return all;
  }();
  return index >= 0 && index < deeplight_kernels_count() ? &infos[static_cast<std::size_t>(index)] : nullptr;
}

const char *deeplight_kernels_message(deeplight_status status) {
  switch (status) {
    case DEEPLIGHT_OK: return "no error";
    case DEEPLIGHT_NO_DRIVER: return "the CUDA driver (libcuda.so.1) is not installed or does not start";
    case DEEPLIGHT_NO_DEVICE: return "there is no current CUDA context on this thread";
    case DEEPLIGHT_NOT_FOUND: return "the library holds no such kernel for this GPU's architecture";
    case DEEPLIGHT_BAD_ARGUMENT: return "an argument is null, the grid is empty, or the number of arguments is wrong";
    case DEEPLIGHT_CUDA_ERROR: return "the CUDA driver refused the launch";
  }
  return "unknown status";
}

int deeplight_kernels_last_cuda_error(void) { return last_error; }

deeplight_status deeplight_kernels_launch(const char *key, unsigned programs, void *const *arguments, int count,
                                          void *stream) {
  if (key == nullptr || arguments == nullptr || programs == 0) return DEEPLIGHT_BAD_ARGUMENT;
  bool count_fits = false;
  if (!known_key(key, count, count_fits)) return DEEPLIGHT_NOT_FOUND;
  if (!count_fits) return DEEPLIGHT_BAD_ARGUMENT;
  const Driver *d = driver();
  if (d == nullptr) return DEEPLIGHT_NO_DRIVER;
  Handle context = nullptr, function = nullptr;
  int arch = 0;
  deeplight_status status = current_arch(*d, context, arch);
  if (status != DEEPLIGHT_OK) return status;
  const Row *row = choose(key, arch);
  if (row == nullptr) return DEEPLIGHT_NOT_FOUND;
  status = loaded_function(*d, context, *row, function);
  if (status != DEEPLIGHT_OK) return status;
  void *scratch = nullptr;
  std::vector<void *> all(arguments, arguments + count);
  for (int i = 0; i < kScratchPointers; ++i) all.push_back(&scratch);
  return checked(d->launch(function, programs, 1, 1, static_cast<unsigned>(row->threads), 1, 1,
                           static_cast<unsigned>(row->shared), stream, all.data(), nullptr));
}
}
