/* The files of a disk: a chain of links (flat file + grains map each) and the change-tracking table. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "internal.h"

struct ctk_header {
    char magic[8];
    uint32_t version, block_size;
    uint64_t epoch, blocks;
    uint8_t uuid[16], reserved[16];
    uint32_t last_change[];
};

_Static_assert(offsetof(struct ctk_header, last_change) == 64, "offset of last_change");

VixError vl_error_from_errno(int error)
{
    switch (error) {
    case ENOENT:
        return VIX_E_FILE_NOT_FOUND;
    case EACCES:
    case EPERM:
        return VIX_E_FILE_ACCESS_ERROR;
    case EROFS:
        return VIX_E_FILE_READ_ONLY;
    case ENOSPC:
    case EDQUOT:
        return VIX_E_DISK_FULL;
    case ENOMEM:
        return VIX_E_OUT_OF_MEMORY;
    default:
        return VIX_E_FILE_ERROR;
    }
}

static void *map_file(const char *path, bool writable, size_t *length)
{
    int fd = open(path, (writable ? O_RDWR : O_RDONLY) | O_CLOEXEC);
    struct stat status;
    void *map = MAP_FAILED;
    if (fd >= 0 && fstat(fd, &status) == 0) {
        *length = (size_t)status.st_size;
        if (status.st_size == 0)
            errno = EINVAL;
        else
            map = mmap(NULL, *length, PROT_READ | (writable ? PROT_WRITE : 0), MAP_SHARED, fd, 0);
    }
    int error = errno;
    if (fd >= 0)
        close(fd);
    errno = error;
    return map == MAP_FAILED ? NULL : map;
}

static char *joined(const char *stem, const char *suffix)
{
    size_t length = strlen(stem), more = strlen(suffix) + 1;
    char *path = malloc(length + more);
    if (path != NULL) {
        memcpy(path, stem, length);
        memcpy(path + length, suffix, more);
    }
    return path;
}

static VixError open_link(struct vl_link *link, const char *stem, bool writable)
{
    char *flat = joined(stem, "-flat.vmdk"), *grains = joined(stem, "-grains.map");
    link->path = strdup(stem);
    VixError error = VIX_OK;
    if (flat == NULL || grains == NULL || link->path == NULL) {
        error = VIX_E_OUT_OF_MEMORY;
    } else if ((link->flat = open(flat, (writable ? O_RDWR : O_RDONLY) | O_CLOEXEC)) < 0) {
        error = vl_error_from_errno(errno);
        vl_log(VL_WARNING, "DISKLIB: cannot open %s: %s", flat, strerror(errno));
    } else {
        size_t length = 0;
        link->grains = map_file(grains, writable, &length);
        link->grain_count = length;
        if (link->grains == NULL) {
            error = vl_error_from_errno(errno);
            vl_log(VL_WARNING, "DISKLIB: cannot map %s: %s", grains, strerror(errno));
        }
    }
    free(flat);
    free(grains);
    return error;
}

static VixError open_ctk(struct vl_disk *disk, const char *path)
{
    struct ctk_header *ctk = map_file(path, true, &disk->ctk_length);
    if (ctk == NULL) {
        vl_log(VL_WARNING, "DISKLIB: cannot map %s: %s", path, strerror(errno));
        return vl_error_from_errno(errno);
    }
    disk->ctk = ctk;
    disk->ctk_block_size = ctk->block_size;
    disk->ctk_blocks = ctk->blocks;
    if (disk->ctk_length < sizeof *ctk || memcmp(ctk->magic, "VRLABCTK", 8) != 0 || ctk->version != 1 ||
        ctk->block_size == 0 || disk->ctk_length < sizeof *ctk + disk->ctk_blocks * sizeof(uint32_t)) {
        vl_log(VL_WARNING, "DISKLIB: %s is not a change-tracking file", path);
        return VIX_E_FILE_ERROR;
    }
    return VIX_OK;
}

VixError vl_disk_open(struct vl_disk *disk, const struct vl_message *reply, bool writable, bool single_link)
{
    memset(disk, 0, sizeof *disk);
    pthread_mutex_init(&disk->lock, NULL);
    pthread_mutex_init(&disk->file_lock, NULL);
    disk->capacity = vl_message_get_number(reply, "capacity", 0);
    disk->writable = writable;
    VixError error = disk->capacity == 0 || disk->capacity % SECTOR != 0 ? VIX_E_FILE_ERROR : VIX_OK;
    const char *stem = NULL;
    while (error == VIX_OK && (stem = vl_message_get(reply, "link", stem)) != NULL) {
        if (disk->links == VL_MAX_LINKS) {
            error = VIX_E_FILE_ERROR;
            break;
        }
        struct vl_link *link = &disk->link[disk->links];
        link->flat = -1;
        disk->links++;
        error = open_link(link, stem, writable && disk->links == 1);
    }
    const char *ctk = vl_message_get(reply, "ctk", NULL);
    if (error == VIX_OK && disk->links == 0)
        error = VIX_E_FILE_NOT_FOUND;
    if (error == VIX_OK && writable && ctk != NULL && *ctk != '\0')
        error = open_ctk(disk, ctk);
    if (error == VIX_OK && writable && disk->link[0].grain_count < (disk->capacity + VL_GRAIN - 1) / VL_GRAIN) {
        vl_log(VL_WARNING, "DISKLIB: the grains map of %s is too short", disk->link[0].path);
        error = VIX_E_FILE_ERROR;
    }
    if (error == VIX_OK && writable && (disk->pending = calloc(disk->link[0].grain_count, 1)) == NULL)
        error = VIX_E_OUT_OF_MEMORY;
    disk->read_links = single_link ? 1 : disk->links;
    if (error != VIX_OK)
        vl_disk_close(disk);
    return error;
}

void vl_disk_close(struct vl_disk *disk)
{
    for (unsigned i = 0; i < disk->links; i++) {
        struct vl_link *link = &disk->link[i];
        if (link->flat >= 0)
            close(link->flat);
        if (link->grains != NULL)
            munmap(link->grains, link->grain_count);
        free(link->path);
    }
    if (disk->ctk != NULL)
        munmap(disk->ctk, disk->ctk_length);
    if (disk->ring != NULL)
        munmap(disk->ring, disk->ring_size);
    free(disk->segments);
    free(disk->pending);
    pthread_mutex_destroy(&disk->lock);
    pthread_mutex_destroy(&disk->file_lock);
    memset(disk, 0, sizeof *disk);
}

static inline uint8_t grain_state(const struct vl_link *link, uint64_t grain)
{
    /* A map shorter than the disk (a parent from before it grew) holds nothing past its end. */
    return grain < link->grain_count ? __atomic_load_n(&link->grains[grain], __ATOMIC_ACQUIRE) : (uint8_t)VL_HOLE;
}

static inline bool is_pending(const struct vl_disk *disk, uint64_t grain)
{
    return disk->pending != NULL && grain < disk->link[0].grain_count &&
           __atomic_load_n(&disk->pending[grain], __ATOMIC_ACQUIRE) != 0;
}

/* The link that holds a grain, or -1 where the chain reads as zeros. */
static int holder(const struct vl_disk *disk, unsigned first, unsigned links, uint64_t grain)
{
    if (first == 0 && is_pending(disk, grain))
        return 0;
    for (unsigned i = first; i < links; i++) {
        uint8_t state = grain_state(&disk->link[i], grain);
        if (state == VL_PRESENT)
            return (int)i;
        if (state == VL_UNMAPPED)
            return -1;
    }
    return -1;
}

static VixError read_flat(int fd, uint64_t offset, uint64_t length, uint8_t *buffer)
{
    while (length > 0) {
        ssize_t got = pread(fd, buffer, length, (off_t)offset);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return vl_error_from_errno(errno);
        if (got == 0) { /* the flat file ends early: the rest was never written */
            memset(buffer, 0, length);
            return VIX_OK;
        }
        buffer += got;
        offset += (uint64_t)got;
        length -= (uint64_t)got;
    }
    return VIX_OK;
}

static VixError write_flat(int fd, uint64_t offset, uint64_t length, const uint8_t *buffer)
{
    while (length > 0) {
        ssize_t put = pwrite(fd, buffer, length, (off_t)offset);
        if (put < 0 && errno == EINTR)
            continue;
        if (put < 0)
            return vl_error_from_errno(errno);
        buffer += put;
        offset += (uint64_t)put;
        length -= (uint64_t)put;
    }
    return VIX_OK;
}

VixError vl_links_read(const struct vl_disk *disk, unsigned first, unsigned links, uint64_t offset, uint64_t length,
                       uint8_t *buffer)
{
    uint64_t end = offset + length, last_grain = (end - 1) / VL_GRAIN;
    while (offset < end) {
        uint64_t grain = offset / VL_GRAIN;
        int source = holder(disk, first, links, grain);
        while (grain < last_grain && holder(disk, first, links, grain + 1) == source)
            grain++;
        uint64_t run_end = (grain + 1) * VL_GRAIN < end ? (grain + 1) * VL_GRAIN : end;
        uint64_t run = run_end - offset;
        if (source < 0) {
            memset(buffer, 0, run);
        } else {
            VixError error = read_flat(disk->link[source].flat, offset, run, buffer);
            if (error != VIX_OK)
                return error;
        }
        buffer += run;
        offset = run_end;
    }
    return VIX_OK;
}

bool vl_links_allocated(const struct vl_disk *disk, uint64_t first_grain, uint64_t end_grain)
{
    for (uint64_t grain = first_grain; grain < end_grain; grain++)
        if (holder(disk, 0, disk->read_links, grain) >= 0)
            return true;
    return false;
}

static void track(struct vl_disk *disk, uint64_t offset, uint64_t length)
{
    struct ctk_header *ctk = disk->ctk;
    uint32_t epoch = (uint32_t)__atomic_load_n(&ctk->epoch, __ATOMIC_ACQUIRE);
    uint64_t last = (offset + length - 1) / disk->ctk_block_size;
    for (uint64_t block = offset / disk->ctk_block_size; block <= last && block < disk->ctk_blocks; block++)
        __atomic_store_n(&ctk->last_change[block], epoch, __ATOMIC_RELEASE);
}

/* Brings [from, to) of one grain up into the leaf from what lies below it. */
static VixError copy_up(struct vl_disk *disk, uint64_t from, uint64_t to)
{
    if (from >= to)
        return VIX_OK;
    uint8_t bytes[VL_GRAIN];
    uint64_t grain = from / VL_GRAIN;
    VixError error = VIX_OK;
    if (grain_state(&disk->link[0], grain) == VL_UNMAPPED)
        memset(bytes, 0, to - from); /* zeros whatever the parents hold */
    else
        error = vl_links_read(disk, 1, disk->links, from, to - from, bytes);
    return error != VIX_OK ? error : write_flat(disk->link[0].flat, from, to - from, bytes);
}

/* Brings up the rest of the first and the last grain of a write, where the leaf's file does not hold them yet. */
static VixError complete_edges(struct vl_disk *disk, uint64_t offset, uint64_t length)
{
    uint64_t end = offset + length, first = offset / VL_GRAIN, last = (end - 1) / VL_GRAIN;
    uint64_t last_end = (last + 1) * VL_GRAIN < disk->capacity ? (last + 1) * VL_GRAIN : disk->capacity;
    VixError error = VIX_OK;
    if (grain_state(&disk->link[0], first) != VL_PRESENT && !is_pending(disk, first))
        error = copy_up(disk, first * VL_GRAIN, offset);
    if (error == VIX_OK && grain_state(&disk->link[0], last) != VL_PRESENT && !is_pending(disk, last))
        error = copy_up(disk, end, last_end);
    return error;
}

uint64_t vl_links_run(const struct vl_disk *disk, uint64_t offset, uint64_t length, bool *held)
{
    const struct vl_link *leaf = &disk->link[0];
    uint64_t end = offset + length, grain = offset / VL_GRAIN, last = (end - 1) / VL_GRAIN;
    *held = grain_state(leaf, grain) == VL_PRESENT;
    while (grain < last && (grain_state(leaf, grain + 1) == VL_PRESENT) == *held)
        grain++;
    return ((grain + 1) * VL_GRAIN < end ? (grain + 1) * VL_GRAIN : end) - offset;
}

VixError vl_links_claim(struct vl_disk *disk, uint64_t offset, uint64_t length)
{
    uint64_t last = (offset + length - 1) / VL_GRAIN;
    VixError error = complete_edges(disk, offset, length);
    for (uint64_t grain = offset / VL_GRAIN; error == VIX_OK && grain <= last; grain++)
        __atomic_store_n(&disk->pending[grain], (uint8_t)1, __ATOMIC_RELEASE);
    return error;
}

VixError vl_links_put(struct vl_disk *disk, uint64_t offset, uint64_t length, const uint8_t *buffer)
{
    return write_flat(disk->link[0].flat, offset, length, buffer);
}

void vl_links_publish(struct vl_disk *disk, uint64_t offset, uint64_t length)
{
    struct vl_link *leaf = &disk->link[0];
    uint64_t last = (offset + length - 1) / VL_GRAIN;
    if (disk->ctk != NULL)
        track(disk, offset, length);
    /* A grain says "present" only once its bytes are there, so a killed client leaves the parent's view intact. */
    for (uint64_t grain = offset / VL_GRAIN; grain <= last && grain < leaf->grain_count; grain++) {
        if (grain_state(leaf, grain) != VL_PRESENT)
            __atomic_store_n(&leaf->grains[grain], (uint8_t)VL_PRESENT, __ATOMIC_RELEASE);
        __atomic_store_n(&disk->pending[grain], (uint8_t)0, __ATOMIC_RELEASE);
    }
}

VixError vl_links_write(struct vl_disk *disk, uint64_t offset, uint64_t length, const uint8_t *buffer)
{
    VixError error = complete_edges(disk, offset, length);
    if (error == VIX_OK)
        error = vl_links_put(disk, offset, length, buffer);
    if (error == VIX_OK)
        vl_links_publish(disk, offset, length);
    return error;
}
