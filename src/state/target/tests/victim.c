/* A program with one of everything, which looks after itself: says "ready", works, and on SIGTERM says "whole" or
   what is wrong. Argument: a directory with a file "data" of three pages of 'd'. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <immintrin.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static atomic_int bad;
static void check(int good, const char *what, ...) {
    if (good || atomic_fetch_add(&bad, 1) > 9) return;
    char text[256];
    va_list list;
    va_start(list, what);
    vsnprintf(text, sizeof text, what, list);
    dprintf(1, "BAD %s (errno %d, pid %d, tid %ld)\n", text, errno, getpid(), syscall(SYS_gettid));
}
#define THREADS 4
static atomic_long turns[THREADS], alarms, ticks, waits, sleeps, wakes;
static __thread long mine[64];
static char *alt;

static void *worker(void *arg) {
    long n = (long)arg, tid = syscall(SYS_gettid);
    for (int i = 0; i < 64; i++) mine[i] = n * 1000 + i;
    char *stack = malloc(32768);
    stack_t ss = {.ss_sp = stack, .ss_size = 32768}, now;
    sigaltstack(&ss, 0);
    double sum = 0;
    for (long i = 0;; i++) {
        /* Vector registers held over a stretch in which a stop is likely. */
        __m128i a = _mm_set_epi64x(i, n), b;
        __m256d wide;
        double w = i * 0.5, out[4];
        __asm__ volatile("vbroadcastsd %1, %0" : "=x"(wide) : "m"(w));
        for (volatile int k = 0; k < 1000; k++)
            __asm__ volatile("" : "+x"(wide), "+x"(a));
        _mm256_storeu_pd(out, wide);
        check(out[0] == w && out[3] == w, "vector register %g %g", out[3], w);
        b = _mm_set_epi64x(i, n);
        check(_mm_movemask_epi8(_mm_cmpeq_epi8(a, b)) == 0xffff, "sse register");
        sum += 0.5;
        check(sum == (i + 1) * 0.5, "sum");
        check(mine[i % 64] == n * 1000 + i % 64, "TLS");
        check(syscall(SYS_gettid) == tid, "tid");
        char *p = malloc(1 + i % 5000);
        memset(p, n, 1 + i % 5000);
        check(p[i % 5000] == n, "malloc");
        free(p);
        sigaltstack(0, &now);
        check(now.ss_sp == stack && now.ss_size == 32768, "alternate stack of a thread");
        atomic_fetch_add(&turns[n], 1);
    }
}
static void *sleeper(void *arg) {
    for (;;) {
        struct timespec t = {0, 3000000}, before, after;
        clock_gettime(CLOCK_MONOTONIC, &before);
        check(nanosleep(&t, 0) == 0, "nanosleep");
        clock_gettime(CLOCK_MONOTONIC, &after);
        long us = (after.tv_sec - before.tv_sec) * 1000000 + (after.tv_nsec - before.tv_nsec) / 1000;
        check(us >= 3000, "slept only %ld us", us);
        atomic_fetch_add(&sleeps, 1);
    }
}
static int events, doorbell[2];
static void *waiter(void *arg) {
    int ep = epoll_create1(0);
    struct epoll_event e = {.events = EPOLLIN, .data.u64 = 77};
    epoll_ctl(ep, EPOLL_CTL_ADD, events, &e);
    e.data.u64 = 78;
    epoll_ctl(ep, EPOLL_CTL_ADD, doorbell[0], &e);
    for (;;) {
        struct epoll_event got;
        int n = epoll_wait(ep, &got, 1, -1);
        check(n == 1, "epoll_wait %d", n);
        uint64_t value;
        char c;
        if (got.data.u64 == 77) check(read(events, &value, 8) == 8, "eventfd");
        else check(got.data.u64 == 78 && read(doorbell[0], &c, 1) == 1, "doorbell");
        atomic_fetch_add(&waits, 1);
    }
}
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t cond = PTHREAD_COND_INITIALIZER;
static void *dozer(void *arg) {
    pthread_mutex_lock(&lock);
    for (;;) {
        check(pthread_cond_wait(&cond, &lock) == 0, "cond");
        atomic_fetch_add(&wakes, 1);
    }
}
static void on_alarm(int n) {
    char here;
    check(&here >= alt && &here < alt + 65536, "handler not on the alternate stack");
    atomic_fetch_add(&alarms, 1);
}
static void on_tick(int n, siginfo_t *info, void *ctx) {
    check(info->si_value.sival_int == 4242, "timer value %d", info->si_value.sival_int);
    atomic_fetch_add(&ticks, 1);
}
struct shared { atomic_long ping, pong, child; char text[64]; };

static void child(struct shared *s, int sock, int go) {
    /* In its own group; plays ping-pong over a socket pair and a shared page. */
    setpgid(0, 0);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    char buf[64];
    for (;;) {
        ssize_t n = read(sock, buf, 8);
        check(n == 8, "child read %zd", n);
        atomic_fetch_add(&s->pong, 1);
        check(!strcmp(s->text, "shared by two"), "shared text");
        if (write(sock, buf, 8) != 8) _exit(1);
        s->child = getpid();
    }
}
static void grow(long depth) {
    volatile char page[4096];
    page[0] = depth;
    if (depth) grow(depth - 1);
    check(page[0] == (char)depth, "stack");
}
int main(int argc, char **argv) {
    char path[256];
    snprintf(path, sizeof path, "%s/data", argv[1]);
    alt = mmap(0, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    stack_t ss = {.ss_sp = alt, .ss_size = 65536};
    sigaltstack(&ss, 0);
    chdir(argv[1]);
    umask(0123);
    int file = open(path, O_RDWR);
    char *cow = mmap(0, 3 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0);
    cow[4096] = 'c';
    char *truth = mmap(0, 3 * 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    truth[8192] = 't';
    lseek(file, 5, SEEK_SET);
    int memfd = memfd_create("content", 0);
    ftruncate(memfd, 8192);
    char *mem = mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
    strcpy(mem + 4096, "in a memfd");
    char *readonly = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    strcpy(readonly, "read only");
    mprotect(readonly, 4096, PROT_READ);
    char *hidden = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    strcpy(hidden, "hidden");
    mprotect(hidden, 4096, PROT_NONE);
    struct shared *s = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    strcpy(s->text, "shared by two");
    int pair[2], queue[2], gone[2];
    socketpair(AF_UNIX, SOCK_STREAM, 0, pair);
    socketpair(AF_UNIX, SOCK_DGRAM, 0, queue);
    write(queue[0], "one", 3);
    write(queue[0], "three", 5);
    pipe2(gone, O_CLOEXEC);
    write(gone[1], "left in a pipe", 14);
    dup2(gone[1], 200);
    pid_t kid = fork();
    if (!kid) child(s, pair[1], 0);
    pid_t zombie = fork();
    if (!zombie) _exit(7);
    siginfo_t ended;
    waitid(P_PID, zombie, &ended, WEXITED | WNOWAIT);

    struct sigaction act = {.sa_handler = on_alarm, .sa_flags = SA_ONSTACK | SA_RESTART};
    sigaction(SIGALRM, &act, 0);
    act.sa_sigaction = on_tick;
    act.sa_flags = SA_SIGINFO | SA_RESTART;
    sigaction(SIGRTMIN + 3, &act, 0);
    sigset_t blocked, old;
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGTERM);
    sigaddset(&blocked, SIGUSR2);
    sigaddset(&blocked, SIGRTMIN + 1);
    sigprocmask(SIG_BLOCK, &blocked, 0);
    sigqueue(getpid(), SIGRTMIN + 1, (union sigval){.sival_int = 11});
    sigqueue(getpid(), SIGRTMIN + 1, (union sigval){.sival_int = 22});
    raise(SIGUSR2);
    timer_t first, second, third;
    struct sigevent ev = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN + 3, .sigev_value.sival_int = 4242};
    timer_create(CLOCK_MONOTONIC, &ev, &first);
    timer_create(CLOCK_MONOTONIC, &ev, &second);
    timer_create(CLOCK_BOOTTIME, &ev, &third);
    timer_delete(second);
    events = eventfd(0, 0);
    pipe(doorbell);
    /* The threads take none of the alarms. */
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    pthread_t t;
    for (long n = 0; n < THREADS; n++) pthread_create(&t, 0, worker, (void *)n);
    /* Each has its arena by then: the address space no longer changes. */
    for (long n = 0; n < THREADS; n++)
        while (!atomic_load(&turns[n])) sched_yield();
    pthread_create(&t, 0, sleeper, 0);
    pthread_create(&t, 0, waiter, 0);
    pthread_create(&t, 0, dozer, 0);
    pthread_setname_np(t, "dozer");
    pthread_sigmask(SIG_SETMASK, &old, 0);
    struct itimerval every = {{0, 5000}, {0, 5000}};
    setitimer(ITIMER_REAL, &every, 0);
    struct itimerspec tick = {{0, 7000000}, {0, 7000000}};
    timer_settime(third, 0, &tick, 0);
    setpriority(PRIO_PROCESS, 0, 3);
    struct rlimit limit = {300, 400};
    setrlimit(RLIMIT_NOFILE, &limit);
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    char *heap = sbrk(100000);
    memset(heap, 'h', 100000);
    grow(100);
    struct timespec last, now;
    clock_gettime(CLOCK_MONOTONIC, &last);
    int ready = 0;
    long round = 0;
    for (;;) {
        /* The main loop: rings, plays, waits a little. */
        uint64_t one = 1;
        write(events, &one, 8);
        write(doorbell[1], "x", 1);
        pthread_mutex_lock(&lock);
        pthread_cond_signal(&cond);
        pthread_mutex_unlock(&lock);
        uint64_t value = round, back = 0;
        check(write(pair[0], &value, 8) == 8, "ping");
        check(read(pair[0], &back, 8) == 8 && back == value, "pong");
        clock_gettime(CLOCK_MONOTONIC, &now);
        check(now.tv_sec > last.tv_sec || (now.tv_sec == last.tv_sec && now.tv_nsec >= last.tv_nsec), "clock");
        last = now;
        round++;
        if (!ready && alarms > 3 && ticks > 3 && waits > 9 && sleeps > 3 && wakes > 3 && turns[3] > 100) {
            dprintf(1, "ready\n");
            ready = 1;
        }
        sigset_t pending;
        sigpending(&pending);
        if (sigismember(&pending, SIGTERM)) break;
    }
    long before[] = {turns[0], turns[1], turns[2], turns[3], alarms, ticks, waits, sleeps, wakes};
    struct timespec start;
    clock_gettime(CLOCK_MONOTONIC, &start);
    for (;;) {
        long after[] = {turns[0], turns[1], turns[2], turns[3], alarms, ticks, waits, sleeps, wakes};
        int moved = 0;
        for (int i = 0; i < 9; i++) moved += after[i] > before[i];
        if (moved == 9) break;
        clock_gettime(CLOCK_MONOTONIC, &now);
        if (now.tv_sec > start.tv_sec + 10) {
            for (int i = 0; i < 9; i++) check(after[i] > before[i], "activity %d stands still", i);
            break;
        }
        uint64_t one = 1;
        write(events, &one, 8);
        pthread_mutex_lock(&lock);
        pthread_cond_signal(&cond);
        pthread_mutex_unlock(&lock);
    }
    char buf[64] = {0}, where[256];
    check(cow[4096] == 'c' && cow[0] == 'd' && cow[8192] == 't', "private file page");
    check(truth[8192] == 't' && truth[4096] == 'd', "shared file page");
    check(lseek(file, 0, SEEK_CUR) == 5, "file position");
    check(!strcmp(mem + 4096, "in a memfd"), "memfd");
    check(pread(memfd, buf, 10, 4096) == 10 && !memcmp(buf, "in a memfd", 10), "memfd through its descriptor");
    check(!strcmp(readonly, "read only"), "read-only page");
    mprotect(hidden, 4096, PROT_READ);
    check(!strcmp(hidden, "hidden"), "PROT_NONE page");
    check(s->child == kid && s->pong >= round, "shared memory with the child");
    check(read(queue[1], buf, 64) == 3 && read(queue[1], buf, 64) == 5, "queued datagrams");
    check(read(gone[0], buf, 64) == 14 && !memcmp(buf, "left in a pipe", 14), "pipe content");
    check(write(200, "y", 1) == 1 && read(gone[0], buf, 1) == 1, "descriptor 200");
    check((fcntl(gone[0], F_GETFD) & FD_CLOEXEC) && !(fcntl(200, F_GETFD) & FD_CLOEXEC), "close-on-exec");
    int status;
    check(waitpid(zombie, &status, WNOHANG) == zombie && WEXITSTATUS(status) == 7, "zombie");
    check(getpgid(kid) == kid && getsid(0) == getpid(), "groups");
    siginfo_t info;
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN + 1);
    for (int want = 11; want <= 22; want += 11)
        check(sigwaitinfo(&set, &info) == SIGRTMIN + 1 && info.si_value.sival_int == want, "queued signal %d", want);
    sigemptyset(&set);
    sigaddset(&set, SIGUSR2);
    check(sigwaitinfo(&set, &info) == SIGUSR2 && info.si_pid == getpid(), "pending signal");
    struct itimerspec left;
    errno = 0;
    check(timer_gettime(first, &left) == 0 && left.it_value.tv_sec == 0, "disarmed timer");
    check(syscall(SYS_timer_gettime, 1, &left) == -1, "a timer that was deleted");
    check(timer_gettime(third, &left) == 0 && left.it_interval.tv_nsec == 7000000, "timer interval");
    struct rlimit now_limit;
    getrlimit(RLIMIT_NOFILE, &now_limit);
    check(now_limit.rlim_cur == 300 && now_limit.rlim_max == 400, "limits");
    check(getpriority(PRIO_PROCESS, 0) == 3, "nice value");
    check(umask(0) == 0123 && !strcmp(getcwd(where, 256), argv[1]), "umask, directory");
    int reaper = 0;
    prctl(PR_GET_CHILD_SUBREAPER, &reaper);
    check(reaper == 1, "subreaper");
    for (int i = 0; i < 100000; i++) check(heap[i] == 'h', "heap");
    heap = sbrk(50000);
    check(heap != (char *)-1, "heap grows");
    memset(heap, 1, 50000);
    grow(500);
    ssize_t n = readlink("/proc/self/exe", where, 255);
    where[n] = 0;
    check(!strcmp(strrchr(where, '/'), "/victim"), "exe %s", where);
    FILE *f = fopen("/proc/self/cmdline", "r");
    fgets(where, 256, f);
    check(!strcmp(where, argv[0]), "command line %s", where);
    struct timespec raw;
    check(clock_gettime(CLOCK_REALTIME, &raw) == 0 && raw.tv_sec > 1700000000, "vdso");
    kill(kid, SIGKILL);
    check(waitpid(kid, &status, 0) == kid, "child ends");
    if (!bad) dprintf(1, "whole\n");
    return bad;
}
