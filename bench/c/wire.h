// One connection, plain or over TLS, with a buffer for the heads of messages. All in a header, so
// that each program is one call of the compiler.
#ifndef WIRE_H
#define WIRE_H

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <arpa/inet.h>
#include <openssl/ssl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

#define HEAD_BYTES 65536

// AES-128-GCM is what Amazon S3 chooses. Both servers offer nothing else, so that no client pays
// more than another for the order in which it names its ciphers.
#define CIPHER "TLS_AES_128_GCM_SHA256"

typedef struct {
    int fd;
    SSL *tls; // NULL where the connection is plain
    char head[HEAD_BYTES + 1];
    size_t start, end; // of what was read into `head` and not yet taken
} Wire;

static inline void wire_tune(int fd) {
    int one = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
}

static inline ssize_t wire_read(Wire *w, void *to, size_t size) {
    return w->tls ? SSL_read(w->tls, to, (int)size) : recv(w->fd, to, size, 0);
}

static inline int wire_write(Wire *w, const char *from, size_t size) {
    while (size > 0) {
        ssize_t n = w->tls ? SSL_write(w->tls, from, (int)size)
                           : send(w->fd, from, size, MSG_NOSIGNAL);
        if (n <= 0) return -1;
        from += n, size -= (size_t)n;
    }
    return 0;
}

// Reads more of the head; -1 at the end of the connection, or where it grows too long.
static inline int wire_fill(Wire *w) {
    if (w->start > 0) {
        memmove(w->head, w->head + w->start, w->end - w->start);
        w->end -= w->start, w->start = 0;
    }
    if (w->end == HEAD_BYTES) return -1;
    ssize_t n = wire_read(w, w->head + w->end, HEAD_BYTES - w->end);
    if (n <= 0) return -1;
    w->end += (size_t)n;
    return 0;
}

// The next line, without its end; good until the next call. NULL at the end of the connection.
static inline char *wire_line(Wire *w) {
    for (;;) {
        char *line = w->head + w->start;
        char *end = memchr(line, '\n', w->end - w->start);
        if (end) {
            w->start = (size_t)(end + 1 - w->head);
            *end = 0;
            if (end > line && end[-1] == '\r') end[-1] = 0;
            return line;
        }
        if (wire_fill(w)) return NULL;
    }
}

// At most `size` bytes of a body: first what came with the head.
static inline ssize_t wire_some(Wire *w, char *to, size_t size) {
    size_t have = w->end - w->start;
    if (have == 0) return wire_read(w, to, size);
    if (have > size) have = size;
    memcpy(to, w->head + w->start, have);
    w->start += have;
    return (ssize_t)have;
}

static inline int wire_exactly(Wire *w, char *to, size_t size) {
    while (size > 0) {
        ssize_t n = wire_some(w, to, size);
        if (n <= 0) return -1;
        to += n, size -= (size_t)n;
    }
    return 0;
}

// The value of a header, if the line is that header; else NULL.
static inline const char *header_value(const char *line, const char *name) {
    size_t n = strlen(name);
    if (strncasecmp(line, name, n) || line[n] != ':') return NULL;
    for (line += n + 1; *line == ' ';) line++;
    return line;
}

static inline struct sockaddr_in loopback(int port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
}

#endif
