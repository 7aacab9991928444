/* Processes that come and go. Usage: family FILE THREADS MODE.
 * storm: N processes that fork children, which fork and exit, without pause; rounds of each in its line.
 * vfork: rounds of vfork, a child that takes its time, exec of /bin/true; line 0.  stuck: a vfork child that never execs.
 * handler: epoll_wait without end, a SIGUSR1 handler sets the flag that ends it (the EINTR idiom); line 0: 1 waiting, 2 ended.
 * many: THREADS threads in read(2) for ever. zombie: one unreaped child. leader: the first thread ends, the second works. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

struct line { uint64_t rounds, errors, code, detail; };
static struct line *lines;
static volatile sig_atomic_t done;
static int ends[2];

static void fail(struct line *l, uint64_t code) { if (l->errors++ == 0) { l->code = code; l->detail = errno; } }
static void on(int sig) { (void)sig; done = 1; }
static void *sleeper(void *arg) { char c; (void)arg; for (;;) if (read(ends[0], &c, 1) < 0) exit(1); return NULL; }
static void *counter(void *arg) {
    struct timespec t = {0, 1000000};
    for (;;) { nanosleep(&t, NULL); __atomic_add_fetch(&((struct line *)arg)->rounds, 1, __ATOMIC_RELEASE); }
    return NULL;
}

static void storm(struct line *l) {
    for (;;) {
        pid_t a = fork();
        if (a == 0) {
            pid_t b = fork();
            if (b == 0) _exit(7);
            int s;
            if (b < 0 || waitpid(b, &s, 0) != b || WEXITSTATUS(s) != 7) _exit(1);
            _exit(0);
        }
        int s;
        if (a < 0) fail(l, 1);
        else if (waitpid(a, &s, 0) != a || !WIFEXITED(s) || WEXITSTATUS(s) != 0) fail(l, 2);
        __atomic_add_fetch(&l->rounds, 1, __ATOMIC_RELEASE);
    }
}

static void vforks(struct line *l) {
    for (;;) {
        pid_t a = vfork();
        if (a == 0) {
            for (volatile int i = 0; i < 20000000; i++) {}
            execl("/bin/true", "true", NULL);
            _exit(1);
        }
        int s;
        if (a < 0 || waitpid(a, &s, 0) != a || s != 0) fail(l, 3);
        __atomic_add_fetch(&l->rounds, 1, __ATOMIC_RELEASE);
    }
}

int main(int argc, char **argv) {
    int n = atoi(argv[2]), fd = open(argv[1], O_RDWR);
    lines = mmap(NULL, (n + 1) * sizeof *lines, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (argc < 4 || lines == MAP_FAILED || pipe(ends)) return 1;
    const char *mode = argv[3];
    if (!strcmp(mode, "storm")) {
        for (int i = 1; i < n; i++) if (fork() == 0) { prctl(PR_SET_PDEATHSIG, SIGKILL); storm(lines + i); }
        storm(lines);
    }
    if (!strcmp(mode, "vfork")) vforks(lines);
    if (!strcmp(mode, "stuck")) { if (vfork() == 0) { lines->rounds = 2; for (;;) pause(); } }
    if (!strcmp(mode, "handler")) {
        struct sigaction sa = {.sa_handler = on};
        sigaction(SIGUSR1, &sa, NULL);
        int ep = epoll_create1(0);
        struct epoll_event e;
        lines->rounds = 1;
        while (!done) if (epoll_wait(ep, &e, 1, -1) < 0 && !done) fail(lines, 4);
        __atomic_store_n(&lines->rounds, 2, __ATOMIC_RELEASE);
        for (;;) pause();
    }
    if (!strcmp(mode, "zombie")) { if (fork() == 0) _exit(3); lines->rounds = 2; for (;;) pause(); }
    pthread_t t;
    if (!strcmp(mode, "leader")) { pthread_create(&t, NULL, counter, lines); pthread_exit(NULL); }
    for (int i = 1; i < n; i++) {
        pthread_attr_t a;
        pthread_attr_init(&a);
        pthread_attr_setstacksize(&a, 65536);
        if (pthread_create(&t, &a, sleeper, NULL)) return 1;
    }
    lines->rounds = 2;
    sleeper(NULL);
}
