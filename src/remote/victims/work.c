/* Threads that notice any disturbance: registers, vector registers, red zone, results and errno of calls.
 * Usage: work FILE THREADS [MODE…]. Modes: mdwe (nothing writable becomes executable), seccomp (getppid kills), nommap (mmap is refused),
 * blocked (the three signals a batch may end with are blocked), handler (SIGUSR1 and SIGRTMIN counted in the line after the threads').
 * FILE holds one line of four u64 per thread: rounds, errors, first error's code, detail. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <immintrin.h>
#include <linux/filter.h>
#include <linux/futex.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

struct line { uint64_t rounds, errors, code, detail; };
static struct line *lines;

static void fail(struct line *l, uint64_t code, uint64_t detail) {
    if (l->errors++ == 0) { l->code = code; l->detail = detail; }
}

/* Every register the C compiler lets us have, and 100 bytes of red zone, hold a pattern through a spin; returns a mask of what changed. */
static uint64_t registers(void) {
    uint64_t bad = 0;
    asm volatile(
        "mov $0x1111111111111111, %%r8\n mov $0x2222222222222222, %%r9\n mov $0x3333333333333333, %%r10\n"
        "mov $0x4444444444444444, %%r11\n mov $0x5555555555555555, %%r12\n mov $0x6666666666666666, %%r13\n"
        "mov $0x7777777777777777, %%r14\n mov $0x0888888888888888, %%r15\n mov $0x1999999999999999, %%rsi\n"
        "mov $0x1aaaaaaaaaaaaaaa, %%rdi\n mov $0x1bbbbbbbbbbbbbbb, %%rdx\n"
        "mov %%r8, -8(%%rsp)\n mov %%r9, -64(%%rsp)\n mov %%r10, -128(%%rsp)\n"
        "movq %%r8, %%xmm0\n movq %%r9, %%xmm7\n movq %%r10, %%xmm15\n"
        "mov $100000, %%ecx\n 1: dec %%ecx\n jnz 1b\n"
        "xor %%eax, %%eax\n"
        "mov $0x1111111111111111, %%rcx\n cmp %%rcx, %%r8\n je 2f\n or $1, %%eax\n 2: cmp %%rcx, -8(%%rsp)\n je 2f\n or $2, %%eax\n"
        "2: movq %%xmm0, %%rbx\n cmp %%rcx, %%rbx\n je 2f\n or $4, %%eax\n"
        "2: mov $0x2222222222222222, %%rcx\n cmp %%rcx, %%r9\n je 2f\n or $8, %%eax\n 2: cmp %%rcx, -64(%%rsp)\n je 2f\n or $16, %%eax\n"
        "2: movq %%xmm7, %%rbx\n cmp %%rcx, %%rbx\n je 2f\n or $32, %%eax\n"
        "2: mov $0x3333333333333333, %%rcx\n cmp %%rcx, %%r10\n je 2f\n or $64, %%eax\n 2: cmp %%rcx, -128(%%rsp)\n je 2f\n or $128, %%eax\n"
        "2: movq %%xmm15, %%rbx\n cmp %%rcx, %%rbx\n je 2f\n or $256, %%eax\n"
        "2: mov $0x4444444444444444, %%rcx\n cmp %%rcx, %%r11\n je 2f\n or $512, %%eax\n"
        "2: mov $0x5555555555555555, %%rcx\n cmp %%rcx, %%r12\n je 2f\n or $1024, %%eax\n"
        "2: mov $0x6666666666666666, %%rcx\n cmp %%rcx, %%r13\n je 2f\n or $2048, %%eax\n"
        "2: mov $0x7777777777777777, %%rcx\n cmp %%rcx, %%r14\n je 2f\n or $4096, %%eax\n"
        "2: mov $0x0888888888888888, %%rcx\n cmp %%rcx, %%r15\n je 2f\n or $8192, %%eax\n"
        "2: mov $0x1999999999999999, %%rcx\n cmp %%rcx, %%rsi\n je 2f\n or $16384, %%eax\n"
        "2: mov $0x1aaaaaaaaaaaaaaa, %%rcx\n cmp %%rcx, %%rdi\n je 2f\n or $32768, %%eax\n"
        "2: mov $0x1bbbbbbbbbbbbbbb, %%rcx\n cmp %%rcx, %%rdx\n je 2f\n or $65536, %%eax\n 2:\n"
        : "=&a"(bad)
        :
        : "rbx", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "xmm0", "xmm7", "xmm15", "memory", "cc");
    return bad;
}

__attribute__((target("avx"))) static uint64_t wide(void) {
    __m256i a = _mm256_set_epi64x(1, 2, 3, 4);
    asm volatile("vmovdqu %0, %%ymm5\n mov $50000, %%ecx\n 1: dec %%ecx\n jnz 1b\n vmovdqu %%ymm5, %0\n" : "+m"(a) : : "ymm5", "ecx", "cc");
    uint64_t out[4];
    memcpy(out, &a, sizeof out);
    return out[0] != 4 || out[1] != 3 || out[2] != 2 || out[3] != 1;
}

static void calls(struct line *l, int *ends, int ep) {
    char in[64], out[64];
    memset(out, (int)l->rounds, sizeof out);
    if (write(ends[1], out, sizeof out) != sizeof out) fail(l, 1, errno);
    struct epoll_event ev;
    int n = epoll_wait(ep, &ev, 1, 1000);
    if (n != 1) fail(l, 2, n < 0 ? errno : 1000 + n);
    if (read(ends[0], in, sizeof in) != sizeof in || memcmp(in, out, sizeof in)) fail(l, 3, errno);
    n = epoll_wait(ep, &ev, 1, 1);
    if (n != 0) fail(l, 4, n < 0 ? errno : 1000 + n);
    struct timespec a, b, t = {0, 1000000};
    clock_gettime(CLOCK_MONOTONIC, &a);
    if (nanosleep(&t, NULL)) fail(l, 5, errno);
    clock_gettime(CLOCK_MONOTONIC, &b);
    if ((b.tv_sec - a.tv_sec) * 1000000000L + b.tv_nsec - a.tv_nsec < 1000000) fail(l, 6, 0);
    struct pollfd p = {ends[0], POLLIN, 0};
    n = poll(&p, 1, 1);
    if (n != 0) fail(l, 7, n < 0 ? errno : 1000 + n);
    uint32_t word = 1;
    struct timespec f = {0, 500000};
    if (syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 1, &f, NULL, 0) != -1 || errno != ETIMEDOUT) fail(l, 8, errno);
}

static void *body(void *arg) {
    struct line *l = arg;
    int ends[2], ep = epoll_create1(0), avx = __builtin_cpu_supports("avx");
    struct epoll_event ev = {.events = EPOLLIN};
    if (pipe(ends) || epoll_ctl(ep, EPOLL_CTL_ADD, ends[0], &ev)) fail(l, 9, errno);
    volatile double d = 1.0;
    for (;;) {
        uint64_t bad = registers();
        if (bad) fail(l, 10, bad);
        if (avx && wide()) fail(l, 11, 0);
        d = 1.0;
        for (int i = 1; i < 2000; i++) d = d * (i + 1.0) / i;
        if (d < 1999.999999 || d > 2000.000001) fail(l, 12, (uint64_t)d);
        calls(l, ends, ep);
        __atomic_add_fetch(&l->rounds, 1, __ATOMIC_RELEASE);
    }
    return NULL;
}

static struct line *counts;
static void count(int sig) { __atomic_add_fetch(sig == SIGUSR1 ? &counts->rounds : &counts->errors, 1, __ATOMIC_RELEASE); }

static void filter(int nr, uint32_t action) {
    struct sock_filter code[] = {
        {BPF_LD | BPF_W | BPF_ABS, 0, 0, offsetof(struct seccomp_data, nr)},
        {BPF_JMP | BPF_JEQ | BPF_K, 0, 1, (uint32_t)nr},
        {BPF_RET | BPF_K, 0, 0, action},
        {BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW},
    };
    struct sock_fprog prog = {4, code};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog)) exit(1);
}

static void mode(const char *name) {
    if (!strcmp(name, "mdwe") && prctl(65 /* PR_SET_MDWE */, 1, 0, 0, 0)) exit(1);
    if (!strcmp(name, "seccomp")) filter(SYS_getppid, SECCOMP_RET_KILL_PROCESS);
    if (!strcmp(name, "nommap")) filter(SYS_mmap, SECCOMP_RET_ERRNO | EPERM);
    if (!strcmp(name, "blocked")) {
        sigset_t m;
        sigemptyset(&m);
        sigaddset(&m, SIGURG);
        sigaddset(&m, SIGWINCH);
        sigaddset(&m, SIGCHLD);
        sigprocmask(SIG_BLOCK, &m, NULL);
    }
    if (!strcmp(name, "handler")) {
        struct sigaction sa = {.sa_handler = count, .sa_flags = SA_RESTART};
        sigaction(SIGUSR1, &sa, NULL);
        sigaction(SIGRTMIN, &sa, NULL);
    }
}

int main(int argc, char **argv) {
    int threads = argc > 2 ? atoi(argv[2]) : 5;
    int fd = open(argv[1], O_RDWR);
    lines = mmap(NULL, (threads + 1) * sizeof *lines, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (fd < 0 || lines == MAP_FAILED) return 1;
    counts = lines + threads;
    if (argc > 3 && !strcmp(argv[3], "nommap")) {
        mode(argv[3]);
        body(lines);
    }
    for (int i = 3; i < argc; i++) mode(argv[i]);
    for (int i = 1; i < threads; i++) {
        pthread_t t;
        if (pthread_create(&t, NULL, body, lines + i)) return 1;
    }
    body(lines);
    return 0;
}
