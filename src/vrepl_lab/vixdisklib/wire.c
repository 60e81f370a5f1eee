/* Messages of `key value` lines ended by an empty line, over TCP. */
#include <errno.h>
#include <inttypes.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include "internal.h"

enum { CONNECT_SECONDS = 15, REPLY_SECONDS = 120, LONGEST_REPLY = 1 << 20 };

static bool reserve(struct vl_message *message, size_t more)
{
    if (message->length + more + 1 <= message->capacity)
        return true;
    size_t capacity = (message->length + more + 1) * 2;
    char *text = realloc(message->text, capacity);
    if (text == NULL) {
        message->failed = true;
        return false;
    }
    message->text = text;
    message->capacity = capacity;
    return true;
}

void vl_message_put(struct vl_message *message, const char *key, const char *value)
{
    if (value == NULL)
        value = "";
    if (strchr(value, '\n') != NULL) {
        message->failed = true;
        return;
    }
    size_t key_length = strlen(key), value_length = strlen(value);
    if (!reserve(message, key_length + value_length + 2))
        return;
    char *end = message->text + message->length;
    memcpy(end, key, key_length);
    end[key_length] = ' ';
    memcpy(end + key_length + 1, value, value_length);
    end[key_length + 1 + value_length] = '\n';
    message->length += key_length + value_length + 2;
}

void vl_message_number(struct vl_message *message, const char *key, uint64_t value)
{
    char text[24];
    snprintf(text, sizeof text, "%" PRIu64, value);
    vl_message_put(message, key, text);
}

void vl_message_free(struct vl_message *message)
{
    if (message->text != NULL)
        explicit_bzero(message->text, message->capacity); /* it may hold a password */
    free(message->text);
    memset(message, 0, sizeof *message);
}

const char *vl_message_get(const struct vl_message *reply, const char *key, const char *after)
{
    if (reply->text == NULL)
        return NULL;
    size_t key_length = strlen(key);
    const char *end = reply->text + reply->length;
    const char *line = after == NULL ? reply->text : after + strlen(after) + 1;
    while (line < end) {
        size_t length = strlen(line);
        if (length >= key_length && memcmp(line, key, key_length) == 0) {
            if (line[key_length] == ' ')
                return line + key_length + 1;
            if (line[key_length] == '\0') /* a key with an empty value, its blank trimmed */
                return line + key_length;
        }
        line += length + 1;
    }
    return NULL;
}

uint64_t vl_message_get_number(const struct vl_message *reply, const char *key, uint64_t otherwise)
{
    const char *value = vl_message_get(reply, key, NULL);
    return value != NULL && *value != '\0' ? strtoull(value, NULL, 10) : otherwise;
}

static void set_timeout(int fd, int option, int seconds)
{
    struct timeval timeout = {.tv_sec = seconds};
    setsockopt(fd, SOL_SOCKET, option, &timeout, sizeof timeout);
}

int vl_dial(const char *host, uint32_t port)
{
    char service[12];
    snprintf(service, sizeof service, "%" PRIu32, port);
    struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM}, *found = NULL;
    if (getaddrinfo(host, service, &hints, &found) != 0) {
        errno = ENOENT;
        return -1;
    }
    int fd = -1, error = ENOENT;
    for (struct addrinfo *address = found; address != NULL && fd < 0; address = address->ai_next) {
        fd = socket(address->ai_family, address->ai_socktype | SOCK_CLOEXEC, address->ai_protocol);
        if (fd < 0) {
            error = errno;
            continue;
        }
        set_timeout(fd, SO_SNDTIMEO, CONNECT_SECONDS); /* bounds connect() too on Linux */
        if (connect(fd, address->ai_addr, address->ai_addrlen) != 0) {
            error = errno;
            close(fd);
            fd = -1;
        }
    }
    freeaddrinfo(found);
    if (fd < 0) {
        errno = error;
        return -1;
    }
    int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    set_timeout(fd, SO_RCVTIMEO, REPLY_SECONDS);
    return fd;
}

static bool send_all(int fd, const char *text, size_t length)
{
    while (length > 0) {
        ssize_t sent = send(fd, text, length, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent <= 0)
            return false;
        text += sent;
        length -= (size_t)sent;
    }
    return true;
}

static bool receive_reply(int fd, struct vl_message *reply)
{
    reply->length = 0;
    for (;;) {
        if (reply->length > LONGEST_REPLY || !reserve(reply, 4096))
            return false;
        ssize_t received = recv(fd, reply->text + reply->length, 4096, 0);
        if (received < 0 && errno == EINTR)
            continue;
        if (received <= 0)
            return false;
        reply->length += (size_t)received;
        /* Requests and replies alternate, so nothing can follow the empty line. */
        if (reply->length >= 2 && memcmp(reply->text + reply->length - 2, "\n\n", 2) == 0)
            return true;
    }
}

VixError vl_call(int fd, struct vl_message *request, struct vl_message *reply, VixError broken)
{
    if (!request->failed && reserve(request, 1))
        request->text[request->length++] = '\n';
    if (request->failed)
        return VIX_E_INVALID_ARG;
    if (!send_all(fd, request->text, request->length) || !receive_reply(fd, reply))
        return broken;
    for (size_t i = 0; i < reply->length; i++)
        if (reply->text[i] == '\n')
            reply->text[i] = '\0';
    reply->text[reply->length] = '\0';
    const char *status = vl_message_get(reply, "status", NULL);
    return status != NULL ? strtoull(status, NULL, 10) : broken;
}
