/* Stands before the C library's read(): of the file FAILING_PATH, from byte FAILING_FROM on, the first FAILING_TIMES
   reads of the process fail with the error number FAILING_ERRNO. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int is_the_file(int descriptor) {
    char link[64], path[PATH_MAX];
    const char *wanted = getenv("FAILING_PATH");
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = wanted ? readlink(link, path, sizeof path - 1) : -1;
    if (length < 0) return 0;
    path[length] = 0;
    return strcmp(path, wanted) == 0;
}

ssize_t read(int descriptor, void *buffer, size_t count) {
    static int failed = 0;
    static ssize_t (*real)(int, void *, size_t) = NULL;
    if (!real) real = (ssize_t (*)(int, void *, size_t))dlsym(RTLD_NEXT, "read");
    int before = errno;
    if (is_the_file(descriptor) && lseek(descriptor, 0, SEEK_CUR) >= atoll(getenv("FAILING_FROM")) &&
        failed < atoi(getenv("FAILING_TIMES"))) {
        failed++;
        errno = atoi(getenv("FAILING_ERRNO"));
        return -1;
    }
    errno = before;
    return real(descriptor, buffer, count);
}
