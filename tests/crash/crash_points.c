/* Counts the calls by which a process changes files below a folder; ends or fails it at one of them.
 *
 * Preloaded (LD_PRELOAD) and asleep until a process arms it for itself: its threads count, its
 * children do not. At the chosen call the process gets SIGKILL before the call is made, or, for a
 * write, once half of the bytes are written. Or, from the chosen call on, whatever takes space fails
 * as on a full disk. Every call can be traced. The calls are made straight to the kernel, so that
 * nothing is looked up while libraries load.
 *
 * Not seen: stores into mapped memory (SQLite's -shm, which holds nothing durable), and buffered
 * streams of the C library, which none of our writers uses; `benchmarks/reliability.py` compares
 * with strace.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#if __SIZEOF_LONG__ != 8
#error "written for 64-bit Linux, where off_t is one argument of a system call"
#endif

#define DISK_IS_FULL (-1)
#define TRACED 256 /* bytes of a line beside its paths */

static pid_t armed;         /* the process that armed itself; 0 for none */
static char root[PATH_MAX]; /* the folder that is watched */
static long kill_at;        /* number of the call, from 1; 0 for never */
static int torn;            /* whether a write is half done before the kill */
static long full_from;      /* number of the call that takes space, from 1; 0 for never */
static int trace = -1;
static atomic_long calls, takers;
static _Thread_local int doomed;

void crash_points_arm(const char *folder, long at, int half, long full, const char *trace_to)
{
    snprintf(root, sizeof root, "%s", folder);
    kill_at = at;
    torn = half;
    full_from = full;
    if (trace >= 0)
        syscall(SYS_close, trace);
    trace = -1;
    if (*trace_to)
        trace = syscall(SYS_openat, AT_FDCWD, trace_to,
                        O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    calls = takers = 0;
    armed = getpid();
}

long crash_points_calls(void) { return calls; }

long crash_points_takers(void) { return takers; }

static void record(const char *call, const char *path, const char *other, long result)
{
    char line[2 * PATH_MAX + TRACED];
    if (trace < 0)
        return;
    int size = snprintf(line, sizeof line, "%ld\t%ld\t%s\t%ld\t%s\t%s\n", (long)calls,
                        (long)syscall(SYS_gettid), call, result, path, other);
    syscall(SYS_write, trace, line, size);
}

/* Puts a word of the program into the trace, such as that it has acknowledged something. */
void crash_points_note(const char *text) { record("note", text, "", 0); }

static void die(const char *call, const char *path)
{
    record("kill", path, call, 0);
    syscall(SYS_kill, getpid(), SIGKILL);
    for (;;)
        syscall(SYS_pause);
}

static int below_root(const char *path)
{
    size_t size = strlen(root);
    return strncmp(path, root, size) == 0 && (path[size] == '/' || path[size] == '\0');
}

static int is_armed(void) { return armed && armed == getpid(); }

static int name_of(int descriptor, char *path)
{
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    long size = syscall(SYS_readlinkat, AT_FDCWD, link, path, PATH_MAX - 1);
    path[size < 0 ? 0 : size] = '\0';
    return size > 0;
}

static int watches_descriptor(int descriptor, char *path)
{
    return is_armed() && name_of(descriptor, path) && below_root(path);
}

static int watches(int folder, const char *path, char *whole)
{
    char start[PATH_MAX] = "";
    if (!is_armed() || !path)
        return 0;
    if (path[0] == '/') {
        snprintf(whole, PATH_MAX, "%s", path);
    } else {
        if (folder == AT_FDCWD)
            syscall(SYS_getcwd, start, sizeof start);
        else
            name_of(folder, start);
        if (strlen(start) + strlen(path) + 2 > PATH_MAX)
            return 0;
        strcat(strcat(strcpy(whole, start), "/"), path);
    }
    return below_root(whole);
}

/* Counts a call; gives how many of its bytes may be written, or DISK_IS_FULL. */
static long admit(const char *call, const char *path, long size, int takes_space)
{
    long number = ++calls;
    doomed = kill_at && number == kill_at;
    if (doomed && (!torn || size == 0))
        die(call, path);
    if (doomed)
        return size / 2;
    long taker = takes_space ? ++takers : 0;
    if (!full_from || taker < full_from)
        return size;
    /* The last write that finds space finds some, the others none. */
    return taker == full_from && size > 1 ? size / 2 : DISK_IS_FULL;
}

static long finish(const char *call, const char *path, const char *other, long result)
{
    int error = errno;
    if (doomed)
        die(call, path);
    record(call, path, other, result);
    errno = error;
    return result;
}

static long refuse(void)
{
    errno = ENOSPC;
    return -1;
}

#define BYTES(call, descriptor, size, whole, part)                                        \
    do {                                                                                  \
        char path[PATH_MAX];                                                              \
        if (!watches_descriptor(descriptor, path))                                        \
            return whole;                                                                 \
        long allowed = admit(call, path, size, 1);                                        \
        return finish(call, path, "", allowed == DISK_IS_FULL ? refuse() : part);         \
    } while (0)

ssize_t write(int to, const void *bytes, size_t size)
{
    BYTES("write", to, size, syscall(SYS_write, to, bytes, size),
          syscall(SYS_write, to, bytes, allowed));
}

ssize_t pwrite64(int to, const void *bytes, size_t size, off64_t at)
{
    BYTES("pwrite", to, size, syscall(SYS_pwrite64, to, bytes, size, at),
          syscall(SYS_pwrite64, to, bytes, allowed, at));
}

ssize_t pwrite(int to, const void *bytes, size_t size, off_t at)
{
    return pwrite64(to, bytes, size, at);
}

static long total(const struct iovec *parts, int count)
{
    long size = 0;
    for (int i = 0; i < count; i++)
        size += parts[i].iov_len;
    return size;
}

/* Writes the beginning of scattered bytes: as much of the first part as is allowed. */
static long beginning(int to, const struct iovec *parts, int count, long allowed)
{
    if (allowed == total(parts, count))
        return syscall(SYS_writev, to, parts, count);
    long first = parts[0].iov_len;
    return syscall(SYS_write, to, parts[0].iov_base, first < allowed ? first : allowed);
}

ssize_t writev(int to, const struct iovec *parts, int count)
{
    BYTES("writev", to, total(parts, count), syscall(SYS_writev, to, parts, count),
          beginning(to, parts, count, allowed));
}

ssize_t sendfile64(int to, int from, off64_t *at, size_t size)
{
    /* Callers ask for more than there is: half of what is left is torn, not half of what is asked. */
    struct stat source;
    long left = fstat(from, &source) == 0 && (size_t)source.st_size < size ? source.st_size : (long)size;
    BYTES("sendfile", to, left, syscall(SYS_sendfile, to, from, at, size),
          syscall(SYS_sendfile, to, from, at, allowed));
}

ssize_t sendfile(int to, int from, off_t *at, size_t size) { return sendfile64(to, from, at, size); }

ssize_t copy_file_range(int from, off64_t *at, int to, off64_t *to_at, size_t size, unsigned flags)
{
    BYTES("copy_file_range", to, size,
          syscall(SYS_copy_file_range, from, at, to, to_at, size, flags),
          syscall(SYS_copy_file_range, from, at, to, to_at, allowed, flags));
}

int fallocate64(int file, int mode, off64_t at, off64_t size)
{
    BYTES("fallocate", file, 0, syscall(SYS_fallocate, file, mode, at, size),
          syscall(SYS_fallocate, file, mode, at, size));
}

int fallocate(int file, int mode, off_t at, off_t size) { return fallocate64(file, mode, at, size); }

int posix_fallocate64(int file, off64_t at, off64_t size)
{
    return fallocate64(file, 0, at, size) == 0 ? 0 : errno;
}

int posix_fallocate(int file, off_t at, off_t size) { return posix_fallocate64(file, at, size); }

/* A full disk may say so only when what it took is to be made durable. */
int fsync(int file) { BYTES("fsync", file, 0, syscall(SYS_fsync, file), syscall(SYS_fsync, file)); }

int fdatasync(int file)
{
    BYTES("fsync", file, 0, syscall(SYS_fdatasync, file), syscall(SYS_fdatasync, file));
}

int ftruncate64(int file, off64_t size)
{
    char path[PATH_MAX];
    if (watches_descriptor(file, path)) {
        admit("truncate", path, 0, 0);
        return finish("truncate", path, "", syscall(SYS_ftruncate, file, size));
    }
    return syscall(SYS_ftruncate, file, size);
}

int ftruncate(int file, off_t size) { return ftruncate64(file, size); }

#define NAMES(call, folder, path, takes_space, other, made)                                        \
    do {                                                                                           \
        char whole[PATH_MAX];                                                                      \
        if (!watches(folder, path, whole))                                                         \
            return made;                                                                           \
        long allowed = admit(call, whole, 0, takes_space);                                         \
        return finish(call, whole, other, allowed == DISK_IS_FULL ? refuse() : made);              \
    } while (0)

int truncate64(const char *path, off64_t size)
{
    NAMES("truncate", AT_FDCWD, path, 0, "", syscall(SYS_truncate, path, size));
}

int truncate(const char *path, off_t size) { return truncate64(path, size); }

int mkdirat(int folder, const char *path, mode_t mode)
{
    NAMES("mkdir", folder, path, 1, "", syscall(SYS_mkdirat, folder, path, mode));
}

int mkdir(const char *path, mode_t mode) { return mkdirat(AT_FDCWD, path, mode); }

int unlinkat(int folder, const char *path, int flags)
{
    NAMES(flags & AT_REMOVEDIR ? "rmdir" : "unlink", folder, path, 0, "",
          syscall(SYS_unlinkat, folder, path, flags));
}

int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }

int rmdir(const char *path) { return unlinkat(AT_FDCWD, path, AT_REMOVEDIR); }

/* Of two names the later one is watched; the trace has both. */
int renameat2(int from_folder, const char *from, int folder, const char *path, unsigned flags)
{
    char origin[PATH_MAX] = "";
    watches(from_folder, from, origin);
    NAMES("rename", folder, path, 0, origin,
          syscall(SYS_renameat2, from_folder, from, folder, path, flags));
}

int renameat(int from_folder, const char *from, int folder, const char *path)
{
    return renameat2(from_folder, from, folder, path, 0);
}

int rename(const char *from, const char *path)
{
    return renameat2(AT_FDCWD, from, AT_FDCWD, path, 0);
}

int linkat(int from_folder, const char *from, int folder, const char *path, int flags)
{
    NAMES("link", folder, path, 1, from,
          syscall(SYS_linkat, from_folder, from, folder, path, flags));
}

int link(const char *from, const char *path) { return linkat(AT_FDCWD, from, AT_FDCWD, path, 0); }

int symlinkat(const char *target, int folder, const char *path)
{
    NAMES("symlink", folder, path, 1, target, syscall(SYS_symlinkat, target, folder, path));
}

int symlink(const char *target, const char *path) { return symlinkat(target, AT_FDCWD, path); }

static int opened(int folder, const char *path, int flags, mode_t mode)
{
    char whole[PATH_MAX];
    if (!(flags & (O_CREAT | O_TRUNC)) || !watches(folder, path, whole))
        return syscall(SYS_openat, folder, path, flags, mode);
    int is_new = flags & O_CREAT && syscall(SYS_faccessat, folder, path, F_OK) != 0;
    const char *call = is_new ? "create" : "open";
    long allowed = admit(call, whole, 0, is_new);
    return finish(call, whole, "", allowed == DISK_IS_FULL
                                       ? refuse()
                                       : syscall(SYS_openat, folder, path, flags, mode));
}

#define MODE(flags, mode)                                                                          \
    mode_t mode = 0;                                                                               \
    if ((flags) & (O_CREAT | O_TMPFILE)) {                                                         \
        va_list rest;                                                                              \
        va_start(rest, flags);                                                                     \
        mode = va_arg(rest, mode_t);                                                               \
        va_end(rest);                                                                              \
    }

int open(const char *path, int flags, ...)
{
    MODE(flags, mode);
    return opened(AT_FDCWD, path, flags, mode);
}

int open64(const char *path, int flags, ...)
{
    MODE(flags, mode);
    return opened(AT_FDCWD, path, flags, mode);
}

int openat(int folder, const char *path, int flags, ...)
{
    MODE(flags, mode);
    return opened(folder, path, flags, mode);
}

int openat64(int folder, const char *path, int flags, ...)
{
    MODE(flags, mode);
    return opened(folder, path, flags, mode);
}

int creat(const char *path, mode_t mode)
{
    return opened(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode);
}

int creat64(const char *path, mode_t mode) { return creat(path, mode); }
