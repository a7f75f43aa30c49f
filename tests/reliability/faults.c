// Lets the n-th call of one kind on paths below a folder fail. Loaded with LD_PRELOAD, armed in a forked child.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { OPEN, WRITE, FSYNC, RENAME, MKDIR, NUM_KINDS };
static int armed, kind, target, code, lasting;
static int counts[NUM_KINDS];
static char below[4096];

// Call `kind_` number `target_` (from 1; 0: only count) fails with `code_`; lasting: those after it too.
void fault_arm(int kind_, int target_, int code_, int lasting_, const char* below_) {
  memset(counts, 0, sizeof counts);
  kind = kind_, target = target_, code = code_, lasting = lasting_, armed = 1;
  snprintf(below, sizeof below, "%s", below_);
}
int fault_count(int kind_) { return counts[kind_]; }

static int fails(int kind_, const char* path) {
  if (!armed || !path || strncmp(path, below, strlen(below)) != 0) return 0;
  const int n = ++counts[kind_];
  if (kind_ != kind || target == 0 || (lasting ? n < target : n != target)) return 0;
  errno = code;
  return 1;
}
static int fails_at(int kind_, int descriptor) {
  char name[64], path[4096];
  if (!armed) return 0;
  snprintf(name, sizeof name, "/proc/self/fd/%d", descriptor);
  const ssize_t length = readlink(name, path, sizeof path - 1);
  if (length < 0) return 0;
  path[length] = 0;
  return fails(kind_, path);
}
#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define MODE                                    \
  mode_t mode = 0;                              \
  if (flags & (O_CREAT | O_TMPFILE)) {          \
    va_list rest;                               \
    va_start(rest, flags);                      \
    mode = va_arg(rest, mode_t);                \
    va_end(rest);                               \
  }

int open(const char* path, int flags, ...) { MODE return fails(OPEN, path) ? -1 : REAL(open)(path, flags, mode); }
int open64(const char* path, int flags, ...) { MODE return fails(OPEN, path) ? -1 : REAL(open64)(path, flags, mode); }
int openat(int at, const char* path, int flags, ...) {
  MODE return fails(OPEN, path) ? -1 : REAL(openat)(at, path, flags, mode);
}
int openat64(int at, const char* path, int flags, ...) {
  MODE return fails(OPEN, path) ? -1 : REAL(openat64)(at, path, flags, mode);
}
ssize_t write(int fd, const void* data, size_t size) { return fails_at(WRITE, fd) ? -1 : REAL(write)(fd, data, size); }
int fsync(int fd) { return fails_at(FSYNC, fd) ? -1 : REAL(fsync)(fd); }
int fdatasync(int fd) { return fails_at(FSYNC, fd) ? -1 : REAL(fdatasync)(fd); }
int rename(const char* from, const char* to) { return fails(RENAME, to) ? -1 : REAL(rename)(from, to); }
int renameat(int a, const char* from, int b, const char* to) {
  if (to[0] == '/' ? fails(RENAME, to) : fails_at(RENAME, b)) return -1;
  return REAL(renameat)(a, from, b, to);
}
int mkdir(const char* path, mode_t mode) { return fails(MKDIR, path) ? -1 : REAL(mkdir)(path, mode); }
