/* Latency, bandwidth and faults: the site's settings, mmapped and read again at each call. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "internal.h"

enum { SETTINGS_BYTES = 4096, RULES = 32 };
enum { ACTION_ERROR = 1, ACTION_FREEZE, ACTION_CRASH, ACTION_LOST };

struct vl_settings *vl_settings_map(const char *path)
{
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0) {
        vl_log(VL_WARNING, "lab: cannot open %s: %s", path, strerror(errno));
        return NULL;
    }
    struct stat status;
    void *map = MAP_FAILED;
    if (fstat(fd, &status) == 0 && status.st_size >= SETTINGS_BYTES)
        map = mmap(NULL, SETTINGS_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (map == MAP_FAILED) {
        vl_log(VL_WARNING, "lab: %s is not a settings file", path);
        return NULL;
    }
    struct vl_settings *settings = map;
    if (memcmp(settings->magic, "VRLABSET", 8) != 0 || settings->version != 1) {
        vl_log(VL_WARNING, "lab: %s is not a settings file of version 1", path);
        munmap(map, SETTINGS_BYTES);
        return NULL;
    }
    return settings;
}

void vl_settings_unmap(struct vl_settings *settings)
{
    if (settings != NULL)
        munmap(settings, SETTINGS_BYTES);
}

static bool matches(const char *pattern, size_t size, const char *value)
{
    return pattern[0] == '\0' || strncmp(pattern, value, size) == 0;
}

struct vl_fault vl_fault_take(struct vl_settings *settings, enum vl_op op, const char *vm, const char *mode)
{
    struct vl_fault fault = {0};
    for (int i = 0; i < RULES; i++) {
        struct vl_rule *rule = &settings->rules[i];
        if (__atomic_load_n(&rule->op, __ATOMIC_ACQUIRE) != (uint32_t)op)
            continue;
        if (!matches(rule->vm, sizeof rule->vm, vm) || !matches(rule->mode, sizeof rule->mode, mode))
            continue;
        uint64_t nth = __atomic_add_fetch(&rule->seen, 1, __ATOMIC_RELAXED);
        uint64_t first = rule->first > 0 ? rule->first : 1;
        if (nth < first || (rule->count > 0 && nth - first >= rule->count))
            continue;
        switch (rule->action) {
        case ACTION_ERROR:
            fault.code = fault.code ? fault.code : (rule->code ? rule->code : VIX_E_FAIL);
            break;
        case ACTION_FREEZE:
            fault.freeze_ms += rule->param;
            break;
        case ACTION_CRASH:
            fault.crash = true;
            break;
        case ACTION_LOST:
            fault.lost = true;
            break;
        default:
            break;
        }
    }
    return fault;
}

void vl_fault_crash(const struct vl_fault *fault)
{
    if (!fault->crash)
        return;
    /* A client's own handler (Python's faulthandler) must not turn the crash into something else. */
    signal(SIGSEGV, SIG_DFL);
    raise(SIGSEGV);
    abort();
}

VixError vl_fault_now(const struct vl_fault *fault)
{
    if (fault->freeze_ms > 0)
        vl_sleep_until(vl_now_ns() + fault->freeze_ms * 1000000u);
    vl_fault_crash(fault);
    return fault->lost ? (VixError)VIX_E_HOST_TCP_CONN_LOST : fault->code;
}

uint64_t vl_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

void vl_sleep_until(uint64_t deadline_ns)
{
    struct timespec deadline = {.tv_sec = (time_t)(deadline_ns / 1000000000u),
                                .tv_nsec = (long)(deadline_ns % 1000000000u)};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &deadline, NULL) == EINTR)
        continue;
}
