/* InitEx and Exit, the log, and the two files that the library reads: lab.conf beside itself and the client's config. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <ctype.h>
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "internal.h"

enum { OLDEST_MAJOR = 5, NEWEST_MAJOR = 9, DEFAULT_BUFFER_COUNT = 4, MOST_BUFFERS = 256, LARGEST_BUFFER = 1024 };

struct vl_config vl_config;

static char own_folder[4096]; /* where the client loaded the library from, links not resolved */
static char proxy_name[256];
static unsigned own_major = NEWEST_MAJOR; /* by the file's name */
static unsigned newest_major = NEWEST_MAJOR, newest_minor; /* that InitEx takes: lab.conf may say less */
static struct vl_server *servers;
static size_t server_count;
static VixDiskLibGenericLogFunc *log_callback, *warn_callback, *panic_callback;
static int initialised, in_fork;

__attribute__((constructor)) static void find_own_folder(void)
{
    Dl_info info;
    if (dladdr((void *)own_folder, &info) == 0 || info.dli_fname == NULL)
        return;
    char folder[4096] = "";
    if (info.dli_fname[0] != '/' && getcwd(folder, sizeof folder - 1) != NULL)
        strcat(folder, "/");
    snprintf(own_folder, sizeof own_folder, "%s%s", folder[0] == '/' ? folder : "", info.dli_fname);
    // libvixDiskLib.so.8 is of version 8.
    const char *number = strstr(own_folder, ".so.");
    if (number != NULL && sscanf(number, ".so.%u", &own_major) != 1)
        own_major = NEWEST_MAJOR;
    char *slash = strrchr(own_folder, '/');
    if (slash != NULL)
        *slash = '\0';
}

static void call_log(VixDiskLibGenericLogFunc *callback, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    callback(format, arguments);
    va_end(arguments);
}

void vl_log(enum vl_level level, const char *format, ...)
{
    VixDiskLibGenericLogFunc *callback = level <= VL_WARNING ? warn_callback : log_callback;
    if (level > VL_WARNING && (int)level > vl_config.log_level)
        return;
    va_list arguments;
    va_start(arguments, format);
    if (callback != NULL) {
        callback(format, arguments);
    } else if (level <= VL_WARNING) {
        vfprintf(stderr, format, arguments);
        fputc('\n', stderr);
    }
    va_end(arguments);
}

static void __attribute__((noreturn, format(printf, 1, 0))) panic(const char *format, const char *detail)
{
    char text[4352];
    snprintf(text, sizeof text, format, detail);
    fprintf(stderr, "VixDiskLib: PANIC: %s\n", text);
    if (panic_callback != NULL)
        call_log(panic_callback, "VixDiskLib: PANIC: %s", text);
    abort();
}

static void after_fork_in_child(void)
{
    in_fork = initialised;
}

VixError vl_ready(void)
{
    if (in_fork)
        panic("the process forked after VixDiskLib_InitEx; the library's threads are not in process %s",
              "that uses it now");
    return __atomic_load_n(&initialised, __ATOMIC_ACQUIRE) ? VIX_OK : VIX_E_DISK_NOINIT;
}

const char *vl_proxy_name(void)
{
    return proxy_name;
}

const struct vl_server *vl_find_server(const char *name, uint32_t port)
{
    for (size_t i = 0; i < server_count; i++)
        if (strcasecmp(servers[i].name, name) == 0 && servers[i].port == port)
            return &servers[i];
    return NULL;
}

/* VDDK brings its own OpenSSL; with another one in the process a call ends up in the wrong library sooner or later. */
static void refuse_foreign_openssl(void)
{
    FILE *maps = fopen("/proc/self/maps", "re");
    char line[4608];
    while (maps != NULL && fgets(line, sizeof line, maps) != NULL) {
        line[strcspn(line, "\n")] = '\0';
        char *path = strchr(line, '/'), *name = path != NULL ? strrchr(path, '/') + 1 : NULL;
        if (name == NULL || strstr(name, ".so") == NULL)
            continue;
        size_t stem = strncmp(name, "libcrypto", 9) == 0 ? 9 : strncmp(name, "libssl", 6) == 0 ? 6 : 0;
        if (stem > 0 && (name[stem] == '.' || name[stem] == '-'))
            panic("a foreign OpenSSL is mapped in this process: %s; VDDK needs its own", path);
    }
    if (maps != NULL)
        fclose(maps);
}

static char *trimmed(char *text)
{
    while (isspace((unsigned char)*text))
        text++;
    size_t length = strlen(text);
    while (length > 0 && isspace((unsigned char)text[length - 1]))
        text[--length] = '\0';
    if (length >= 2 && text[0] == '"' && text[length - 1] == '"') {
        text[length - 1] = '\0';
        text++;
    }
    return text;
}

static uint64_t in_range(const char *key, const char *value, uint64_t least, uint64_t most, uint64_t otherwise)
{
    char *end;
    errno = 0;
    uint64_t number = strtoull(value, &end, 10);
    if (*value != '\0' && *end == '\0' && errno == 0 && number >= least && number <= most)
        return number;
    vl_log(VL_WARNING, "VixDiskLib: config: %s=%s is out of range; using %llu", key, value,
           (unsigned long long)otherwise);
    return otherwise;
}

static void configure(const char *key, const char *value)
{
    if (strcasecmp(key, "vixDiskLib.nfcAio.Session.BufSizeIn64KB") == 0)
        vl_config.buffer_bytes = 65536 * in_range(key, value, 1, LARGEST_BUFFER, 1);
    else if (strcasecmp(key, "vixDiskLib.nfcAio.Session.BufCount") == 0)
        vl_config.buffer_count = (uint32_t)in_range(key, value, 1, MOST_BUFFERS, DEFAULT_BUFFER_COUNT);
    else if (strcasecmp(key, "vixDiskLib.transport.LogLevel") == 0)
        vl_config.log_level = (int)in_range(key, value, 0, 6, VL_INFO);
    else if (strcasecmp(key, "tmpDirectory") == 0)
        snprintf(vl_config.tmp_directory, sizeof vl_config.tmp_directory, "%s", value);
    else if (strncasecmp(key, "vixDiskLib.", 11) != 0 && strncasecmp(key, "vixMntapi.", 10) != 0)
        vl_log(VL_WARNING, "VixDiskLib: config: unknown key %s", key);
}

static VixError read_config(const char *path)
{
    vl_config = (struct vl_config){
        .buffer_bytes = 65536, .buffer_count = DEFAULT_BUFFER_COUNT, .log_level = VL_INFO, .tmp_directory = "/tmp"};
    if (path == NULL || *path == '\0')
        return VIX_OK;
    FILE *file = fopen(path, "re");
    if (file == NULL) {
        vl_log(VL_WARNING, "VixDiskLib: cannot open the config file %s: %s", path, strerror(errno));
        return VIX_E_FILE_NOT_FOUND;
    }
    char line[4608];
    while (fgets(line, sizeof line, file) != NULL) {
        char *key = trimmed(line), *equals = strchr(key, '=');
        if (*key == '#' || *key == '\0')
            continue;
        if (equals == NULL) {
            vl_log(VL_WARNING, "VixDiskLib: config: not a key=value line: %s", key);
            continue;
        }
        *equals = '\0';
        configure(trimmed(key), trimmed(equals + 1));
    }
    fclose(file);
    if (access(vl_config.tmp_directory, W_OK | X_OK) != 0)
        vl_log(VL_WARNING, "VixDiskLib: cannot use tmpDirectory %s: %s", vl_config.tmp_directory, strerror(errno));
    return VIX_OK;
}

static VixError read_lab_conf(void)
{
    char path[4352], line[8192];
    snprintf(path, sizeof path, "%s/lab.conf", own_folder);
    FILE *file = fopen(path, "re");
    if (file == NULL) {
        vl_log(VL_WARNING, "lab: cannot open %s: %s", path, strerror(errno));
        return VIX_E_FILE_NOT_FOUND;
    }
    VixError error = VIX_OK;
    while (error == VIX_OK && fgets(line, sizeof line, file) != NULL) {
        char *text = trimmed(line);
        struct vl_server server = {0};
        if (sscanf(text, "proxy %255s", proxy_name) == 1 || *text == '\0' || *text == '#')
            continue;
        if (sscanf(text, "version %u.%u", &newest_major, &newest_minor) == 2)
            continue;
        if (sscanf(text, "server %255s %u %255s %u %63s %4095[^\n]", server.name, &server.port, server.control_host,
                   &server.control_port, server.thumbprint, server.settings_path) != 6) {
            vl_log(VL_WARNING, "lab: %s: not understood: %s", path, text);
            error = VIX_E_FILE_ERROR;
            break;
        }
        struct vl_server *grown = realloc(servers, (server_count + 1) * sizeof *grown);
        if (grown == NULL) {
            error = VIX_E_OUT_OF_MEMORY;
            break;
        }
        servers = grown;
        servers[server_count++] = server;
    }
    fclose(file);
    return error;
}

EXPORT VixError VixDiskLib_InitEx(uint32_t major, uint32_t minor, VixDiskLibGenericLogFunc *log,
                                  VixDiskLibGenericLogFunc *warn, VixDiskLibGenericLogFunc *panic_function,
                                  const char *library_folder, const char *config_file)
{
    static bool fork_is_watched;
    if (__atomic_load_n(&initialised, __ATOMIC_ACQUIRE)) {
        vl_log(VL_WARNING, "VixDiskLib: VixDiskLib_InitEx called more than once in this process");
        return VIX_E_FAIL;
    }
    log_callback = log;
    warn_callback = warn;
    panic_callback = panic_function;
    refuse_foreign_openssl();
    newest_major = own_major, newest_minor = 0;
    server_count = 0;
    VixError error = read_lab_conf();
    if (error != VIX_OK)
        return error;
    if (major < OLDEST_MAJOR || major > newest_major || (major == newest_major && minor > newest_minor)) {
        vl_log(VL_WARNING, "VixDiskLib: version %u.%u is not supported", major, minor);
        return VIX_E_NOT_SUPPORTED;
    }
    vl_log(VL_WARNING, "PhoneHome: CEIP is not configured on this proxy, no data will be sent");
    if ((long)getpid() != syscall(SYS_gettid))
        vl_log(VL_WARNING, "VixDiskLib: VixDiskLib_InitEx should be called from the main thread");
    if (library_folder != NULL && *library_folder != '\0' && access(library_folder, X_OK) != 0)
        vl_log(VL_WARNING, "VixDiskLib: libDir %s: %s", library_folder, strerror(errno));
    error = read_config(config_file);
    if (error != VIX_OK)
        return error;
    if (!fork_is_watched)
        pthread_atfork(NULL, NULL, after_fork_in_child);
    fork_is_watched = true;
    if (!vl_monitor_start())
        return VIX_E_OUT_OF_MEMORY;
    __atomic_store_n(&initialised, 1, __ATOMIC_RELEASE);
    vl_log(VL_INFO, "VixDiskLib: initialized for version %u.%u, NFC buffers %u x %llu KiB, proxy %s", major, minor,
           vl_config.buffer_count, (unsigned long long)(vl_config.buffer_bytes / 1024), proxy_name);
    return VIX_OK;
}

EXPORT void VixDiskLib_Exit(void)
{
    if (vl_ready() != VIX_OK)
        return;
    vl_monitor_stop();
    vl_log(VL_INFO, "VixDiskLib: exit");
    __atomic_store_n(&initialised, 0, __ATOMIC_RELEASE);
    free(servers);
    servers = NULL;
    server_count = 0;
}
