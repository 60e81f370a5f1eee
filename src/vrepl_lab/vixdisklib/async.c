/* Asynchronous calls, and what a call costs: NFC buffers, latency, bandwidth.
 *
 * Over nbd and nbdssl a handle owns `buffer_count` NFC buffers of `buffer_bytes` each. A call is cut into buffers; each is
 * held until its bytes have crossed the wire and the latency has passed. Buffers past the first `buffer_count` of one
 * call pay no latency of their own: they followed on the heels of the others.
 *
 * Under a limit a handle has threads of its own, one per buffer, to sleep in. Without limits all handles share a pool of
 * one thread for every two processors: what they do is an ESXi host's work, and the client's processors are not for it.
 */
#include <stdlib.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "internal.h"

enum { STACK_BYTES = 512 * 1024 };

/* The handles that wait for a thread of the pool, first come first served. Taken after a handle's queue_lock. */
static struct {
    pthread_mutex_t lock;
    pthread_cond_t work, left;
    struct vl_handle *first, *last;
    long threads, idle;
} pool = {.lock = PTHREAD_MUTEX_INITIALIZER, .work = PTHREAD_COND_INITIALIZER, .left = PTHREAD_COND_INITIALIZER};

static __thread bool in_callback;

bool vl_in_callback(void)
{
    return in_callback;
}

static VixError transfer(struct vl_handle *handle, bool write, uint64_t offset, uint64_t length, uint8_t *buffer)
{
    if (vl_is_lost(handle))
        return VIX_E_HOST_TCP_CONN_LOST;
    if (!write)
        return vl_disk_read(&handle->disk, offset, length, buffer);
    return vl_disk_write(&handle->disk, offset, length, buffer, vl_setting(&handle->settings->write_buffer_bytes));
}

static VixError act_on_fault(struct vl_handle *handle, const struct vl_fault *fault)
{
    if (fault->freeze_ms > 0)
        __atomic_store_n(&handle->frozen_until_ns, vl_now_ns() + fault->freeze_ms * 1000000u, __ATOMIC_RELAXED);
    vl_fault_crash(fault);
    if (fault->lost) {
        vl_handle_lose(handle);
        return VIX_E_HOST_TCP_CONN_LOST;
    }
    return fault->code;
}

static void thaw(struct vl_handle *handle)
{
    uint64_t until = __atomic_load_n(&handle->frozen_until_ns, __ATOMIC_RELAXED);
    if (until > 0 && vl_now_ns() < until)
        vl_sleep_until(until);
}

VixError vl_handle_fault(struct vl_handle *handle, enum vl_op op)
{
    struct vl_fault fault = vl_fault_take(handle->settings, op, handle->vm, handle->mode);
    VixError error = act_on_fault(handle, &fault);
    thaw(handle);
    return vl_is_lost(handle) ? (VixError)VIX_E_HOST_TCP_CONN_LOST : error;
}

static bool is_paced(const struct vl_handle *handle)
{
    return vl_setting(&handle->settings->latency_us) > 0 || vl_setting(&handle->settings->bandwidth_bytes_s) > 0;
}

/* Takes the wire for `bytes` and returns when they will have crossed, latency included; 0 without limits. The caller
 * holds queue_lock, since the wire is the handle's. */
static uint64_t book_wire(struct vl_handle *handle, uint64_t bytes, bool with_latency)
{
    uint64_t bandwidth = vl_setting(&handle->settings->bandwidth_bytes_s);
    uint64_t latency_ns = with_latency ? vl_setting(&handle->settings->latency_us) * 1000u : 0;
    if (bandwidth == 0 && latency_ns == 0)
        return 0;
    uint64_t now = vl_now_ns();
    uint64_t start = handle->next_free_ns > now ? handle->next_free_ns : now;
    if (bandwidth > 0)
        start += (uint64_t)((double)bytes * 1e9 / (double)bandwidth);
    else
        start = now;
    handle->next_free_ns = start;
    return start + latency_ns;
}

VixError vl_sync_io(struct vl_handle *handle, bool write, uint64_t offset, uint64_t length, uint8_t *buffer)
{
    struct vl_fault fault = vl_fault_take(handle->settings, write ? VL_WRITE : VL_READ, handle->vm, handle->mode);
    pthread_mutex_lock(&handle->sync_lock);
    VixError error = act_on_fault(handle, &fault);
    thaw(handle);
    uint64_t deadline = 0;
    if (error == VIX_OK) {
        if (is_paced(handle)) {
            pthread_mutex_lock(&handle->queue_lock);
            deadline = book_wire(handle, length, true);
            pthread_mutex_unlock(&handle->queue_lock);
        }
        error = transfer(handle, write, offset, length, buffer);
    }
    if (deadline > 0)
        vl_sleep_until(deadline);
    pthread_mutex_unlock(&handle->sync_lock);
    return error;
}

static void complete(VixDiskLibCompletionCB callback, void *data, VixError error)
{
    in_callback = true;
    callback(data, error);
    in_callback = false;
}

/* Works on the next buffers of the request at the head of the queue. Called with queue_lock held, and returns with it. */
static void work_on_head(struct vl_handle *handle)
{
    struct vl_request *request = handle->first;
    bool paced = is_paced(handle);
    uint64_t left = request->length - request->issued;
    uint64_t wanted = (left + handle->buffer_bytes - 1) / handle->buffer_bytes;
    /* Without limits nothing is gained by giving each buffer its own trip through the queue. */
    uint32_t used = paced && wanted > 1 ? 1 : (uint32_t)(wanted < handle->free_buffers ? wanted : handle->free_buffers);
    uint64_t take = (uint64_t)used * handle->buffer_bytes < left ? (uint64_t)used * handle->buffer_bytes : left;
    uint64_t from = request->issued;
    bool pays_latency = from / handle->buffer_bytes < handle->buffer_count;
    handle->free_buffers -= used;
    request->issued += take;
    request->parts++;
    if (request->issued == request->length) {
        handle->first = request->next;
        if (handle->first == NULL)
            handle->last = NULL;
    }
    uint64_t deadline = paced ? book_wire(handle, take, pays_latency) : 0;
    VixError error = request->error;
    if (handle->first != NULL && handle->free_buffers > 0 && handle->idle_threads > 0)
        pthread_cond_signal(&handle->work);
    pthread_mutex_unlock(&handle->queue_lock);

    if (from == 0)
        error = act_on_fault(handle, &request->fault);
    thaw(handle);
    if (error == VIX_OK)
        error = transfer(handle, request->write, request->offset + from, take, request->buffer + from);
    if (deadline > 0)
        vl_sleep_until(deadline);

    pthread_mutex_lock(&handle->queue_lock);
    handle->free_buffers += used;
    request->parts--;
    if (error != VIX_OK && request->error == VIX_OK)
        request->error = error;
    if (request->parts > 0 || request->issued < request->length)
        return;
    pthread_mutex_unlock(&handle->queue_lock);
    complete(request->callback, request->data, request->error);
    free(request);
    pthread_mutex_lock(&handle->queue_lock);
    if (--handle->outstanding == 0)
        pthread_cond_broadcast(&handle->idle);
}

static bool start_thread(pthread_t *thread, void *(*run)(void *), void *argument)
{
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, STACK_BYTES);
    int failed = pthread_create(thread, &attributes, run, argument);
    pthread_attr_destroy(&attributes);
    return failed == 0;
}

/* ---- a handle's own threads, under a limit ---- */

static void *worker(void *argument)
{
    struct vl_handle *handle = argument;
    prctl(PR_SET_TIMERSLACK, 1000ul, 0ul, 0ul, 0ul); /* ns; the default of 50 us would eat into short latencies */
    pthread_mutex_lock(&handle->queue_lock);
    for (;;) {
        while (!handle->stop && (handle->first == NULL || handle->free_buffers == 0)) {
            handle->idle_threads++;
            pthread_cond_wait(&handle->work, &handle->queue_lock);
            handle->idle_threads--;
        }
        if (handle->first == NULL)
            break; /* stop, and nothing left to do */
        work_on_head(handle);
    }
    pthread_mutex_unlock(&handle->queue_lock);
    return NULL;
}

static bool add_thread(struct vl_handle *handle)
{
    if (handle->thread_count == handle->thread_capacity) {
        unsigned capacity = handle->thread_capacity * 2 + 4;
        pthread_t *grown = realloc(handle->threads, capacity * sizeof *grown);
        if (grown == NULL)
            return false;
        handle->threads = grown;
        handle->thread_capacity = capacity;
    }
    if (!start_thread(&handle->threads[handle->thread_count], worker, handle))
        return false;
    handle->thread_count++;
    return true;
}

/* Called with queue_lock held. */
static bool wake_own_threads(struct vl_handle *handle, uint64_t length)
{
    uint64_t buffers = (length + handle->buffer_bytes - 1) / handle->buffer_bytes;
    while (buffers-- > 0 && handle->thread_count < handle->buffer_count && handle->idle_threads <= buffers &&
           add_thread(handle))
        continue;
    pthread_cond_signal(&handle->work);
    return handle->thread_count > 0;
}

/* ---- the pool, without limits ---- */

/* Called with the pool's lock held. */
static void enqueue(struct vl_handle *handle)
{
    if (handle->in_pool)
        return;
    handle->in_pool = true;
    handle->next_in_pool = NULL;
    if (pool.first != NULL)
        pool.last->next_in_pool = handle;
    else
        pool.first = handle;
    pool.last = handle;
    if (pool.idle > 0)
        pthread_cond_signal(&pool.work);
}

static void *pool_worker(void *unused)
{
    (void)unused;
    pthread_mutex_lock(&pool.lock);
    for (;;) {
        while (pool.first == NULL) {
            pool.idle++;
            pthread_cond_wait(&pool.work, &pool.lock);
            pool.idle--;
        }
        struct vl_handle *handle = pool.first;
        pool.first = handle->next_in_pool;
        handle->in_pool = false;
        handle->pool_visitors++;
        pthread_mutex_unlock(&pool.lock);
        pthread_mutex_lock(&handle->queue_lock);
        if (handle->first != NULL && handle->free_buffers > 0)
            work_on_head(handle);
        bool more = handle->first != NULL && handle->free_buffers > 0;
        pthread_mutex_unlock(&handle->queue_lock);
        pthread_mutex_lock(&pool.lock);
        if (more)
            enqueue(handle);
        if (--handle->pool_visitors == 0)
            pthread_cond_broadcast(&pool.left);
    }
    return NULL;
}

/* Called with queue_lock held. */
static bool wake_pool(struct vl_handle *handle)
{
    pthread_mutex_lock(&pool.lock);
    long half = sysconf(_SC_NPROCESSORS_ONLN) / 2;
    pthread_t thread;
    if (pool.idle == 0 && pool.threads < (half > 1 ? half : 1) && start_thread(&thread, pool_worker, NULL)) {
        pthread_detach(thread);
        pool.threads++;
    }
    bool served = pool.threads > 0;
    if (served)
        enqueue(handle);
    pthread_mutex_unlock(&pool.lock);
    return served;
}

/* Nothing is outstanding, so nobody offers the handle to the pool any more. */
static void leave_pool(struct vl_handle *handle)
{
    pthread_mutex_lock(&pool.lock);
    while (handle->in_pool || handle->pool_visitors > 0)
        pthread_cond_wait(&pool.left, &pool.lock);
    pthread_mutex_unlock(&pool.lock);
}

VixError vl_async_submit(struct vl_handle *handle, bool write, uint64_t offset, uint64_t length, uint8_t *buffer,
                         VixDiskLibCompletionCB callback, void *data)
{
    if (!handle->nbd) { /* hotadd and san: asynchronous in name only */
        complete(callback, data, vl_sync_io(handle, write, offset, length, buffer));
        return VIX_ASYNC;
    }
    struct vl_request *request = calloc(1, sizeof *request);
    if (request == NULL)
        return VIX_E_OUT_OF_MEMORY;
    request->write = write;
    request->offset = offset;
    request->length = length;
    request->buffer = buffer;
    request->callback = callback;
    request->data = data;
    request->fault = vl_fault_take(handle->settings, write ? VL_WRITE : VL_READ, handle->vm, handle->mode);
    pthread_mutex_lock(&handle->queue_lock);
    if (!(is_paced(handle) ? wake_own_threads(handle, length) : wake_pool(handle))) {
        pthread_mutex_unlock(&handle->queue_lock);
        free(request);
        return VIX_E_OUT_OF_MEMORY;
    }
    if (handle->last != NULL)
        handle->last->next = request;
    else
        handle->first = request;
    handle->last = request;
    handle->outstanding++;
    pthread_mutex_unlock(&handle->queue_lock);
    return VIX_ASYNC;
}

void vl_async_init(struct vl_handle *handle)
{
    pthread_mutex_init(&handle->sync_lock, NULL);
    pthread_mutex_init(&handle->queue_lock, NULL);
    pthread_cond_init(&handle->work, NULL);
    pthread_cond_init(&handle->idle, NULL);
    handle->free_buffers = handle->buffer_count;
}

void vl_async_wait(struct vl_handle *handle)
{
    pthread_mutex_lock(&handle->queue_lock);
    while (handle->outstanding > 0)
        pthread_cond_wait(&handle->idle, &handle->queue_lock);
    pthread_mutex_unlock(&handle->queue_lock);
}

void vl_async_destroy(struct vl_handle *handle)
{
    pthread_mutex_lock(&handle->queue_lock);
    handle->stop = true;
    pthread_cond_broadcast(&handle->work);
    pthread_mutex_unlock(&handle->queue_lock);
    for (unsigned i = 0; i < handle->thread_count; i++)
        pthread_join(handle->threads[i], NULL);
    leave_pool(handle);
    free(handle->threads);
    pthread_cond_destroy(&handle->idle);
    pthread_cond_destroy(&handle->work);
    pthread_mutex_destroy(&handle->queue_lock);
    pthread_mutex_destroy(&handle->sync_lock);
}
