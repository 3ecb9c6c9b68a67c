// A null S3 store: it takes recordings as fast as they come and throws them away, but remembers
// what it was told of them; whatever is small, or no recording, it keeps. A thread per connection.
//
//   gcc -O2 -o sink sink.c -lssl -lcrypto -lpthread
//   sink PORT [CERT KEY]      listens on loopback; GET /_stats tells what it was sent
//
// It answers what the contestants ask: PUT (create-once too), multipart uploads, HEAD, GET, DELETE,
// listings. A wrong SHA-256 is refused of what is kept, which is how one finds out whether it is
// refused at all: of a recording the bytes are gone before the sum could be made, and this is a
// benchmark of clients. It checks no signature.
#define _GNU_SOURCE
#include "objects.h"
#include "wire.h"
#include <openssl/evp.h>
#include <openssl/sha.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdarg.h>
#include <time.h>

#define SMALL (64 << 10)
#define JUNK (1 << 20)

static SSL_CTX *tls_context;
static atomic_ullong puts_taken, bytes_taken, requests_seen, connections_seen;

typedef struct {
    char method[16], path[4096];
    char *key, *query; // into `path`; `key` is empty for the bucket itself
    uint64_t length, decoded_length;
    int chunked, aws_chunked, wants_continue, closes, create_once;
    char sha256[64], type[64], range[64];
} Request;

typedef struct {
    char *data;
    size_t size;
} Text;

static void say(Text *text, const char *format, ...) {
    va_list arguments;
    char *more;
    va_start(arguments, format);
    int n = vasprintf(&more, format, arguments);
    va_end(arguments);
    text->data = realloc(text->data, text->size + (size_t)n + 1);
    memcpy(text->data + text->size, more, (size_t)n + 1);
    text->size += (size_t)n;
    free(more);
}

// --- reading a request

static void decode(char *text) {
    char *to = text;
    for (char *from = text; *from; from++) {
        unsigned code;
        if (*from == '%' && sscanf(from + 1, "%2x", &code) == 1) *to++ = (char)code, from += 2;
        else *to++ = *from;
    }
    *to = 0;
}

// A parameter of the query, decoded, in `to`; false where it is not there.
static int parameter(const Request *r, const char *name, char *to, size_t size) {
    size_t n = strlen(name);
    *to = 0;
    for (const char *at = r->query; *at; at += strcspn(at, "&"), at += *at == '&') {
        if (strncmp(at, name, n) || !strchr("=&", at[n])) continue;
        const char *value = at + n + (at[n] == '=');
        size_t length = strcspn(value, "&");
        snprintf(to, size, "%.*s", (int)length, value);
        decode(to);
        return 1;
    }
    return 0;
}

static int has(const Request *r, const char *name) {
    char ignored[2];
    return parameter(r, name, ignored, sizeof ignored);
}

static void note_header(Request *r, const char *line) {
    const char *value;
    if ((value = header_value(line, "content-length"))) r->length = strtoull(value, NULL, 10);
    else if ((value = header_value(line, "transfer-encoding"))) r->chunked = 1;
    else if ((value = header_value(line, "content-encoding")))
        r->aws_chunked |= strcasestr(value, "aws-chunked") != NULL;
    else if ((value = header_value(line, "x-amz-decoded-content-length"))) {
        r->decoded_length = strtoull(value, NULL, 10);
        r->aws_chunked = 1;
    } else if ((value = header_value(line, "expect"))) r->wants_continue = 1;
    else if ((value = header_value(line, "connection"))) r->closes = !strcasecmp(value, "close");
    else if ((value = header_value(line, "if-none-match"))) r->create_once = *value == '*';
    else if ((value = header_value(line, "x-amz-checksum-sha256")))
        snprintf(r->sha256, sizeof r->sha256, "%s", value);
    else if ((value = header_value(line, "content-type")))
        snprintf(r->type, sizeof r->type, "%s", value);
    else if ((value = header_value(line, "range")))
        snprintf(r->range, sizeof r->range, "%s", value);
}

static int read_head(Wire *w, Request *r) {
    char *line;
    do {
        if (!(line = wire_line(w))) return -1;
    } while (!*line);
    memset(r, 0, sizeof *r);
    if (sscanf(line, "%15s %4095s", r->method, r->path) != 2) return -1;
    while ((line = wire_line(w)) && *line) note_header(r, line);
    if (!line) return -1;
    r->query = strchr(r->path, '?');
    if (r->query) *r->query++ = 0;
    else r->query = r->path + strlen(r->path);
    char *slash = strchr(r->path + 1, '/');
    r->key = slash ? slash + 1 : r->path + strlen(r->path);
    decode(r->path);
    return 0;
}

// --- reading a body: into memory, or nowhere

static int take(Wire *w, Text *kept, uint64_t size) {
    static __thread char *junk;
    if (kept) {
        kept->data = realloc(kept->data, kept->size + size + 1);
        if (wire_exactly(w, kept->data + kept->size, size)) return -1;
        kept->size += size;
        return 0;
    }
    if (!junk) junk = malloc(JUNK);
    while (size > 0) {
        size_t most = size < JUNK ? size : JUNK;
        // The kernel can drop what no TLS has to be taken off first.
        ssize_t n = w->tls || w->start < w->end ? wire_some(w, junk, most)
                                                : recv(w->fd, junk, most, MSG_TRUNC);
        if (n <= 0) return -1;
        size -= (uint64_t)n;
    }
    return 0;
}

static int take_chunks(Wire *w, Text *kept, uint64_t *size) {
    for (;;) {
        char *line = wire_line(w);
        if (!line) return -1;
        uint64_t n = strtoull(line, NULL, 16);
        *size += n;
        if (n == 0) break;
        if (take(w, kept, n) || !wire_line(w)) return -1;
    }
    for (char *line; (line = wire_line(w)); )
        if (!*line) return 0;
    return -1;
}

// Takes the framing of `aws-chunked` off: a length in hex, the bytes, and so on up to a 0.
static void unframe(Text *text) {
    char *from = text->data, *to = text->data, *end = text->data + text->size;
    while (from < end) {
        size_t n = strtoull(from, NULL, 16);
        char *line = memchr(from, '\n', (size_t)(end - from));
        if (n == 0 || !line || line + 1 + n > end) break;
        memmove(to, line + 1, n);
        to += n, from = line + 1 + n + 2;
    }
    text->size = (size_t)(to - text->data);
}

static int is_kept(const Request *r) {
    const char *dot = strrchr(r->key, '.');
    int audio = (dot && !strcmp(dot, ".wav")) || has(r, "partNumber");
    return !audio || (r->aws_chunked ? r->decoded_length : r->length) <= SMALL;
}

// The size of the body, or -1; its bytes too where they are kept.
static int64_t read_body(Wire *w, const Request *r, Text *kept) {
    Text *to = is_kept(r) ? kept : NULL;
    uint64_t size = r->chunked ? 0 : r->length;
    if (r->chunked ? take_chunks(w, to, &size) : take(w, to, size)) return -1;
    if (r->aws_chunked && to) unframe(to);
    if (to) to->data = realloc(to->data, to->size + 1), to->data[to->size] = 0;
    return (int64_t)(r->aws_chunked ? r->decoded_length : size);
}

static int sum_is_wrong(const Request *r, const Text *kept) {
    unsigned char digest[32], told[64];
    if (!*r->sha256 || !kept->data) return 0;
    SHA256((unsigned char *)kept->data, kept->size, digest);
    EVP_EncodeBlock(told, digest, sizeof digest);
    return strcmp(r->sha256, (char *)told) != 0;
}

// --- answers

static int answer(Wire *w, const Request *r, const char *status, const char *headers,
                  const char *body, uint64_t size) {
    char head[2048], date[64];
    time_t now = time(NULL);
    struct tm parts;
    strftime(date, sizeof date, "%a, %d %b %Y %H:%M:%S GMT", gmtime_r(&now, &parts));
    int n = snprintf(head, sizeof head,
                     "HTTP/1.1 %s\r\nDate: %s\r\nx-amz-request-id: 0123456789ABCDEF\r\n"
                     "Content-Length: %llu\r\n%s\r\n",
                     status, date, (unsigned long long)size, headers);
    int with_body = body && size > 0 && strcmp(r->method, "HEAD");
    if (with_body && (size_t)n + size <= sizeof head) { // one packet for what is small
        memcpy(head + n, body, size);
        return wire_write(w, head, (size_t)n + size);
    }
    if (wire_write(w, head, (size_t)n)) return -1;
    return with_body ? wire_write(w, body, size) : 0;
}

static int answer_xml(Wire *w, const Request *r, const char *status, Text *text) {
    int done = answer(w, r, status, "Content-Type: application/xml\r\n", text->data, text->size);
    free(text->data);
    return done;
}

static int refuse(Wire *w, const Request *r, const char *status, const char *code) {
    Text text = {0};
    say(&text, "<?xml version=\"1.0\"?><Error><Code>%s</Code></Error>", code);
    return answer_xml(w, r, status, &text);
}

// --- objects

static int commit(Wire *w, const Request *r, Object *object, const char *headers) {
    char told[160];
    object->key = strdup(r->key);
    snprintf(told, sizeof told, "ETag: \"%s\"\r\n%s", object->etag, headers);
    if (!object_put(object, r->create_once))
        return refuse(w, r, "412 Precondition Failed", "PreconditionFailed");
    puts_taken++;
    return answer(w, r, "200 OK", told, NULL, 0);
}

static int put_object(Wire *w, const Request *r, Text *kept, uint64_t size) {
    Object *object = calloc(1, sizeof *object);
    object->size = size, object->data = kept->data, kept->data = NULL;
    snprintf(object->sha256, sizeof object->sha256, "%.47s", r->sha256);
    snprintf(object->type, sizeof object->type, "%s", r->type);
    snprintf(object->etag, sizeof object->etag, "%032llx", (unsigned long long)new_number());
    char headers[96] = "";
    if (*object->sha256)
        snprintf(headers, sizeof headers, "x-amz-checksum-sha256: %s\r\n", object->sha256);
    return commit(w, r, object, headers);
}

static int put_part(Wire *w, const Request *r, uint64_t size) {
    char id[32], number[16], headers[64];
    parameter(r, "uploadId", id, sizeof id);
    parameter(r, "partNumber", number, sizeof number);
    if (!upload_part(strtoull(id, NULL, 10), atol(number), size))
        return refuse(w, r, "404 Not Found", "NoSuchUpload");
    snprintf(headers, sizeof headers, "ETag: \"%032d\"\r\n", atoi(number));
    return answer(w, r, "200 OK", headers, NULL, 0);
}

static int begin_upload(Wire *w, const Request *r) {
    Text text = {0};
    say(&text, "<InitiateMultipartUploadResult><Bucket>bench</Bucket><Key>%s</Key>"
        "<UploadId>%llu</UploadId></InitiateMultipartUploadResult>",
        r->key, (unsigned long long)upload_begin(r->key, r->type));
    return answer_xml(w, r, "200 OK", &text);
}

static int complete_upload(Wire *w, const Request *r) {
    char id[32];
    parameter(r, "uploadId", id, sizeof id);
    if (r->create_once && object_get(r->key))
        return refuse(w, r, "412 Precondition Failed", "PreconditionFailed");
    Upload *upload = upload_end(strtoull(id, NULL, 10));
    if (!upload) return refuse(w, r, "404 Not Found", "NoSuchUpload");
    Object *object = calloc(1, sizeof *object);
    object->key = strdup(r->key);
    for (int i = 1; i <= MAX_PARTS; i++) object->size += upload->sizes[i];
    strcpy(object->type, upload->type);
    snprintf(object->etag, sizeof object->etag, "%032llx-1", (unsigned long long)new_number());
    free(upload->key), free(upload);
    object_put(object, 0);
    puts_taken++;
    Text text = {0};
    say(&text, "<CompleteMultipartUploadResult><Bucket>bench</Bucket><Key>%s</Key>"
        "<ETag>\"%s\"</ETag></CompleteMultipartUploadResult>", r->key, object->etag);
    return answer_xml(w, r, "200 OK", &text);
}

// `bytes=A-B`, `bytes=A-` or `bytes=-N`, as offset and size; false where it reads nothing.
static int range_of(const char *range, uint64_t whole, uint64_t *at, uint64_t *size) {
    const char *from = strchr(range, '=') + 1, *dash = strchr(from, '-');
    uint64_t first = strtoull(from, NULL, 10), last = dash ? strtoull(dash + 1, NULL, 10) : 0;
    if (dash == from) first = last < whole ? whole - last : 0, last = whole - 1;
    if (!last || last >= whole) last = whole - 1;
    if (!whole || first >= whole) return 0;
    *at = first, *size = last - first + 1;
    return 1;
}

static int send_zeros(Wire *w, uint64_t size) {
    static const char zeros[SMALL];
    for (; size > 0; size -= size < SMALL ? size : SMALL)
        if (wire_write(w, zeros, size < SMALL ? size : SMALL)) return -1;
    return 0;
}

// What was thrown away reads back as zeros: a client that reads what it wrote has the same work.
static int get_object(Wire *w, const Request *r) {
    Object *object = object_get(r->key);
    if (!object) return refuse(w, r, "404 Not Found", "NoSuchKey");
    char headers[512], sum[96] = "", range[96] = "";
    uint64_t at = 0, size = object->size;
    if (strchr(r->range, '=')) {
        if (!range_of(r->range, object->size, &at, &size))
            return refuse(w, r, "416 Range Not Satisfiable", "InvalidRange");
        snprintf(range, sizeof range, "Content-Range: bytes %llu-%llu/%llu\r\n",
                 (unsigned long long)at, (unsigned long long)(at + size - 1),
                 (unsigned long long)object->size);
    }
    if (*object->sha256) snprintf(sum, sizeof sum, "x-amz-checksum-sha256: %s\r\n", object->sha256);
    snprintf(headers, sizeof headers,
             "ETag: \"%s\"\r\nContent-Type: %s\r\nLast-Modified: Mon, 15 Jan 2024 00:00:00 GMT\r\n"
             "%s%s", object->etag, *object->type ? object->type : "binary/octet-stream", sum, range);
    const char *status = *range ? "206 Partial Content" : "200 OK";
    if (object->data) return answer(w, r, status, headers, object->data + at, size);
    if (answer(w, r, status, headers, NULL, size)) return -1;
    return strcmp(r->method, "HEAD") ? send_zeros(w, size) : 0;
}

// --- the bucket

static void say_object(Text *text, const Object *object, int versions) {
    say(text, "<%s><Key>%s</Key>%s<LastModified>2024-01-15T00:00:00Z</LastModified>"
        "<ETag>&quot;%s&quot;</ETag><Size>%llu</Size><StorageClass>STANDARD</StorageClass></%s>",
        versions ? "Version" : "Contents", object->key,
        versions ? "<VersionId>null</VersionId><IsLatest>true</IsLatest>" : "",
        object->etag, (unsigned long long)object->size, versions ? "Version" : "Contents");
}

// Knows no delimiter: nobody here asks for one where folders lie below the prefix.
static int list(Wire *w, const Request *r) {
    static const char *const places[] = {"continuation-token", "start-after", "marker",
                                         "key-marker"};
    char prefix[1024], after[1024] = "", text_of_most[16];
    parameter(r, "prefix", prefix, sizeof prefix);
    for (int i = 0; i < 4 && !*after; i++) parameter(r, places[i], after, sizeof after);
    parameter(r, "max-keys", text_of_most, sizeof text_of_most);
    size_t count, most = *text_of_most ? (size_t)atol(text_of_most) : 1000;
    int versions = has(r, "versions");
    const char *root = versions ? "ListVersionsResult" : "ListBucketResult";
    Object **found = objects_below(prefix, after, &count);
    int cut = count > most;
    Text text = {0};
    say(&text, "<%s><Name>bench</Name><Prefix>%s</Prefix><IsTruncated>%s</IsTruncated>", root, prefix,
        cut ? "true" : "false");
    for (size_t i = 0; i < count && i < most; i++) say_object(&text, found[i], versions);
    const char *last = cut && most ? found[most - 1]->key : "";
    if (cut)
        say(&text, "<NextContinuationToken>%s</NextContinuationToken><NextMarker>%s</NextMarker>"
            "<NextKeyMarker>%s</NextKeyMarker>", last, last, last);
    say(&text, "</%s>", root);
    free(found);
    return answer_xml(w, r, "200 OK", &text);
}

static int answer_bucket(Wire *w, const Request *r) {
    Text text = {0};
    if (!strcmp(r->path, "/_stats")) {
        say(&text, "{\"bytes\":%llu,\"objects\":%llu,\"requests\":%llu,\"connections\":%llu}",
            bytes_taken, puts_taken, requests_seen, connections_seen);
        return answer_xml(w, r, "200 OK", &text);
    }
    if (has(r, "object-lock"))
        return refuse(w, r, "404 Not Found", "ObjectLockConfigurationNotFoundError");
    if (has(r, "versioning")) say(&text, "<VersioningConfiguration/>");
    else if (has(r, "location")) say(&text, "<LocationConstraint/>");
    else if (has(r, "uploads"))
        say(&text, "<ListMultipartUploadsResult><Bucket>bench</Bucket>"
            "<IsTruncated>false</IsTruncated></ListMultipartUploadsResult>");
    else if (strcmp(r->method, "GET")) return answer(w, r, "200 OK", "", NULL, 0);
    else return list(w, r);
    return answer_xml(w, r, "200 OK", &text);
}

static int answer_request(Wire *w, const Request *r, Text *kept, uint64_t size) {
    const char *method = r->method;
    if (!*r->key) return answer_bucket(w, r);
    if (has(r, "retention") || has(r, "legal-hold") || has(r, "acl"))
        return refuse(w, r, "501 Not Implemented", "NotImplemented");
    if (!strcmp(method, "GET") || !strcmp(method, "HEAD")) return get_object(w, r);
    bytes_taken += size;
    if (sum_is_wrong(r, kept)) return refuse(w, r, "400 Bad Request", "BadDigest");
    if (!strcmp(method, "PUT"))
        return has(r, "uploadId") ? put_part(w, r, size) : put_object(w, r, kept, size);
    if (!strcmp(method, "POST")) return has(r, "uploads") ? begin_upload(w, r) : complete_upload(w, r);
    if (has(r, "uploadId")) {
        char id[32];
        parameter(r, "uploadId", id, sizeof id);
        free(upload_end(strtoull(id, NULL, 10)));
    } else object_delete(r->key);
    return answer(w, r, "204 No Content", "", NULL, 0);
}

// --- connections

static void serve(Wire *w) {
    Request r;
    while (!read_head(w, &r)) {
        Text kept = {0};
        if (r.wants_continue && wire_write(w, "HTTP/1.1 100 Continue\r\n\r\n", 25)) return;
        int64_t size = read_body(w, &r, &kept);
        requests_seen++;
        int broken = size < 0 || answer_request(w, &r, &kept, (uint64_t)size);
        free(kept.data);
        if (broken || r.closes) return;
    }
}

static void *connection(void *argument) {
    Wire *w = calloc(1, sizeof *w);
    w->fd = (int)(intptr_t)argument;
    connections_seen++;
    wire_tune(w->fd);
    if (tls_context) {
        w->tls = SSL_new(tls_context);
        SSL_set_fd(w->tls, w->fd);
    }
    if (!w->tls || SSL_accept(w->tls) == 1) serve(w);
    if (w->tls) SSL_free(w->tls);
    close(w->fd);
    free(w);
    return NULL;
}

static void use_tls(const char *cert, const char *key) {
    tls_context = SSL_CTX_new(TLS_server_method());
    SSL_CTX_set_ciphersuites(tls_context, CIPHER);
    SSL_CTX_set_read_ahead(tls_context, 1); // fewer calls of the kernel: the CPU is the clients'
    if (SSL_CTX_use_certificate_chain_file(tls_context, cert) != 1 ||
        SSL_CTX_use_PrivateKey_file(tls_context, key, SSL_FILETYPE_PEM) != 1) {
        fprintf(stderr, "sink: cannot read %s or %s\n", cert, key);
        exit(1);
    }
}

int main(int count, char **arguments) {
    if (count != 2 && count != 4) return fprintf(stderr, "usage: sink PORT [CERT KEY]\n"), 2;
    signal(SIGPIPE, SIG_IGN);
    if (count == 4) use_tls(arguments[2], arguments[3]);
    struct sockaddr_in address = loopback(atoi(arguments[1]));
    int listener = socket(AF_INET, SOCK_STREAM, 0), one = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (void *)&address, sizeof address) || listen(listener, 1024))
        return perror("sink"), 1;
    pthread_attr_t detached;
    pthread_attr_init(&detached);
    pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&detached, 256 << 10);
    for (;;) {
        int fd = accept(listener, NULL, NULL);
        pthread_t thread;
        if (fd >= 0 && pthread_create(&thread, &detached, connection, (void *)(intptr_t)fd)) close(fd);
    }
}
