/* What the files of the lab's library share. See README.md for what each one does. */
#ifndef VL_INTERNAL_H
#define VL_INTERNAL_H

#include <pthread.h>
#include <stdbool.h>

#include "vixdisklib.h"

/* Only what is marked EXPORT leaves the library, whatever flags it was compiled with. */
#pragma GCC visibility push(hidden)

/* ---- library.c: life of the library, log, configuration ---- */

enum vl_level { VL_ERROR = 1, VL_WARNING = 2, VL_INFO = 3, VL_DEBUG = 4 };

struct vl_config {
    uint64_t buffer_bytes; /* vixDiskLib.nfcAio.Session.BufSizeIn64KB, in bytes */
    uint32_t buffer_count; /* vixDiskLib.nfcAio.Session.BufCount */
    int log_level;         /* vixDiskLib.transport.LogLevel, 0 (quiet) .. 6 */
    char tmp_directory[4096];
};

struct vl_server { /* a `server` line of lab.conf */
    char name[256];
    uint32_t port;
    char control_host[256];
    uint32_t control_port;
    char thumbprint[64];
    char settings_path[4096];
};

extern struct vl_config vl_config;

/* VIX_OK between InitEx and Exit; ends the process when it is a fork of the one that called InitEx. */
VixError vl_ready(void);
/* Error and warning lines go to the client's warn callback, others to its log callback if the level allows. */
void vl_log(enum vl_level level, const char *format, ...) __attribute__((format(printf, 2, 3)));
const char *vl_proxy_name(void);
const struct vl_server *vl_find_server(const char *name, uint32_t port);

/* ---- monitor.c: the thread that InitEx makes, which notices that a host has hung up ---- */

bool vl_monitor_start(void);
void vl_monitor_stop(void);
/* `*lost` becomes 1 once the peer of `fd` hangs up. */
void vl_monitor_add(int fd, int *lost);
void vl_monitor_remove(int fd);

/* ---- wire.c: text messages over TCP ---- */

struct vl_message {
    char *text;
    size_t length, capacity;
    bool failed; /* out of memory, or a value that holds a newline */
};

void vl_message_put(struct vl_message *message, const char *key, const char *value);
void vl_message_number(struct vl_message *message, const char *key, uint64_t value);
void vl_message_free(struct vl_message *message);
/* Value of the next line with that key after `after` (NULL: from the start), or NULL. Lines are NUL-terminated. */
const char *vl_message_get(const struct vl_message *reply, const char *key, const char *after);
uint64_t vl_message_get_number(const struct vl_message *reply, const char *key, uint64_t otherwise);

/* A connected TCP socket; -1 with errno. */
int vl_dial(const char *host, uint32_t port);
/* Sends a request and waits for its reply; returns the reply's status, or `broken` if the connection gave out. */
VixError vl_call(int fd, struct vl_message *request, struct vl_message *reply, VixError broken);

/* ---- settings.c: the mmapped settings of a site ---- */

struct vl_rule {
    uint32_t op, action;
    uint64_t code, first, count, param, seen;
    char vm[48], mode[8];
    uint64_t reserved[2];
};

struct vl_settings {
    char magic[8];
    uint32_t version, generation;
    uint64_t latency_us, bandwidth_bytes_s, write_buffer_bytes, query_chunk_limit, allocated_supported;
    uint64_t reserved[9];
    struct vl_rule rules[32];
};

_Static_assert(sizeof(struct vl_rule) == 120, "size of a rule");
_Static_assert(offsetof(struct vl_settings, rules) == 128, "offset of the rules");

enum vl_op {
    VL_OPEN = 1, VL_READ, VL_WRITE, VL_FLUSH, VL_CLOSE, VL_QUERY_ALLOCATED, VL_CONNECT, VL_PREPARE,
};

struct vl_fault {
    VixError code;     /* 0: none */
    uint64_t freeze_ms;
    bool crash, lost;
};

struct vl_settings *vl_settings_map(const char *path);
void vl_settings_unmap(struct vl_settings *settings);
/* Counts one call against every rule that matches it and says what the ones that fire do to it. */
struct vl_fault vl_fault_take(struct vl_settings *settings, enum vl_op op, const char *vm, const char *mode);
/* A crash happens here. */
void vl_fault_crash(const struct vl_fault *fault);
/* For calls without a handle: freezes, crashes, or returns the error to report (VIX_OK: none). */
VixError vl_fault_now(const struct vl_fault *fault);
uint64_t vl_now_ns(void);
void vl_sleep_until(uint64_t deadline_ns);

static inline uint64_t vl_setting(const uint64_t *field)
{
    return __atomic_load_n(field, __ATOMIC_RELAXED);
}

/* ---- disk.c: a chain of links ---- */

enum { VL_GRAIN = 65536, VL_MAX_LINKS = 64 };
enum { VL_HOLE = 0, VL_PRESENT = 1, VL_UNMAPPED = 2 };

struct vl_link {
    char *path; /* without -flat.vmdk */
    int flat;
    uint8_t *grains;
    uint64_t grain_count;
};

struct vl_segment { /* one piece in the write buffer */
    uint64_t offset, length;
    size_t at; /* in the ring, or SIZE_MAX: in the leaf's file */
};

struct vl_disk {
    uint64_t capacity; /* bytes */
    bool writable;
    unsigned links;      /* leaf first */
    unsigned read_links; /* 1 for a single-link handle, else `links` */
    struct vl_link link[VL_MAX_LINKS];
    void *ctk;
    size_t ctk_length;
    uint64_t ctk_blocks;
    uint32_t ctk_block_size;
    uint8_t *pending; /* one per grain, atomic: the leaf's file holds it, its map does not say so yet; NULL: read-only */
    /* write buffer: a ring of bytes and, oldest first, a ring of segments */
    pthread_mutex_t lock, file_lock;
    uint8_t *ring;
    size_t ring_size, ring_head; /* head: where the next piece goes */
    struct vl_segment *segments;
    size_t segment_capacity, segment_first, segment_count;
    size_t ring_count; /* of the segments, those whose bytes are in the ring */
    uint64_t buffered; /* bytes */
    uint64_t limit;    /* bytes the ring was made for */
};

VixError vl_disk_open(struct vl_disk *disk, const struct vl_message *reply, bool writable, bool single_link);
void vl_disk_close(struct vl_disk *disk); /* drops what is still in the write buffer */
VixError vl_disk_read(struct vl_disk *disk, uint64_t offset, uint64_t length, uint8_t *buffer);
/* Keeps up to `limit` bytes of the latest writes in memory; older ones reach the files. */
VixError vl_disk_write(struct vl_disk *disk, uint64_t offset, uint64_t length, const uint8_t *buffer, uint64_t limit);
VixError vl_disk_drain(struct vl_disk *disk);
VixError vl_disk_query(struct vl_disk *disk, uint64_t offset, uint64_t length, uint64_t chunk, VixDiskLibBlockList **list);

/* The link's own bytes without the write buffer, and what puts bytes into the leaf (links.c). */
VixError vl_links_read(const struct vl_disk *disk, unsigned first, unsigned links, uint64_t offset, uint64_t length,
                       uint8_t *buffer);
VixError vl_links_write(struct vl_disk *disk, uint64_t offset, uint64_t length, const uint8_t *buffer);
/* The same in steps. How many of `length` bytes lie in grains that the leaf `*held` in its map, or all not: */
uint64_t vl_links_run(const struct vl_disk *disk, uint64_t offset, uint64_t length, bool *held);
/* from here on this handle finds grains that the leaf does not hold in its file (with the rest of grains that the bytes
 * fill in part): */
VixError vl_links_claim(struct vl_disk *disk, uint64_t offset, uint64_t length);
VixError vl_links_put(struct vl_disk *disk, uint64_t offset, uint64_t length, const uint8_t *buffer);
/* and from here on so does everybody, and they are tracked as changed. */
void vl_links_publish(struct vl_disk *disk, uint64_t offset, uint64_t length);
bool vl_links_allocated(const struct vl_disk *disk, uint64_t first_grain, uint64_t end_grain);
VixError vl_error_from_errno(int error);

/* ---- session.c, handle.c and io.c ---- */

struct vl_connection {
    uint32_t magic;
    const struct vl_server *server;
    struct vl_settings *settings;
    int fd; /* the counted connection to the vCenter */
    bool read_only;
    uint32_t nfc_host_port;
    char *moref, *snapshot, *modes, *user, *password, *session, *thumbprint;
    int open_handles;
};

struct vl_request { /* an asynchronous call */
    struct vl_request *next;
    bool write;
    uint64_t offset, length, issued; /* bytes */
    uint8_t *buffer;
    unsigned parts; /* being worked on */
    VixError error;
    struct vl_fault fault;
    VixDiskLibCompletionCB callback;
    void *data;
};

enum vl_io_kind { VL_IO_NONE, VL_IO_SYNC, VL_IO_ASYNC };

struct vl_handle {
    uint32_t magic;
    struct vl_connection *connection;
    struct vl_settings *settings;
    struct vl_disk disk;
    char mode[8], vm[128], adapter[16], uuid[64];
    int fd;   /* NFC connection, or the control connection for hotadd and san: it is the lock */
    int lost; /* atomic; set by a fault or by the monitor */
    int io_kind, warned_unaligned;
    long thread; /* kernel thread id that opened it */
    bool nbd;
    uint64_t buffer_bytes;
    uint32_t buffer_count;
    pthread_mutex_t sync_lock; /* one synchronous call at a time */
    /* below: asynchronous calls over nbd and nbdssl; `queue_lock` guards all of it */
    pthread_mutex_t queue_lock;
    pthread_cond_t work, idle;
    struct vl_request *first, *last;
    pthread_t *threads;
    unsigned thread_count, thread_capacity, idle_threads; /* the handle's own */
    uint32_t free_buffers;
    uint64_t outstanding;
    bool stop;
    /* in the queue for the pool's threads, and how many of them are at it; the pool's lock guards these */
    struct vl_handle *next_in_pool;
    bool in_pool;
    unsigned pool_visitors;
    uint64_t next_free_ns; /* when the wire is free again, under the bandwidth setting */
    uint64_t frozen_until_ns; /* atomic: nothing moves on this handle before then */
};

enum { VL_CONNECTION_MAGIC = 0x56434f4e, VL_HANDLE_MAGIC = 0x5648444c };

static inline bool vl_is_lost(const struct vl_handle *handle)
{
    return __atomic_load_n(&handle->lost, __ATOMIC_ACQUIRE) != 0;
}

/* VIX_OK, or why nothing can be done with it: not initialised, or no handle. */
VixError vl_check_handle(const struct vl_handle *handle);
void vl_handle_lose(struct vl_handle *handle);

/* ---- async.c ---- */

void vl_async_init(struct vl_handle *handle);
void vl_async_wait(struct vl_handle *handle);
void vl_async_destroy(struct vl_handle *handle);
VixError vl_async_submit(struct vl_handle *handle, bool write, uint64_t offset, uint64_t length, uint8_t *buffer,
                         VixDiskLibCompletionCB callback, void *data);
/* One whole call on the calling thread, with its fault, latency and share of the bandwidth. */
VixError vl_sync_io(struct vl_handle *handle, bool write, uint64_t offset, uint64_t length, uint8_t *buffer);
bool vl_in_callback(void);
/* Counts a call, lets its fault happen and waits out a freeze; the error that the call must report, or VIX_OK. */
VixError vl_handle_fault(struct vl_handle *handle, enum vl_op op);

#pragma GCC visibility pop

#endif
