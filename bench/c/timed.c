// Runs a command and tells what it took, children and all: one line of JSON in FILE.
//
//   gcc -O2 -o timed timed.c
//   timed FILE COMMAND [ARGUMENT...]
//
// A program of its own because Linux hands the peak memory of the process that starts another one
// down to it: started from Python, everything would seem to take what Python takes.
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static double seconds(struct timeval t) { return (double)t.tv_sec + (double)t.tv_usec / 1e6; }

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

int main(int count, char **arguments) {
    if (count < 3) return fprintf(stderr, "usage: timed FILE COMMAND [ARGUMENT...]\n"), 2;
    double began = now();
    pid_t child = fork();
    if (child == 0) {
        execvp(arguments[2], arguments + 2);
        perror(arguments[2]);
        _exit(127);
    }
    int status = 0;
    struct rusage used; // of the child and of all that it waited for
    wait4(child, &status, 0, &used);
    double wall = now() - began;
    FILE *file = fopen(arguments[1], "w");
    if (!file) return perror(arguments[1]), 1;
    // ru_maxrss is that of the largest process, in KiB.
    fprintf(file, "{\"wall_s\":%.6f,\"user_s\":%.6f,\"system_s\":%.6f,\"peak_bytes\":%ld}\n", wall,
            seconds(used.ru_utime), seconds(used.ru_stime), used.ru_maxrss * 1024);
    fclose(file);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
