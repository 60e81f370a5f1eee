/* The part of VDDK's C interface (Linux x86-64) that the lab's library serves.
 *
 * Written from the public programming guide and checked against what open-source clients declare; offsets that a client
 * in another language relies on are asserted below. A sector is 512 bytes everywhere.
 */
#ifndef VIXDISKLIB_H
#define VIXDISKLIB_H

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#define EXPORT __attribute__((visibility("default")))

typedef uint64_t VixError;

#define SECTOR 512u

enum {
    VIX_OK = 0,
    VIX_E_FAIL = 1,
    VIX_E_OUT_OF_MEMORY = 2,
    VIX_E_INVALID_ARG = 3,
    VIX_E_FILE_NOT_FOUND = 4,
    VIX_E_OBJECT_IS_BUSY = 5,
    VIX_E_NOT_SUPPORTED = 6,
    VIX_E_FILE_ERROR = 7,
    VIX_E_DISK_FULL = 8,
    VIX_E_FILE_READ_ONLY = 11,
    VIX_E_FILE_ACCESS_ERROR = 13,
    VIX_E_INVALID_HANDLE = 1000,
    VIX_E_HOST_SERVER_NOT_FOUND = 14008,
    VIX_E_HOST_NETWORK_CONN_REFUSED = 14009,
    VIX_E_HOST_TCP_SOCKET_ERROR = 14010,
    VIX_E_HOST_TCP_CONN_LOST = 14011,
    VIX_E_DISK_NOINIT = 16001,
    VIX_E_DISK_OUTOFRANGE = 16007,
    VIX_E_CANNOT_CONNECT_TO_HOST = 18000,
    VIX_ASYNC = 25000,
    VIX_E_ASYNC_MIXEDMODE_UNSUPPORTED = 26000,
};

enum {
    VIXDISKLIB_FLAG_OPEN_UNBUFFERED = 1,
    VIXDISKLIB_FLAG_OPEN_SINGLE_LINK = 2,
    VIXDISKLIB_FLAG_OPEN_READ_ONLY = 4,
    VIXDISKLIB_FLAG_OPEN_COMPRESSION_ZLIB = 16,
    VIXDISKLIB_FLAG_OPEN_COMPRESSION_FASTLZ = 32,
    VIXDISKLIB_FLAG_OPEN_COMPRESSION_SKIPZ = 64,
};

enum { VIXDISKLIB_MIN_CHUNK_SIZE = 128, VIXDISKLIB_MAX_CHUNK_NUMBER = 512 * 1024 };
enum { VIXDISKLIB_CRED_UID = 1, VIXDISKLIB_CRED_SESSIONID = 2 };

typedef void VixDiskLibGenericLogFunc(const char *format, va_list arguments);
typedef void (*VixDiskLibCompletionCB)(void *data, VixError result);

typedef struct {
    char *vmxSpec;
    char *serverName;
    char *thumbPrint;
    long privateUse;
    uint32_t credType;
    union {
        struct {
            char *userName;
            char *password;
        } uid;
        struct {
            char *cookie;
            char *userName;
            char *key;
        } sessionId;
    } creds;
    uint32_t port;
    uint32_t nfcHostPort;
    char *vimApiVer;
    char reserved[8];
    void *state;
    struct {
        char *id;
        char *datastoreMoRef;
        char *ssId;
    } spec;
    uint32_t specType;
} VixDiskLibConnectParams;

typedef struct {
    uint32_t cylinders, heads, sectors;
} VixDiskLibGeometry;

typedef struct {
    VixDiskLibGeometry biosGeo;
    VixDiskLibGeometry physGeo;
    uint64_t capacity; /* sectors */
    uint32_t adapterType;
    int32_t numLinks;
    char *parentFileNameHint;
    char *uuid;
    uint32_t logicalSectorSize;
    uint32_t physicalSectorSize;
} VixDiskLibInfo;

typedef struct {
    uint64_t offset; /* sectors */
    uint64_t length; /* sectors */
} VixDiskLibBlock;

typedef struct {
    uint32_t numBlocks;
    VixDiskLibBlock blocks[1];
} VixDiskLibBlockList;

typedef struct vl_connection *VixDiskLibConnection;
typedef struct vl_handle *VixDiskLibHandle;

_Static_assert(sizeof(VixDiskLibConnectParams) == 128, "size of ConnectParams");
_Static_assert(offsetof(VixDiskLibConnectParams, credType) == 32, "offset of credType");
_Static_assert(offsetof(VixDiskLibConnectParams, creds) == 40, "offset of creds");
_Static_assert(offsetof(VixDiskLibConnectParams, port) == 64, "offset of port");
_Static_assert(offsetof(VixDiskLibConnectParams, nfcHostPort) == 68, "offset of nfcHostPort");
_Static_assert(offsetof(VixDiskLibConnectParams, state) == 88, "offset of state");
_Static_assert(offsetof(VixDiskLibConnectParams, spec) == 96, "offset of spec");
_Static_assert(offsetof(VixDiskLibConnectParams, specType) == 120, "offset of specType");
_Static_assert(offsetof(VixDiskLibInfo, capacity) == 24, "offset of capacity");
_Static_assert(offsetof(VixDiskLibInfo, adapterType) == 32, "offset of adapterType");
_Static_assert(offsetof(VixDiskLibInfo, parentFileNameHint) == 40, "offset of parentFileNameHint");
_Static_assert(offsetof(VixDiskLibInfo, physicalSectorSize) == 60, "offset of physicalSectorSize");
_Static_assert(offsetof(VixDiskLibBlockList, blocks) == 8, "offset of blocks");

#endif
