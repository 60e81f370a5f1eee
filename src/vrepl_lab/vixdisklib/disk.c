/* A disk as a handle sees it: the chain of links under a write buffer that dies with the process.
 *
 * The buffer is a first-in first-out list of pieces. Pieces may overlap; since they reach the files in the order in which
 * they were written, and reads lay them over the files in the same order, the latest one wins.
 *
 * Where a piece's bytes wait depends on the grains under it. Over grains that the leaf holds they wait in a ring, since
 * the file's old bytes must survive this process. Grains that the leaf does not hold are written to its file at once and
 * are said to be there, in the grains map, when the piece leaves the buffer: until then only this handle believes in
 * them (`pending`), and they are as lost with a killed process as bytes in a ring, without having been copied twice.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "internal.h"

enum { PIECE = 256 * 1024 };
static const size_t IN_FILE = SIZE_MAX; /* where a piece's bytes are that are in no ring */

static struct vl_segment *segment(struct vl_disk *disk, size_t nth)
{
    return &disk->segments[(disk->segment_first + nth) % disk->segment_capacity];
}

static VixError drain_oldest(struct vl_disk *disk)
{
    struct vl_segment oldest = *segment(disk, 0);
    if (oldest.at == IN_FILE) {
        vl_links_publish(disk, oldest.offset, oldest.length);
    } else {
        VixError error = vl_links_write(disk, oldest.offset, oldest.length, disk->ring + oldest.at);
        if (error != VIX_OK)
            return error; /* it stays in the buffer, so a later Flush or Close reports the loss as well */
        disk->ring_count--;
    }
    disk->segment_first = (disk->segment_first + 1) % disk->segment_capacity;
    disk->segment_count--;
    disk->buffered -= oldest.length;
    return VIX_OK;
}

static VixError drain_all(struct vl_disk *disk)
{
    VixError error = VIX_OK;
    while (error == VIX_OK && disk->segment_count > 0)
        error = drain_oldest(disk);
    return error;
}

static VixError size_buffer(struct vl_disk *disk, uint64_t limit)
{
    VixError error = drain_all(disk);
    if (error != VIX_OK)
        return error;
    if (disk->ring != NULL)
        munmap(disk->ring, disk->ring_size);
    disk->ring = NULL;
    disk->limit = 0;
    disk->ring_size = (size_t)limit + 2 * PIECE;
    void *ring = mmap(NULL, disk->ring_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (ring == MAP_FAILED)
        return VIX_E_OUT_OF_MEMORY;
    disk->ring = ring;
    disk->ring_head = 0;
    disk->limit = limit;
    return VIX_OK;
}

static bool reserve_segment(struct vl_disk *disk)
{
    if (disk->segment_count < disk->segment_capacity)
        return true;
    size_t capacity = disk->segment_capacity * 2 + 64;
    struct vl_segment *grown = malloc(capacity * sizeof *grown);
    if (grown == NULL)
        return false;
    for (size_t i = 0; i < disk->segment_count; i++)
        grown[i] = *segment(disk, i);
    free(disk->segments);
    disk->segments = grown;
    disk->segment_capacity = capacity;
    disk->segment_first = 0;
    return true;
}

/* True if `length` bytes fit at the head without touching the oldest piece of the ring. */
static bool fits(struct vl_disk *disk, uint64_t length)
{
    if (disk->ring_count == 0) {
        disk->ring_head = 0;
        return true;
    }
    size_t oldest = 0;
    while (segment(disk, oldest)->at == IN_FILE)
        oldest++;
    size_t tail = segment(disk, oldest)->at;
    if (disk->ring_head > tail) {
        if (disk->ring_head + length <= disk->ring_size)
            return true;
        if (length >= tail)
            return false;
        disk->ring_head = 0;
        return true;
    }
    return disk->ring_head + length < tail;
}

/* A piece joins the buffer; the oldest leave it as long as there are too many bytes. `buffer` is NULL for one whose bytes
 * are in the file. */
static VixError append(struct vl_disk *disk, uint64_t offset, uint64_t length, const uint8_t *buffer)
{
    VixError error = VIX_OK;
    while (error == VIX_OK && disk->segment_count > 0 &&
           (disk->buffered + length > disk->limit || (buffer != NULL && !fits(disk, length))))
        error = drain_oldest(disk);
    if (error != VIX_OK)
        return error;
    if (disk->ring_count == 0)
        disk->ring_head = 0;
    struct vl_segment *latest = disk->segment_count > 0 ? segment(disk, disk->segment_count - 1) : NULL;
    bool extends = latest != NULL && latest->offset + latest->length == offset && latest->length + length <= PIECE &&
                   (buffer == NULL ? latest->at == IN_FILE
                                   : latest->at != IN_FILE && latest->at + latest->length == disk->ring_head);
    if (!extends && !reserve_segment(disk))
        return VIX_E_OUT_OF_MEMORY;
    if (buffer != NULL)
        memcpy(disk->ring + disk->ring_head, buffer, length);
    if (extends) {
        latest->length += length;
    } else {
        *segment(disk, disk->segment_count++) = (struct vl_segment){
            .offset = offset, .length = length, .at = buffer != NULL ? disk->ring_head : IN_FILE};
        disk->ring_count += buffer != NULL;
    }
    if (buffer != NULL)
        disk->ring_head += length;
    disk->buffered += length;
    return VIX_OK;
}

static VixError append_pieces(struct vl_disk *disk, uint64_t offset, uint64_t length, const uint8_t *buffer)
{
    VixError error = VIX_OK;
    while (error == VIX_OK && length > 0) {
        uint64_t piece = length < PIECE ? length : PIECE;
        if (piece > disk->limit)
            piece = disk->limit / SECTOR * SECTOR > 0 ? disk->limit / SECTOR * SECTOR : SECTOR;
        error = append(disk, offset, piece, buffer);
        offset += piece;
        buffer = buffer == NULL ? NULL : buffer + piece;
        length -= piece;
    }
    return error;
}

/* After a write that failed, grains in which no other piece waits are again what they were. */
static void disclaim(struct vl_disk *disk, uint64_t offset, uint64_t length)
{
    uint64_t last = (offset + length - 1) / VL_GRAIN;
    for (uint64_t grain = offset / VL_GRAIN; grain <= last; grain++) {
        bool waits = false;
        for (size_t i = 0; i < disk->segment_count && !waits; i++) {
            const struct vl_segment *piece = segment(disk, i);
            waits = piece->at == IN_FILE && piece->offset / VL_GRAIN <= grain &&
                    grain <= (piece->offset + piece->length - 1) / VL_GRAIN;
        }
        if (!waits)
            __atomic_store_n(&disk->pending[grain], (uint8_t)0, __ATOMIC_RELEASE);
    }
}

/* Writes a run of grains, all of which the leaf holds or none. Called with the lock held, and returns with it; lets go of
 * it while bytes go straight to the file. */
static VixError write_run(struct vl_disk *disk, uint64_t offset, uint64_t length, const uint8_t *buffer, bool held)
{
    if (held)
        return append_pieces(disk, offset, length, buffer);
    VixError error = vl_links_claim(disk, offset, length);
    if (error != VIX_OK)
        return error;
    pthread_mutex_unlock(&disk->lock);
    pthread_mutex_lock(&disk->file_lock); /* the kernel lets one writer at a time in as well, but spins where we sleep */
    error = vl_links_put(disk, offset, length, buffer);
    pthread_mutex_unlock(&disk->file_lock);
    pthread_mutex_lock(&disk->lock);
    if (error == VIX_OK)
        return append_pieces(disk, offset, length, NULL);
    disclaim(disk, offset, length);
    return error;
}

VixError vl_disk_write(struct vl_disk *disk, uint64_t offset, uint64_t length, const uint8_t *buffer, uint64_t limit)
{
    VixError error = VIX_OK;
    pthread_mutex_lock(&disk->lock);
    if (limit != disk->limit)
        error = limit > 0 ? size_buffer(disk, limit) : drain_all(disk);
    if (limit == 0) {
        if (error == VIX_OK)
            error = vl_links_write(disk, offset, length, buffer);
        length = 0;
    }
    while (error == VIX_OK && length > 0) {
        bool held;
        uint64_t run = vl_links_run(disk, offset, length, &held);
        error = write_run(disk, offset, run, buffer, held);
        offset += run;
        buffer += run;
        length -= run;
    }
    pthread_mutex_unlock(&disk->lock);
    return error;
}

VixError vl_disk_drain(struct vl_disk *disk)
{
    pthread_mutex_lock(&disk->lock);
    VixError error = drain_all(disk);
    pthread_mutex_unlock(&disk->lock);
    return error;
}

static void lay_over(struct vl_disk *disk, uint64_t offset, uint64_t length, uint8_t *buffer)
{
    uint64_t end = offset + length;
    for (size_t i = 0; i < disk->segment_count; i++) {
        const struct vl_segment *piece = segment(disk, i);
        if (piece->at == IN_FILE)
            continue;
        uint64_t from = piece->offset > offset ? piece->offset : offset;
        uint64_t to = piece->offset + piece->length < end ? piece->offset + piece->length : end;
        if (from < to)
            memcpy(buffer + (from - offset), disk->ring + piece->at + (from - piece->offset), to - from);
    }
}

VixError vl_disk_read(struct vl_disk *disk, uint64_t offset, uint64_t length, uint8_t *buffer)
{
    if (disk->writable) {
        pthread_mutex_lock(&disk->lock);
        if (disk->ring_count > 0) {
            VixError error = vl_links_read(disk, 0, disk->read_links, offset, length, buffer);
            if (error == VIX_OK)
                lay_over(disk, offset, length, buffer);
            pthread_mutex_unlock(&disk->lock);
            return error;
        }
        pthread_mutex_unlock(&disk->lock); /* every write that has been acknowledged is in the leaf's file */
    }
    return vl_links_read(disk, 0, disk->read_links, offset, length, buffer);
}

/* One byte per chunk, 1 where the ring holds something of it; NULL when it holds nothing. */
static uint8_t *buffered_chunks(struct vl_disk *disk, uint64_t offset, uint64_t count, uint64_t chunk, bool *failed)
{
    if (disk->ring_count == 0)
        return NULL;
    uint8_t *chunks = calloc(count, 1);
    *failed = chunks == NULL;
    for (size_t i = 0; chunks != NULL && i < disk->segment_count; i++) {
        const struct vl_segment *piece = segment(disk, i);
        uint64_t end = piece->offset + piece->length;
        if (piece->at == IN_FILE || end <= offset || piece->offset >= offset + count * chunk)
            continue;
        uint64_t first = piece->offset > offset ? (piece->offset - offset) / chunk : 0;
        for (uint64_t c = first; c < count && offset + c * chunk < end; c++)
            chunks[c] = 1;
    }
    return chunks;
}

VixError vl_disk_query(struct vl_disk *disk, uint64_t offset, uint64_t length, uint64_t chunk, VixDiskLibBlockList **list)
{
    uint64_t count = length / chunk;
    size_t capacity = 64;
    VixDiskLibBlockList *blocks = malloc(sizeof *blocks + capacity * sizeof(VixDiskLibBlock));
    bool failed = false;
    pthread_mutex_lock(&disk->lock);
    uint8_t *buffered = buffered_chunks(disk, offset, count, chunk, &failed);
    if (blocks == NULL || failed)
        goto out_of_memory;
    blocks->numBlocks = 0;
    for (uint64_t c = 0; c < count; c++) {
        uint64_t from = offset + c * chunk, to = from + chunk;
        bool allocated = (buffered != NULL && buffered[c]) ||
                         vl_links_allocated(disk, from / VL_GRAIN, (to + VL_GRAIN - 1) / VL_GRAIN);
        if (!allocated)
            continue;
        VixDiskLibBlock *last = blocks->numBlocks > 0 ? &blocks->blocks[blocks->numBlocks - 1] : NULL;
        if (last != NULL && last->offset + last->length == from / SECTOR) {
            last->length += chunk / SECTOR;
            continue;
        }
        if (blocks->numBlocks == capacity) {
            capacity *= 2;
            VixDiskLibBlockList *grown = realloc(blocks, sizeof *blocks + capacity * sizeof(VixDiskLibBlock));
            if (grown == NULL)
                goto out_of_memory;
            blocks = grown;
        }
        blocks->blocks[blocks->numBlocks++] =
            (VixDiskLibBlock){.offset = from / SECTOR, .length = chunk / SECTOR};
    }
    pthread_mutex_unlock(&disk->lock);
    free(buffered);
    *list = blocks;
    return VIX_OK;
out_of_memory:
    pthread_mutex_unlock(&disk->lock);
    free(buffered);
    free(blocks);
    return VIX_E_OUT_OF_MEMORY;
}
