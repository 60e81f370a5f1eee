/* The library's own thread: it watches the connections of open handles for a host that hangs up.
 *
 * VDDK keeps background threads from InitEx on as well, which is why a client that forks afterwards breaks.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <poll.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "internal.h"

struct watched {
    int fd;
    uint64_t serial; /* a descriptor number may be used again while poll() returns */
    int *lost;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct watched *watched;
static size_t watched_count, watched_capacity;
static uint64_t next_serial;
static int wake = -1;
static bool stopping;
static pthread_t thread;

static void poke(void)
{
    uint64_t one = 1;
    if (write(wake, &one, sizeof one) < 0)
        return; /* the counter is full: a wake-up is pending anyway */
}

struct polled {
    struct pollfd *list;
    uint64_t *serials;
    size_t count, capacity;
};

static bool list_descriptors(struct polled *polled)
{
    pthread_mutex_lock(&lock);
    size_t count = watched_count + 1;
    if (polled->capacity < count) {
        struct pollfd *list = realloc(polled->list, 2 * count * sizeof *list);
        if (list != NULL)
            polled->list = list;
        uint64_t *serials = realloc(polled->serials, 2 * count * sizeof *serials);
        if (serials != NULL)
            polled->serials = serials;
        if (list == NULL || serials == NULL) {
            pthread_mutex_unlock(&lock);
            return false;
        }
        polled->capacity = 2 * count;
    }
    polled->list[0] = (struct pollfd){.fd = wake, .events = POLLIN};
    for (size_t i = 0; i < watched_count; i++) {
        polled->list[i + 1] = (struct pollfd){.fd = watched[i].fd, .events = POLLRDHUP};
        polled->serials[i + 1] = watched[i].serial;
    }
    polled->count = count;
    pthread_mutex_unlock(&lock);
    return true;
}

static void mark_lost(uint64_t serial)
{
    bool found = false;
    pthread_mutex_lock(&lock);
    for (size_t i = 0; i < watched_count; i++)
        if (watched[i].serial == serial) {
            __atomic_store_n(watched[i].lost, 1, __ATOMIC_RELEASE);
            watched[i] = watched[--watched_count];
            found = true;
            break;
        }
    pthread_mutex_unlock(&lock);
    if (found)
        vl_log(VL_WARNING, "NFC: the host closed the connection of an open disk (error 14011)");
}

static void *run(void *unused)
{
    (void)unused;
    struct polled polled = {0};
    vl_log(VL_DEBUG, "VixDiskLib: background thread started");
    while (!__atomic_load_n(&stopping, __ATOMIC_ACQUIRE)) {
        if (!list_descriptors(&polled) || poll(polled.list, polled.count, -1) <= 0)
            continue;
        uint64_t pokes;
        if ((polled.list[0].revents & POLLIN) && read(wake, &pokes, sizeof pokes) < 0)
            continue;
        for (size_t i = 1; i < polled.count; i++)
            if (polled.list[i].revents & (POLLRDHUP | POLLHUP | POLLERR | POLLNVAL))
                mark_lost(polled.serials[i]);
    }
    free(polled.list);
    free(polled.serials);
    return NULL;
}

bool vl_monitor_start(void)
{
    wake = eventfd(0, EFD_CLOEXEC);
    if (wake < 0)
        return false;
    __atomic_store_n(&stopping, false, __ATOMIC_RELEASE);
    return pthread_create(&thread, NULL, run, NULL) == 0;
}

void vl_monitor_stop(void)
{
    __atomic_store_n(&stopping, true, __ATOMIC_RELEASE);
    poke();
    pthread_join(thread, NULL);
    close(wake);
    wake = -1;
    free(watched);
    watched = NULL;
    watched_count = watched_capacity = 0;
}

void vl_monitor_add(int fd, int *lost)
{
    pthread_mutex_lock(&lock);
    if (watched_count == watched_capacity) {
        size_t larger = watched_capacity * 2 + 8;
        struct watched *grown = realloc(watched, larger * sizeof *grown);
        if (grown != NULL) {
            watched = grown;
            watched_capacity = larger;
        }
    }
    if (watched_count < watched_capacity)
        watched[watched_count++] = (struct watched){.fd = fd, .serial = next_serial++, .lost = lost};
    pthread_mutex_unlock(&lock);
    poke();
}

void vl_monitor_remove(int fd)
{
    pthread_mutex_lock(&lock);
    for (size_t i = 0; i < watched_count; i++)
        if (watched[i].fd == fd) {
            watched[i] = watched[--watched_count];
            break;
        }
    pthread_mutex_unlock(&lock);
    poke();
}
