/* libdeeplight_kernels: DeepLight's kernels as machine code, launched through the CUDA driver.
 *
 * Neither Triton nor the CUDA toolkit is needed, at build time or at run time; the driver is loaded with dlopen.
 * All functions may be called from any thread. */
#ifndef DEEPLIGHT_KERNELS_H
#define DEEPLIGHT_KERNELS_H

#ifdef __cplusplus
extern "C" {
#endif

#define DEEPLIGHT_KERNELS_ABI 1

typedef enum {
  DEEPLIGHT_OK = 0,
  DEEPLIGHT_NO_DRIVER = 1,    /* libcuda.so.1 is not there, or lacks a function */
  DEEPLIGHT_NO_DEVICE = 2,    /* no current context, or its device cannot be asked */
  DEEPLIGHT_NOT_FOUND = 3,    /* no kernel of this name, or none for this architecture */
  DEEPLIGHT_BAD_ARGUMENT = 4, /* a null pointer, a wrong number of arguments, an empty grid */
  DEEPLIGHT_CUDA_ERROR = 5    /* the driver refused; see deeplight_kernels_last_cuda_error */
} deeplight_status;

/* One compiled variant. key: element types and compile-time arguments (deeplight.kernels.launch.Launch.key).
 * arch: 90 for compute capability 9.0. threads, shared: of a program. arguments: run-time arguments without the two
 * scratch pointers that the library appends. */
typedef struct {
  const char *key;
  const char *kernel;
  int arch;
  int threads;
  int shared;
  int arguments;
} deeplight_kernel_info;

/* DEEPLIGHT_KERNELS_ABI that the library was built with. */
int deeplight_kernels_abi(void);
/* The project's version. */
const char *deeplight_kernels_version(void);
/* Number of compiled variants, and one of them; NULL beyond the end. */
int deeplight_kernels_count(void);
const deeplight_kernel_info *deeplight_kernels_get(int index);
/* One English sentence for a status. */
const char *deeplight_kernels_message(deeplight_status status);
/* CUresult of this thread's last DEEPLIGHT_CUDA_ERROR. */
int deeplight_kernels_last_cuda_error(void);

/* Launch variant `key` with `programs` programs on `stream` (a CUstream) in the current context.
 * arguments: `count` pointers to the arguments, device pointers and 32-bit numbers, in the kernel's order; device
 * pointers of features start at multiples of 16 bytes. */
deeplight_status deeplight_kernels_launch(const char *key, unsigned programs, void *const *arguments, int count,
                                          void *stream);

#ifdef __cplusplus
}
#endif
#endif
