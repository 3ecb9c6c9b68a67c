// The floor under all of them: GET, SHA-256, PUT, over bare sockets and OpenSSL, one buffer and two
// connections a thread. It asks no API, keeps no ledger, checks no answer, and tries nothing twice.
//
//   gcc -O2 -o floor floor.c -lssl -lcrypto -lpthread
//   floor THREADS SOURCE_PORT SINK_PORT [tls] < paths      a path of the source on each line
#define _GNU_SOURCE
#include "wire.h"
#include <openssl/evp.h>
#include <pthread.h>
#include <stdatomic.h>

#define BUFFER (256 << 10)
#define MAX_PATHS 100000

static int source_port, sink_port;
static SSL_CTX *tls_context;
static char *paths[MAX_PATHS];
static int path_count;
static atomic_int next_path;

static void fail(const char *what) {
    fprintf(stderr, "floor: %s\n", what);
    exit(1);
}

static Wire *open_wire(int port) {
    Wire *w = calloc(1, sizeof *w);
    struct sockaddr_in address = loopback(port);
    w->fd = socket(AF_INET, SOCK_STREAM, 0);
    wire_tune(w->fd);
    if (connect(w->fd, (void *)&address, sizeof address)) fail("cannot connect");
    if (tls_context) {
        w->tls = SSL_new(tls_context);
        SSL_set_fd(w->tls, w->fd);
        if (SSL_connect(w->tls) != 1) fail("no TLS");
    }
    return w;
}

// Reads the head of an answer; the length of its body.
static long read_head(Wire *w) {
    long length = 0;
    char *line = wire_line(w);
    if (!line || strncmp(line, "HTTP/1.1 200", 12)) fail("not answered with 200");
    while ((line = wire_line(w)) && *line) {
        const char *value = header_value(line, "content-length");
        if (value) length = atol(value);
    }
    return length;
}

static void copy(Wire *source, Wire *sink, const char *path, char *buffer, EVP_MD_CTX *sum) {
    char head[1024];
    unsigned char digest[32];
    int n = snprintf(head, sizeof head, "GET %s HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", path);
    wire_write(source, head, (size_t)n);
    long left = read_head(source);
    n = snprintf(head, sizeof head,
                 "PUT /bench/%.*s HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %ld\r\n\r\n",
                 (int)strcspn(path, "?") - 1, path + 1, left);
    wire_write(sink, head, (size_t)n);
    EVP_DigestInit_ex(sum, EVP_sha256(), NULL);
    for (size_t size; left > 0; left -= (long)size) {
        size = left < BUFFER ? (size_t)left : BUFFER;
        if (wire_exactly(source, buffer, size)) fail("the source broke off");
        EVP_DigestUpdate(sum, buffer, size);
        if (wire_write(sink, buffer, size)) fail("the sink broke off");
    }
    EVP_DigestFinal_ex(sum, digest, NULL);
    read_head(sink);
}

static void *work(void *unused) {
    (void)unused;
    Wire *source = open_wire(source_port), *sink = open_wire(sink_port);
    char *buffer = malloc(BUFFER);
    EVP_MD_CTX *sum = EVP_MD_CTX_new();
    for (int i; (i = next_path++) < path_count;) copy(source, sink, paths[i], buffer, sum);
    return NULL;
}

int main(int count, char **arguments) {
    if (count < 4) return fprintf(stderr, "usage: floor THREADS SOURCE SINK [tls] < paths\n"), 2;
    int threads = atoi(arguments[1]);
    source_port = atoi(arguments[2]), sink_port = atoi(arguments[3]);
    if (count > 4) tls_context = SSL_CTX_new(TLS_client_method());
    for (char *line = NULL, *end; path_count < MAX_PATHS; line = NULL) {
        size_t size = 0;
        if (getline(&line, &size, stdin) < 0) break;
        if ((end = strchr(line, '\n'))) *end = 0;
        paths[path_count++] = line;
    }
    pthread_t running[256];
    for (int i = 0; i < threads && i < 256; i++) pthread_create(&running[i], NULL, work, NULL);
    for (int i = 0; i < threads && i < 256; i++) pthread_join(running[i], NULL);
    return 0;
}
