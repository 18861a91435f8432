// Preloaded into a process, this counts the moments of a run and kills it at a chosen one.
//
// A moment comes before each call that opens, makes, writes, syncs, renames, links or removes
// something below SPECTRAMIND_KILL_FOLDER, and before each step, which the tests announce. Each is a
// line of SPECTRAMIND_KILL_LOG: what is about to happen, to what, with how many bytes. At moment
// number SPECTRAMIND_KILL_AT the process sends itself SIGKILL: before the call, or, with
// SPECTRAMIND_KILL_TORN, when half of its bytes are written. With SPECTRAMIND_KILL_ERRNO it is not
// killed: from there on every call but those that remove something fails with that error, and of a
// torn write the first half is written. The environment is read at each call, for the process is
// forked by one that was started with another.

#include <atomic>
#include <cerrno>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <mutex>
#include <string>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>
#include <csignal>

namespace {

std::mutex lock;
int counted = 0;

void die() {
    syscall(SYS_kill, getpid(), SIGKILL);
    for (;;) pause();
}

std::string of_handle(int handle) {
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", handle);
    const ssize_t length = syscall(SYS_readlinkat, AT_FDCWD, link, path, sizeof path);
    return length > 0 ? std::string(path, length) : "";
}

std::string absolute(int folder, const char *path) {
    if (path == nullptr) return "";
    if (path[0] == '/') return path;
    char here[PATH_MAX] = "";
    const std::string base =
        folder == AT_FDCWD ? (syscall(SYS_getcwd, here, sizeof here) > 0 ? here : "") : of_handle(folder);
    return base + "/" + path;
}

enum Then { GoOn, Half, Fail };

// What the call that follows is to do: of a write maybe the first half, and then to die or to return.
Then moment(const char *what, const std::string &path, size_t bytes = 0,
            const std::string &source = "") {
    const char *folder = getenv("SPECTRAMIND_KILL_FOLDER"), *log = getenv("SPECTRAMIND_KILL_LOG");
    if (folder == nullptr || log == nullptr) return GoOn;
    const size_t length = strlen(folder);
    if (path.compare(0, length, folder) != 0 && !path.empty()) return GoOn;
    const std::lock_guard<std::mutex> guard(lock);
    const auto inside = [&](const std::string &name) {
        return name.size() > length ? name.substr(length) : std::string();
    };
    const std::string line = std::string(what) + "\t" + inside(path) + "\t" + inside(source) + "\t" +
                             std::to_string(bytes) + "\n";
    const int handle = syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_APPEND | O_CREAT, 0644);
    syscall(SYS_write, handle, line.data(), line.size());
    syscall(SYS_close, handle);
    const char *at = getenv("SPECTRAMIND_KILL_AT"), *number = getenv("SPECTRAMIND_KILL_ERRNO");
    if (at == nullptr || ++counted < atoi(at)) return GoOn;
    if (number == nullptr && counted > atoi(at)) return GoOn;
    if (bytes > 1 && counted == atoi(at) && getenv("SPECTRAMIND_KILL_TORN") != nullptr) return Half;
    if (number == nullptr) die();
    if (strcmp(what, "remove") == 0 || strcmp(what, "step") == 0) return GoOn;
    errno = atoi(number);
    return Fail;
}

void die_unless_failing() {
    if (getenv("SPECTRAMIND_KILL_ERRNO") == nullptr) die();
}

template <typename Function> Function real(const char *name) {
    return reinterpret_cast<Function>(dlsym(RTLD_NEXT, name));
}

bool writes(int flags) { return (flags & O_ACCMODE) != O_RDONLY || (flags & O_CREAT); }

// How a file is opened matters to whoever adds up its bytes.
const char *opening(int flags) { return flags & O_TRUNC ? "open anew" : "open"; }

} // namespace

extern "C" {

void spectramind_step() { moment("step", ""); }

#define REAL(name) static const auto next = real<decltype(&name)>(#name)

#define OPENS(name)                                                                                \
    int name(const char *path, int flags, ...) {                                                   \
        REAL(name);                                                                                \
        va_list more;                                                                              \
        va_start(more, flags);                                                                     \
        const mode_t mode = va_arg(more, mode_t);                                                  \
        va_end(more);                                                                              \
        if (writes(flags) && moment(opening(flags), absolute(AT_FDCWD, path)) == Fail) return -1;  \
        return next(path, flags, mode);                                                            \
    }
OPENS(open)
OPENS(open64)

#define OPENS_AT(name)                                                                             \
    int name(int folder, const char *path, int flags, ...) {                                       \
        REAL(name);                                                                                \
        va_list more;                                                                              \
        va_start(more, flags);                                                                     \
        const mode_t mode = va_arg(more, mode_t);                                                  \
        va_end(more);                                                                              \
        if (writes(flags) && moment(opening(flags), absolute(folder, path)) == Fail) return -1;    \
        return next(folder, path, flags, mode);                                                    \
    }
OPENS_AT(openat)
OPENS_AT(openat64)

#define OPENS_STREAM(name)                                                                         \
    FILE *name(const char *path, const char *mode) {                                               \
        REAL(name);                                                                                \
        const char *how = strchr(mode, 'w') ? "open anew" : "open";                                \
        if (strpbrk(mode, "wa+") && moment(how, absolute(AT_FDCWD, path)) == Fail) return nullptr; \
        return next(path, mode);                                                                   \
    }
OPENS_STREAM(fopen)
OPENS_STREAM(fopen64)

ssize_t write(int handle, const void *bytes, size_t count) {
    REAL(write);
    switch (moment("write", of_handle(handle), count)) {
    case Fail: return -1;
    case Half: count = next(handle, bytes, count / 2); die_unless_failing(); return count;
    case GoOn: break;
    }
    return next(handle, bytes, count);
}

ssize_t writev(int handle, const struct iovec *parts, int count) {
    REAL(writev);
    size_t bytes = 0;
    for (int i = 0; i < count; i++) bytes += parts[i].iov_len;
    switch (moment("write", of_handle(handle), bytes)) {
    case Fail: return -1;
    case Half: bytes = next(handle, parts, count / 2); die_unless_failing(); return bytes;
    case GoOn: break;
    }
    return next(handle, parts, count);
}

#define WRITES_AT(name, offset_type)                                                               \
    ssize_t name(int handle, const void *bytes, size_t count, offset_type offset) {                \
        REAL(name);                                                                                \
        switch (moment("write", of_handle(handle), count)) {                                       \
        case Fail: return -1;                                                                      \
        case Half: count = next(handle, bytes, count / 2, offset); die_unless_failing();           \
            return count;                                                                          \
        case GoOn: break;                                                                          \
        }                                                                                          \
        return next(handle, bytes, count, offset);                                                 \
    }
WRITES_AT(pwrite, off_t)
WRITES_AT(pwrite64, off64_t)

ssize_t sendfile64(int to, int from, off64_t *offset, size_t count) {
    static const auto next = real<ssize_t (*)(int, int, off64_t *, size_t)>("sendfile64");
    struct stat about;
    fstat(from, &about);
    const off64_t left = about.st_size - (offset ? *offset : lseek(from, 0, SEEK_CUR));
    if (size_t(left) < count) count = left; // the caller asks for more than there is
    switch (count ? moment("write", of_handle(to), count) : GoOn) {
    case Fail: return -1;
    case Half: count = next(to, from, offset, count / 2); die_unless_failing(); return count;
    case GoOn: break;
    }
    return next(to, from, offset, count);
}
ssize_t sendfile(int to, int from, off_t *offset, size_t count) {
    return sendfile64(to, from, offset, count);
}

#define ON_HANDLE(name, what, signature, call)                                                     \
    int name signature {                                                                           \
        REAL(name);                                                                                \
        if (moment(what, of_handle(handle)) == Fail) return -1;                                    \
        return next call;                                                                          \
    }
ON_HANDLE(fsync, "sync", (int handle), (handle))
ON_HANDLE(fdatasync, "sync", (int handle), (handle))
ON_HANDLE(ftruncate, "truncate", (int handle, off_t size), (handle, size))
ON_HANDLE(ftruncate64, "truncate", (int handle, off64_t size), (handle, size))

#define ON_PATH(name, what, folder, path, signature, call)                                         \
    int name signature {                                                                           \
        REAL(name);                                                                                \
        if (moment(what, absolute(folder, path)) == Fail) return -1;                               \
        return next call;                                                                          \
    }
#define ON_PATHS(name, what, folder, from, to_folder, to, signature, call)                         \
    int name signature {                                                                           \
        REAL(name);                                                                                \
        if (moment(what, absolute(to_folder, to), 0, absolute(folder, from)) == Fail) return -1;   \
        return next call;                                                                          \
    }
ON_PATHS(rename, "rename", AT_FDCWD, from, AT_FDCWD, to, (const char *from, const char *to),
         (from, to))
ON_PATHS(renameat, "rename", a, from, b, to, (int a, const char *from, int b, const char *to),
         (a, from, b, to))
ON_PATHS(link, "link", AT_FDCWD, from, AT_FDCWD, to, (const char *from, const char *to), (from, to))
ON_PATHS(linkat, "link", a, from, b, to,
         (int a, const char *from, int b, const char *to, int flags), (a, from, b, to, flags))
ON_PATH(symlink, "link", AT_FDCWD, to, (const char *from, const char *to), (from, to))
ON_PATH(unlink, "remove", AT_FDCWD, path, (const char *path), (path))
ON_PATH(unlinkat, "remove", folder, path, (int folder, const char *path, int flags),
        (folder, path, flags))
ON_PATH(rmdir, "remove", AT_FDCWD, path, (const char *path), (path))
ON_PATH(mkdir, "make", AT_FDCWD, path, (const char *path, mode_t mode), (path, mode))
ON_PATH(mkdirat, "make", folder, path, (int folder, const char *path, mode_t mode),
        (folder, path, mode))
}
