/* A CUDA driver that has no GPU behind it: it checks what a caller does and prints each launch as a line of JSON.
 *
 * FAKE_ARCH: the compute capability it claims (90). FAKE_CONTEXT=none: no current context. FAKE_FAIL: the name of a
 * function that returns 700. FAKE_TYPES: a letter per argument of the launched kernel, p(ointer), i(nt) or f(loat). */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *setting(const char *name, const char *otherwise) {
  const char *value = getenv(name);
  return value ? value : otherwise;
}

static int result(const char *function) { return strcmp(setting("FAKE_FAIL", ""), function) == 0 ? 700 : 0; }

int cuInit(unsigned flags) { return flags == 0 ? result("cuInit") : 1; }

int cuCtxGetCurrent(void **context) {
  *context = strcmp(setting("FAKE_CONTEXT", ""), "none") == 0 ? NULL : (void *)0x10;
  return result("cuCtxGetCurrent");
}

int cuCtxGetDevice(int *device) {
  *device = 3;
  return result("cuCtxGetDevice");
}

int cuDeviceGetAttribute(int *value, int attribute, int device) {
  const int arch = atoi(setting("FAKE_ARCH", "90"));
  if (device != 3 || (attribute != 75 && attribute != 76)) return 1;
  *value = attribute == 75 ? arch / 10 : arch % 10;
  return result("cuDeviceGetAttribute");
}

int cuModuleLoadData(void **module, const void *image) {
  /* an ELF file for e_machine 190, EM_CUDA */
  const unsigned char *bytes = image;
  if (memcmp(bytes, "\177ELF", 4) != 0 || bytes[18] != 190) return 200;
  unsigned flags;
  memcpy(&flags, bytes + 48, sizeof flags);
  printf("{\"load\": %u}\n", flags);
  fflush(stdout);
  *module = (void *)image;
  return result("cuModuleLoadData");
}

int cuModuleGetFunction(void **function, void *module, const char *name) {
  if (module == NULL) return 400;
  *function = (void *)name;
  return result("cuModuleGetFunction");
}

int cuFuncSetAttribute(void *function, int attribute, int value) {
  if (function == NULL || attribute != 8 || value <= 48 * 1024) return 1;
  printf("{\"shared_limit\": %d}\n", value);
  fflush(stdout);
  return result("cuFuncSetAttribute");
}

int cuLaunchKernel(void *function, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned threads_y,
                   unsigned threads_z, unsigned shared, void *stream, void **parameters, void **extra) {
  const char *types = setting("FAKE_TYPES", "");
  if (y != 1 || z != 1 || threads_y != 1 || threads_z != 1 || extra != NULL) return 1;
  printf("{\"kernel\": \"%s\", \"programs\": %u, \"threads\": %u, \"shared\": %u, \"stream\": %llu, \"arguments\": [",
         (const char *)function, x, threads, shared, (unsigned long long)stream);
  for (size_t i = 0; i < strlen(types); ++i) {
    if (i > 0) printf(", ");
    if (types[i] == 'p') printf("%llu", *(unsigned long long *)parameters[i]);
    if (types[i] == 'i') printf("%d", *(int *)parameters[i]);
    if (types[i] == 'f') printf("%.9g", *(float *)parameters[i]);
  }
  printf("]}\n");
  fflush(stdout);
  return result("cuLaunchKernel");
}
