/* Open and Close, and what a handle is. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "internal.h"

enum {
    KNOWN_FLAGS = VIXDISKLIB_FLAG_OPEN_UNBUFFERED | VIXDISKLIB_FLAG_OPEN_SINGLE_LINK | VIXDISKLIB_FLAG_OPEN_READ_ONLY,
    COMPRESSION_FLAGS = VIXDISKLIB_FLAG_OPEN_COMPRESSION_ZLIB | VIXDISKLIB_FLAG_OPEN_COMPRESSION_FASTLZ |
                        VIXDISKLIB_FLAG_OPEN_COMPRESSION_SKIPZ,
    NFC_ERROR_NO_MEMORY = 5,
};

/* VDDK wants Open and Close serialised by the client. The lab says so when they are not, and then does it itself. */
static pthread_mutex_t open_close_lock = PTHREAD_MUTEX_INITIALIZER;

static void enter_open_close(const char *what)
{
    if (pthread_mutex_trylock(&open_close_lock) == 0)
        return;
    vl_log(VL_WARNING, "VixDiskLib: %s while another thread is in VixDiskLib_Open or VixDiskLib_Close; "
                       "the client must serialise them", what);
    pthread_mutex_lock(&open_close_lock);
}

static void leave_open_close(void)
{
    pthread_mutex_unlock(&open_close_lock);
}

VixError vl_check_handle(const struct vl_handle *handle)
{
    VixError error = vl_ready();
    if (error != VIX_OK)
        return error;
    return handle == NULL || handle->magic != VL_HANDLE_MAGIC ? (VixError)VIX_E_INVALID_HANDLE : (VixError)VIX_OK;
}

static void drop_connection(struct vl_handle *handle)
{
    int fd = __atomic_exchange_n(&handle->fd, -1, __ATOMIC_ACQ_REL);
    if (fd < 0)
        return;
    vl_monitor_remove(fd);
    close(fd);
}

void vl_handle_lose(struct vl_handle *handle)
{
    __atomic_store_n(&handle->lost, 1, __ATOMIC_RELEASE);
    drop_connection(handle); /* without op close: the lock lingers at the host */
    vl_log(VL_WARNING, "NFC: connection lost (error %d)", VIX_E_HOST_TCP_CONN_LOST);
}

/* SHA-1 thumbprints, whatever their case and colons. */
static bool same_thumbprint(const char *one, const char *other)
{
    for (;;) {
        one += strspn(one, ": ");
        other += strspn(other, ": ");
        if (*one == '\0' || *other == '\0')
            return *one == *other;
        if (strncasecmp(one++, other++, 1) != 0)
            return false;
    }
}

static void copy_text(char *to, size_t size, const struct vl_message *reply, const char *key)
{
    const char *value = vl_message_get(reply, key, NULL);
    snprintf(to, size, "%s", value != NULL ? value : "");
}

static uint64_t nfc_kib(const struct vl_handle *handle)
{
    return handle->buffer_bytes * handle->buffer_count / 1024;
}

static VixError ask_to_open(struct vl_handle *handle, const char *path, bool read_only, bool single_link,
                            struct vl_message *reply)
{
    const struct vl_connection *connection = handle->connection;
    struct vl_message request = {0};
    vl_message_put(&request, "op", "open");
    vl_message_put(&request, "proxy", vl_proxy_name());
    vl_message_put(&request, "user", connection->user);
    if (connection->session != NULL)
        vl_message_put(&request, "session", connection->session);
    else
        vl_message_put(&request, "password", connection->password);
    vl_message_put(&request, "moref", connection->moref);
    vl_message_put(&request, "snapshot", connection->snapshot);
    vl_message_put(&request, "path", path);
    vl_message_number(&request, "readonly", read_only);
    vl_message_number(&request, "single_link", single_link);
    vl_message_put(&request, "modes", connection->modes);
    vl_message_number(&request, "pid", (uint64_t)getpid());
    vl_message_number(&request, "nfc_kib", nfc_kib(handle));
    handle->fd = vl_dial(connection->server->control_host, connection->server->control_port);
    VixError error = VIX_E_CANNOT_CONNECT_TO_HOST;
    if (handle->fd >= 0)
        error = vl_call(handle->fd, &request, reply, VIX_E_CANNOT_CONNECT_TO_HOST);
    if (error != VIX_OK) {
        const char *text = vl_message_get(reply, "text", NULL);
        vl_log(VL_WARNING, "VixDiskLib: VixDiskLib_Open: cannot open disk %s: error %llu: %s", path,
               (unsigned long long)error, text != NULL ? text : "");
    }
    vl_message_free(&request);
    return error;
}

/* Over nbd and nbdssl the disk is served by an ESXi host: go there with the ticket. */
static VixError attach_to_host(struct vl_handle *handle, const struct vl_message *opened)
{
    const char *host = vl_message_get(opened, "host", NULL);
    uint32_t port = handle->connection->nfc_host_port;
    if (port == 0)
        port = (uint32_t)vl_message_get_number(opened, "nfc_port", 902);
    int fd = host != NULL ? vl_dial(host, port) : -1;
    if (fd < 0) {
        vl_log(VL_WARNING, "NBD: cannot connect to %s:%u: %s", host != NULL ? host : "?", port, strerror(errno));
        return errno == ENOENT ? VIX_E_HOST_SERVER_NOT_FOUND : VIX_E_HOST_NETWORK_CONN_REFUSED;
    }
    struct vl_message request = {0}, reply = {0};
    vl_message_put(&request, "op", "attach");
    vl_message_put(&request, "ticket", vl_message_get(opened, "ticket", NULL));
    vl_message_number(&request, "nfc_kib", nfc_kib(handle));
    VixError error = vl_call(fd, &request, &reply, VIX_E_HOST_TCP_SOCKET_ERROR);
    if (error == NFC_ERROR_NO_MEMORY) {
        vl_log(VL_WARNING, "NFC: received NFC error 5 from server: Failed to allocate the requested %llu bytes",
               (unsigned long long)(nfc_kib(handle) * 1024));
        error = VIX_E_OUT_OF_MEMORY;
    } else if (error != VIX_OK) {
        const char *text = vl_message_get(&reply, "text", NULL);
        vl_log(VL_WARNING, "NBD: %s:%u: error %llu: %s", host, port, (unsigned long long)error,
               text != NULL ? text : "");
    }
    vl_message_free(&request);
    vl_message_free(&reply);
    close(handle->fd);
    handle->fd = error == VIX_OK ? fd : -1;
    if (error != VIX_OK)
        close(fd);
    return error;
}

/* Releases the lock at once. */
static void say_close(struct vl_handle *handle)
{
    if (handle->fd < 0)
        return;
    vl_monitor_remove(handle->fd);
    struct vl_message request = {0}, reply = {0};
    vl_message_put(&request, "op", "close");
    vl_call(handle->fd, &request, &reply, VIX_E_HOST_TCP_CONN_LOST);
    vl_message_free(&request);
    vl_message_free(&reply);
}

static VixError open_handle(struct vl_handle *handle, const char *path, uint32_t flags)
{
    const struct vl_connection *connection = handle->connection;
    bool read_only = connection->read_only || (flags & VIXDISKLIB_FLAG_OPEN_READ_ONLY);
    bool single_link = (flags & VIXDISKLIB_FLAG_OPEN_SINGLE_LINK) != 0;
    if (connection->thumbprint == NULL || !same_thumbprint(connection->thumbprint, connection->server->thumbprint)) {
        /* VDDK accepts the thumbprint in ConnectEx and only fails here. */
        vl_log(VL_WARNING, "VixDiskLib: SSL certificate of %s: thumbprint does not match", connection->server->name);
        return VIX_E_FAIL;
    }
    struct vl_message reply = {0};
    VixError error = ask_to_open(handle, path, read_only, single_link, &reply);
    bool locked = false;
    if (error == VIX_OK) {
        copy_text(handle->mode, sizeof handle->mode, &reply, "mode");
        copy_text(handle->vm, sizeof handle->vm, &reply, "vm");
        copy_text(handle->adapter, sizeof handle->adapter, &reply, "adapter");
        copy_text(handle->uuid, sizeof handle->uuid, &reply, "uuid");
        handle->nbd = strncmp(handle->mode, "nbd", 3) == 0;
        if (handle->nbd)
            error = attach_to_host(handle, &reply);
        locked = error == VIX_OK;
    }
    if (error == VIX_OK)
        error = vl_handle_fault(handle, VL_OPEN);
    if (error == VIX_OK)
        error = vl_disk_open(&handle->disk, &reply, !read_only, single_link);
    if (error != VIX_OK && locked)
        say_close(handle);
    vl_message_free(&reply);
    return error;
}

static void free_handle(struct vl_handle *handle)
{
    drop_connection(handle);
    vl_async_destroy(handle);
    if (handle->disk.links > 0)
        vl_disk_close(&handle->disk);
    handle->magic = 0;
    free(handle);
}

EXPORT VixError VixDiskLib_Open(const VixDiskLibConnection connection, const char *path, uint32_t flags,
                                VixDiskLibHandle *result)
{
    VixError error = vl_ready();
    if (error != VIX_OK)
        return error;
    if (connection == NULL || connection->magic != VL_CONNECTION_MAGIC)
        return VIX_E_INVALID_HANDLE;
    uint32_t compression = flags & COMPRESSION_FLAGS;
    if (path == NULL || *path == '\0' || result == NULL || (flags & ~(uint32_t)(KNOWN_FLAGS | COMPRESSION_FLAGS)) ||
        (compression & (compression - 1)) != 0)
        return VIX_E_INVALID_ARG;
    *result = NULL;
    struct vl_handle *handle = calloc(1, sizeof *handle);
    if (handle == NULL)
        return VIX_E_OUT_OF_MEMORY;
    handle->connection = connection;
    handle->settings = connection->settings;
    handle->fd = -1;
    handle->buffer_bytes = vl_config.buffer_bytes;
    handle->buffer_count = vl_config.buffer_count;
    handle->thread = syscall(SYS_gettid);
    vl_async_init(handle);
    enter_open_close("VixDiskLib_Open");
    error = open_handle(handle, path, flags);
    leave_open_close();
    if (error != VIX_OK) {
        free_handle(handle);
        return error;
    }
    handle->magic = VL_HANDLE_MAGIC;
    vl_monitor_add(handle->fd, &handle->lost);
    __atomic_add_fetch(&connection->open_handles, 1, __ATOMIC_ACQ_REL);
    vl_log(VL_INFO, "VixDiskLib: opened %s over %s, %u link(s), %s", path, handle->mode, handle->disk.links,
           handle->disk.writable ? "writable" : "read-only");
    *result = handle;
    return VIX_OK;
}

EXPORT VixError VixDiskLib_Close(VixDiskLibHandle handle)
{
    VixError error = vl_check_handle(handle);
    if (error != VIX_OK)
        return error;
    if (vl_in_callback()) {
        vl_log(VL_WARNING, "VixDiskLib: VixDiskLib_Close called from a completion callback");
        return VIX_E_FAIL;
    }
    enter_open_close("VixDiskLib_Close");
    vl_async_wait(handle);
    error = vl_handle_fault(handle, VL_CLOSE);
    if (!vl_is_lost(handle)) {
        VixError drained = vl_disk_drain(&handle->disk);
        error = error != VIX_OK ? error : drained;
        say_close(handle);
    }
    struct vl_connection *connection = handle->connection;
    free_handle(handle);
    __atomic_sub_fetch(&connection->open_handles, 1, __ATOMIC_ACQ_REL);
    leave_open_close();
    return error;
}

EXPORT const char *VixDiskLib_GetTransportMode(VixDiskLibHandle handle)
{
    return vl_check_handle(handle) == VIX_OK ? handle->mode : NULL;
}

static char *parent_hint(const struct vl_disk *disk)
{
    if (disk->links < 2)
        return NULL;
    const char *stem = disk->link[1].path, *slash = strrchr(stem, '/');
    stem = slash != NULL ? slash + 1 : stem;
    size_t size = strlen(stem) + sizeof ".vmdk";
    char *hint = malloc(size);
    if (hint != NULL)
        snprintf(hint, size, "%s.vmdk", stem);
    return hint;
}

EXPORT VixError VixDiskLib_GetInfo(VixDiskLibHandle handle, VixDiskLibInfo **result)
{
    VixError error = vl_check_handle(handle);
    if (error != VIX_OK)
        return error;
    if (result == NULL)
        return VIX_E_INVALID_ARG;
    if (vl_is_lost(handle))
        return VIX_E_HOST_TCP_CONN_LOST;
    VixDiskLibInfo *info = calloc(1, sizeof *info);
    if (info == NULL)
        return VIX_E_OUT_OF_MEMORY;
    info->capacity = handle->disk.capacity / SECTOR;
    uint64_t cylinders = info->capacity / (255 * 63);
    info->biosGeo = info->physGeo = (VixDiskLibGeometry){
        .cylinders = (uint32_t)(cylinders > 0 ? cylinders : 1), .heads = 255, .sectors = 63};
    info->adapterType = (uint32_t)strtoul(handle->adapter, NULL, 10);
    info->numLinks = (int32_t)handle->disk.read_links;
    info->parentFileNameHint = parent_hint(&handle->disk);
    info->uuid = strdup(handle->uuid);
    info->logicalSectorSize = info->physicalSectorSize = SECTOR;
    *result = info;
    return VIX_OK;
}

EXPORT void VixDiskLib_FreeInfo(VixDiskLibInfo *info)
{
    if (info == NULL)
        return;
    free(info->parentFileNameHint);
    free(info->uuid);
    free(info);
}
