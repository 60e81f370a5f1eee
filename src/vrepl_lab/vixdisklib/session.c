/* What a client does with a vCenter: connect, PrepareForAccess, EndAccess, Cleanup. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "internal.h"

enum { LONGEST_IDENTITY = 50, HTTPS_PORT = 443 };

static const char transport_modes[] = "file:san:hotadd:nbdssl:nbd";
static const char default_modes[] = "san:hotadd:nbdssl:nbd";

static const char *moref_of(const char *vmx_spec)
{
    const char *found = vmx_spec != NULL ? strstr(vmx_spec, "moref=") : NULL;
    return found != NULL && found[6] != '\0' ? found + 6 : NULL;
}

/* The server and the MoRef that the parameters name; logs what is wrong with them. */
static VixError check(const VixDiskLibConnectParams *params, const struct vl_server **server, const char **moref)
{
    VixError error = vl_ready();
    if (error != VIX_OK)
        return error;
    if (params == NULL || params->serverName == NULL || (*moref = moref_of(params->vmxSpec)) == NULL) {
        vl_log(VL_WARNING, "VixDiskLib: connection parameters need serverName and vmxSpec \"moref=vm-...\"");
        return VIX_E_INVALID_ARG;
    }
    if (params->specType != 0)
        return VIX_E_NOT_SUPPORTED;
    bool complete = params->credType == VIXDISKLIB_CRED_UID
                        ? params->creds.uid.userName != NULL && params->creds.uid.password != NULL
                        : params->credType == VIXDISKLIB_CRED_SESSIONID &&
                              (params->creds.sessionId.cookie != NULL || params->creds.sessionId.key != NULL);
    if (!complete) {
        vl_log(VL_WARNING, "VixDiskLib: credentials of type %u are incomplete or not supported", params->credType);
        return VIX_E_INVALID_ARG;
    }
    uint32_t port = params->port != 0 ? params->port : HTTPS_PORT;
    *server = vl_find_server(params->serverName, port);
    if (*server == NULL) {
        vl_log(VL_WARNING, "VixDiskLib: cannot connect to %s:%u", params->serverName, port);
        return VIX_E_CANNOT_CONNECT_TO_HOST;
    }
    return VIX_OK;
}

static void put_credentials(struct vl_message *message, const char *user, const char *password, const char *session)
{
    vl_message_put(message, "proxy", vl_proxy_name());
    vl_message_put(message, "user", user);
    if (session != NULL)
        vl_message_put(message, "session", session);
    else
        vl_message_put(message, "password", password);
}

static const char *session_of(const VixDiskLibConnectParams *params)
{
    if (params->credType != VIXDISKLIB_CRED_SESSIONID)
        return NULL;
    const char *cookie = params->creds.sessionId.cookie;
    return cookie != NULL && *cookie != '\0' ? cookie : params->creds.sessionId.key;
}

static void put_params(struct vl_message *message, const VixDiskLibConnectParams *params, const char *moref)
{
    bool uid = params->credType == VIXDISKLIB_CRED_UID;
    put_credentials(message, uid ? params->creds.uid.userName : params->creds.sessionId.userName,
                    uid ? params->creds.uid.password : NULL, session_of(params));
    vl_message_put(message, "moref", moref);
}

static void log_refusal(const char *what, VixError error, const struct vl_message *reply)
{
    const char *text = vl_message_get(reply, "text", NULL);
    vl_log(VL_WARNING, "VixDiskLib: %s: error %llu: %s", what, (unsigned long long)error, text != NULL ? text : "");
}

/* One request on a connection of its own; the connection is left open in *kept if that is not NULL. */
static VixError ask(const struct vl_server *server, const char *what, struct vl_message *request,
                    struct vl_message *reply, int *kept)
{
    int fd = vl_dial(server->control_host, server->control_port);
    VixError error = VIX_E_CANNOT_CONNECT_TO_HOST;
    if (fd >= 0)
        error = vl_call(fd, request, reply, VIX_E_CANNOT_CONNECT_TO_HOST);
    if (error != VIX_OK)
        log_refusal(what, error, reply);
    if (fd >= 0 && (error != VIX_OK || kept == NULL))
        close(fd);
    else if (fd >= 0)
        *kept = fd;
    return error;
}

/* Faults of calls that have opened no disk: their VM goes by its MoRef unless the server told its name. */
static VixError fault_without_handle(struct vl_settings *settings, enum vl_op op, const struct vl_message *reply,
                                     const char *moref)
{
    const char *vm = vl_message_get(reply, "vm", NULL);
    struct vl_fault fault = vl_fault_take(settings, op, vm != NULL ? vm : moref, "");
    return vl_fault_now(&fault);
}

EXPORT VixDiskLibConnectParams *VixDiskLib_AllocateConnectParams(void)
{
    return calloc(1, sizeof(VixDiskLibConnectParams));
}

EXPORT void VixDiskLib_FreeConnectParams(VixDiskLibConnectParams *params)
{
    free(params); /* the strings are the client's */
}

static void free_connection(struct vl_connection *connection)
{
    if (connection->fd >= 0)
        close(connection->fd);
    vl_settings_unmap(connection->settings);
    if (connection->password != NULL)
        explicit_bzero(connection->password, strlen(connection->password));
    free(connection->moref);
    free(connection->snapshot);
    free(connection->modes);
    free(connection->user);
    free(connection->password);
    free(connection->session);
    free(connection->thumbprint);
    memset(connection, 0, sizeof *connection);
    free(connection);
}

static char *copied(const char *text)
{
    return text != NULL ? strdup(text) : NULL;
}

static struct vl_connection *new_connection(const VixDiskLibConnectParams *params, const struct vl_server *server,
                                            const char *moref, bool read_only, const char *snapshot, const char *modes)
{
    struct vl_connection *connection = calloc(1, sizeof *connection);
    if (connection == NULL)
        return NULL;
    bool uid = params->credType == VIXDISKLIB_CRED_UID;
    connection->magic = VL_CONNECTION_MAGIC;
    connection->fd = -1;
    connection->server = server;
    connection->read_only = read_only;
    connection->nfc_host_port = params->nfcHostPort;
    connection->moref = strdup(moref);
    connection->snapshot = copied(snapshot);
    connection->modes = strdup(modes != NULL && *modes != '\0' ? modes : default_modes);
    connection->user = copied(uid ? params->creds.uid.userName : params->creds.sessionId.userName);
    connection->password = uid ? copied(params->creds.uid.password) : NULL;
    connection->session = copied(session_of(params));
    connection->thumbprint = copied(params->thumbPrint);
    return connection;
}

EXPORT VixError VixDiskLib_ConnectEx(const VixDiskLibConnectParams *params, char read_only, const char *snapshot,
                                     const char *modes, VixDiskLibConnection *result)
{
    const struct vl_server *server = NULL;
    const char *moref = NULL;
    VixError error = result == NULL ? (VixError)VIX_E_INVALID_ARG : check(params, &server, &moref);
    if (error != VIX_OK)
        return error;
    *result = NULL;
    struct vl_connection *connection = new_connection(params, server, moref, read_only != 0, snapshot, modes);
    if (connection == NULL)
        return VIX_E_OUT_OF_MEMORY;
    connection->settings = vl_settings_map(server->settings_path);
    struct vl_message request = {0}, reply = {0};
    vl_message_put(&request, "op", "connect");
    put_params(&request, params, moref);
    vl_message_number(&request, "readonly", read_only != 0);
    vl_message_put(&request, "snapshot", snapshot);
    error = connection->settings == NULL ? (VixError)VIX_E_CANNOT_CONNECT_TO_HOST
                                         : ask(server, "VixDiskLib_ConnectEx", &request, &reply, &connection->fd);
    if (error == VIX_OK)
        error = fault_without_handle(connection->settings, VL_CONNECT, &reply, moref);
    vl_message_free(&request);
    vl_message_free(&reply);
    if (error != VIX_OK) {
        free_connection(connection);
        return error;
    }
    vl_log(VL_INFO, "VixDiskLib: connected to %s:%u for %s, transports %s", server->name, server->port, moref,
           connection->modes);
    *result = connection;
    return VIX_OK;
}

EXPORT VixError VixDiskLib_Connect(const VixDiskLibConnectParams *params, VixDiskLibConnection *result)
{
    return VixDiskLib_ConnectEx(params, 0, NULL, "nbdssl:nbd", result);
}

EXPORT VixError VixDiskLib_Disconnect(VixDiskLibConnection connection)
{
    VixError error = vl_ready();
    if (error != VIX_OK)
        return error;
    if (connection == NULL || connection->magic != VL_CONNECTION_MAGIC)
        return VIX_E_INVALID_HANDLE;
    if (__atomic_load_n(&connection->open_handles, __ATOMIC_ACQUIRE) > 0) {
        vl_log(VL_WARNING, "VixDiskLib: VixDiskLib_Disconnect while disks of the connection are open");
        return VIX_E_OBJECT_IS_BUSY;
    }
    free_connection(connection);
    return VIX_OK;
}

EXPORT const char *VixDiskLib_ListTransportModes(void)
{
    return transport_modes;
}

static VixError access_call(const char *op, const char *what, const VixDiskLibConnectParams *params,
                            const char *identity)
{
    const struct vl_server *server = NULL;
    const char *moref = NULL;
    VixError error = check(params, &server, &moref);
    if (error != VIX_OK)
        return error;
    if (identity == NULL || *identity == '\0' || strlen(identity) > LONGEST_IDENTITY) {
        vl_log(VL_WARNING, "VixDiskLib: %s: the identity must have 1 to %d characters", what, LONGEST_IDENTITY);
        return VIX_E_INVALID_ARG;
    }
    struct vl_settings *settings = vl_settings_map(server->settings_path);
    struct vl_message request = {0}, reply = {0};
    vl_message_put(&request, "op", op);
    put_params(&request, params, moref);
    vl_message_put(&request, "identity", identity);
    if (settings == NULL) {
        error = VIX_E_CANNOT_CONNECT_TO_HOST;
    } else {
        if (strcmp(op, "prepare") == 0)
            error = fault_without_handle(settings, VL_PREPARE, &reply, moref);
        if (error == VIX_OK)
            error = ask(server, what, &request, &reply, NULL);
    }
    vl_settings_unmap(settings);
    vl_message_free(&request);
    vl_message_free(&reply);
    return error;
}

EXPORT VixError VixDiskLib_PrepareForAccess(const VixDiskLibConnectParams *params, const char *identity)
{
    return access_call("prepare", "VixDiskLib_PrepareForAccess", params, identity);
}

EXPORT VixError VixDiskLib_EndAccess(const VixDiskLibConnectParams *params, const char *identity)
{
    return access_call("endaccess", "VixDiskLib_EndAccess", params, identity);
}

EXPORT VixError VixDiskLib_Cleanup(const VixDiskLibConnectParams *params, uint32_t *cleaned, uint32_t *remaining)
{
    const struct vl_server *server = NULL;
    const char *moref = NULL;
    VixError error = check(params, &server, &moref);
    if (error != VIX_OK)
        return error;
    struct vl_message request = {0}, reply = {0};
    vl_message_put(&request, "op", "cleanup");
    put_params(&request, params, moref);
    error = ask(server, "VixDiskLib_Cleanup", &request, &reply, NULL);
    if (cleaned != NULL)
        *cleaned = (uint32_t)vl_message_get_number(&reply, "cleaned", 0);
    if (remaining != NULL)
        *remaining = (uint32_t)vl_message_get_number(&reply, "remaining", 0);
    vl_message_free(&request);
    vl_message_free(&reply);
    return error;
}
