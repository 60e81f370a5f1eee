/* Calls on an open disk: what is checked before I/O, Flush, QueryAllocatedBlocks. */
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "internal.h"

enum { PAGE = 4096 };

static VixError check_io(struct vl_handle *handle, bool write, uint64_t start, uint64_t count, const void *buffer,
                         enum vl_io_kind kind)
{
    VixError error = vl_check_handle(handle);
    if (error != VIX_OK)
        return error;
    uint64_t sectors = handle->disk.capacity / SECTOR;
    if (count == 0 || buffer == NULL)
        return VIX_E_INVALID_ARG;
    if (start >= sectors || count > sectors - start)
        return VIX_E_DISK_OUTOFRANGE;
    if (write && !handle->disk.writable)
        return VIX_E_FILE_READ_ONLY;
    int before = VL_IO_NONE;
    if (!__atomic_compare_exchange_n(&handle->io_kind, &before, (int)kind, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE) &&
        before != (int)kind) {
        vl_log(VL_WARNING, "VixDiskLib: synchronous and asynchronous I/O mixed on one handle");
        return VIX_E_ASYNC_MIXEDMODE_UNSUPPORTED;
    }
    if ((uintptr_t)buffer % PAGE != 0 && !__atomic_exchange_n(&handle->warned_unaligned, 1, __ATOMIC_RELAXED))
        vl_log(VL_INFO, "VixDiskLib: buffer %p is not page-aligned; this costs a copy per call", buffer);
    return VIX_OK;
}

EXPORT VixError VixDiskLib_Read(VixDiskLibHandle handle, uint64_t start, uint64_t count, uint8_t *buffer)
{
    VixError error = check_io(handle, false, start, count, buffer, VL_IO_SYNC);
    return error != VIX_OK ? error : vl_sync_io(handle, false, start * SECTOR, count * SECTOR, buffer);
}

EXPORT VixError VixDiskLib_Write(VixDiskLibHandle handle, uint64_t start, uint64_t count, const uint8_t *buffer)
{
    VixError error = check_io(handle, true, start, count, buffer, VL_IO_SYNC);
    return error != VIX_OK ? error : vl_sync_io(handle, true, start * SECTOR, count * SECTOR, (uint8_t *)buffer);
}

EXPORT VixError VixDiskLib_ReadAsync(VixDiskLibHandle handle, uint64_t start, uint64_t count, uint8_t *buffer,
                                     VixDiskLibCompletionCB callback, void *data)
{
    if (callback == NULL)
        return VIX_E_INVALID_ARG;
    VixError error = check_io(handle, false, start, count, buffer, VL_IO_ASYNC);
    return error != VIX_OK ? error
                           : vl_async_submit(handle, false, start * SECTOR, count * SECTOR, buffer, callback, data);
}

EXPORT VixError VixDiskLib_WriteAsync(VixDiskLibHandle handle, uint64_t start, uint64_t count, const uint8_t *buffer,
                                      VixDiskLibCompletionCB callback, void *data)
{
    if (callback == NULL)
        return VIX_E_INVALID_ARG;
    VixError error = check_io(handle, true, start, count, buffer, VL_IO_ASYNC);
    return error != VIX_OK
               ? error
               : vl_async_submit(handle, true, start * SECTOR, count * SECTOR, (uint8_t *)buffer, callback, data);
}

EXPORT VixError VixDiskLib_Wait(VixDiskLibHandle handle)
{
    VixError error = vl_check_handle(handle);
    if (error != VIX_OK)
        return error;
    if (vl_in_callback()) {
        vl_log(VL_WARNING, "VixDiskLib: VixDiskLib_Wait called from a completion callback");
        return VIX_E_FAIL;
    }
    vl_async_wait(handle);
    return vl_is_lost(handle) ? VIX_E_HOST_TCP_CONN_LOST : VIX_OK;
}

EXPORT VixError VixDiskLib_Flush(VixDiskLibHandle handle)
{
    VixError error = vl_check_handle(handle);
    if (error == VIX_OK)
        error = vl_handle_fault(handle, VL_FLUSH);
    return error != VIX_OK ? error : vl_disk_drain(&handle->disk);
}

static VixError check_query(const struct vl_handle *handle, uint64_t start, uint64_t count, uint64_t chunk,
                            VixDiskLibBlockList **list)
{
    uint64_t supported = vl_setting(&handle->settings->allocated_supported);
    if (supported == 0)
        return VIX_E_NOT_SUPPORTED;
    if (supported == 1 && handle->thread != syscall(SYS_gettid)) {
        vl_log(VL_WARNING, "VixDiskLib: VixDiskLib_QueryAllocatedBlocks must be called on the thread that opened the "
                           "disk");
        return VIX_E_FAIL;
    }
    uint64_t sectors = handle->disk.capacity / SECTOR;
    if (list == NULL || chunk < VIXDISKLIB_MIN_CHUNK_SIZE || count == 0 || count % chunk != 0 ||
        count / chunk > VIXDISKLIB_MAX_CHUNK_NUMBER || start >= sectors || count > sectors - start)
        return VIX_E_INVALID_ARG;
    return VIX_OK;
}

EXPORT VixError VixDiskLib_QueryAllocatedBlocks(VixDiskLibHandle handle, uint64_t start, uint64_t count, uint64_t chunk,
                                                VixDiskLibBlockList **list)
{
    VixError error = vl_check_handle(handle);
    if (error == VIX_OK)
        error = check_query(handle, start, count, chunk, list);
    if (error == VIX_OK)
        error = vl_handle_fault(handle, VL_QUERY_ALLOCATED);
    return error != VIX_OK ? error
                           : vl_disk_query(&handle->disk, start * SECTOR, count * SECTOR, chunk * SECTOR, list);
}

EXPORT VixError VixDiskLib_FreeBlockList(VixDiskLibBlockList *list)
{
    free(list);
    return VIX_OK;
}

/* Local disks and the metadata of a descriptor are no part of the lab. */
EXPORT VixError VixDiskLib_Create(const VixDiskLibConnection connection, const char *path, const void *params,
                                  void *progress, void *data)
{
    (void)connection, (void)path, (void)params, (void)progress, (void)data;
    return VIX_E_NOT_SUPPORTED;
}

EXPORT VixError VixDiskLib_GetMetadataKeys(VixDiskLibHandle handle, char *keys, size_t length, size_t *required)
{
    (void)handle, (void)keys, (void)length, (void)required;
    return VIX_E_NOT_SUPPORTED;
}

EXPORT VixError VixDiskLib_ReadMetadata(VixDiskLibHandle handle, const char *key, char *value, size_t length,
                                        size_t *required)
{
    (void)handle, (void)key, (void)value, (void)length, (void)required;
    return VIX_E_NOT_SUPPORTED;
}
