/* One thread in each kind of sleeping call. Any return before the wake-up is wrong, EINTR above all.
 * Prints "TID NAME" per thread, then "ready"; on a line on stdin wakes all in the proper way and prints "NAME RET ERRNO" for each. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/ipc.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static int event, ep, sems, sv[2], full[2], listener, ends[2], locked, mine;
static aio_context_t aio;
static uint32_t word = 1;
static pid_t child;
static pthread_t waiter;
static struct sockaddr_un name = {.sun_family = AF_UNIX};
static socklen_t name_len;

static long c_epoll_wait(void) { struct epoll_event e; return epoll_wait(ep, &e, 1, 1000000); }
static long c_epoll_pwait(void) { struct epoll_event e; sigset_t m; sigemptyset(&m); return epoll_pwait(ep, &e, 1, 1000000, &m); }
static long c_epoll_pwait2(void) { struct epoll_event e; struct timespec t = {1000, 0}; return syscall(SYS_epoll_pwait2, ep, &e, 1, &t, NULL, 8); }
static long c_semop(void) { struct sembuf b = {0, -1, 0}; return syscall(SYS_semop, sems, &b, 1); }
static long c_semtimedop(void) { struct sembuf b = {1, -1, 0}; struct timespec t = {1000, 0}; return semtimedop(sems, &b, 1, &t); }
static long c_sigtimedwait(void) {
    sigset_t m; sigemptyset(&m); sigaddset(&m, SIGUSR1);
    waiter = pthread_self();
    struct timespec t = {1000, 0};
    return sigtimedwait(&m, NULL, &t);
}
static long c_io_getevents(void) { struct io_event e; return syscall(SYS_io_getevents, aio, 1, 1, &e, NULL); }
static long c_recv(void) { char c; return recv(sv[0], &c, 1, 0); }
static long c_accept(void) { return accept(listener, NULL, NULL) >= 0 ? 0 : -1; }
static long c_send(void) { char c = 0; return send(full[0], &c, 1, 0); }
/* Those that restart by themselves. */
static long c_read(void) { char c; return read(ends[0], &c, 1); }
static long c_poll(void) { struct pollfd p = {event, POLLIN, 0}; return poll(&p, 1, 1000000); }
static long c_ppoll(void) { struct pollfd p = {event, POLLIN, 0}; sigset_t m; sigemptyset(&m); return ppoll(&p, 1, NULL, &m); }
static long c_select(void) { fd_set s; FD_ZERO(&s); FD_SET(event, &s); return syscall(SYS_pselect6, event + 1, &s, NULL, NULL, NULL, NULL); }
static long c_futex(void) { return syscall(SYS_futex, &word, FUTEX_WAIT, 1, NULL, NULL, 0); }
static long c_futex_timed(void) { struct timespec t = {1000, 0}; return syscall(SYS_futex, &word, FUTEX_WAIT, 1, &t, NULL, 0); }
static long c_flock(void) { return flock(mine, LOCK_EX); }
static long c_wait4(void) { return wait4(child, NULL, 0, NULL) == child ? 0 : -1; }
static long c_nanosleep(void) {
    struct timespec a, b, t = {1, 0};
    clock_gettime(CLOCK_MONOTONIC, &a);
    long r = syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, 0, &t, NULL);
    clock_gettime(CLOCK_MONOTONIC, &b);
    if (r == 0 && b.tv_sec * 1000000000L + b.tv_nsec < a.tv_sec * 1000000000L + a.tv_nsec + 1000000000L) { errno = ETIME; return -1; }
    return r;
}

static struct { const char *name; long (*call)(void); long want; long got; int error; } all[] = {
    {"epoll_wait", c_epoll_wait, 1}, {"epoll_pwait", c_epoll_pwait, 1}, {"epoll_pwait2", c_epoll_pwait2, 1},
    {"semop", c_semop, 0}, {"semtimedop", c_semtimedop, 0}, {"rt_sigtimedwait", c_sigtimedwait, SIGUSR1},
    {"io_getevents", c_io_getevents, 1}, {"recv", c_recv, 1}, {"accept", c_accept, 0}, {"send", c_send, 1},
    {"read", c_read, 1}, {"poll", c_poll, 1}, {"ppoll", c_ppoll, 1}, {"select", c_select, 1}, {"futex", c_futex, 0},
    {"futex_timed", c_futex_timed, 0}, {"flock", c_flock, 0}, {"wait4", c_wait4, 0}, {"nanosleep", c_nanosleep, 0},
};
enum { N = sizeof all / sizeof *all };
static pthread_t threads[N];
static pthread_barrier_t told;

static void *body(void *arg) {
    long i = (long)arg;
    char line[64];
    int n = snprintf(line, sizeof line, "%ld %s\n", (long)syscall(SYS_gettid), all[i].name);
    if (write(1, line, n) != n) exit(1);
    pthread_barrier_wait(&told);
    all[i].got = all[i].call();
    all[i].error = all[i].got < 0 ? errno : 0;
    return NULL;
}

static int must(int r) { if (r < 0) { perror("setup"); exit(1); } return r; }

static void setup(void) {
    struct timeval t = {1000, 0};
    struct epoll_event e = {.events = EPOLLIN};
    must(unshare(CLONE_NEWIPC)); /* the semaphores go with us, however we end */
    event = must(eventfd(0, 0));
    ep = must(epoll_create1(0));
    must(epoll_ctl(ep, EPOLL_CTL_ADD, event, &e));
    sems = must(semget(IPC_PRIVATE, 2, 0600));
    must(syscall(SYS_io_setup, 8, &aio));
    must(socketpair(AF_UNIX, SOCK_STREAM, 0, sv));
    must(socketpair(AF_UNIX, SOCK_STREAM, 0, full));
    must(setsockopt(sv[0], SOL_SOCKET, SO_RCVTIMEO, &t, sizeof t));
    must(setsockopt(full[0], SOL_SOCKET, SO_SNDTIMEO, &t, sizeof t));
    static char junk[4096];
    while (send(full[0], junk, sizeof junk, MSG_DONTWAIT) > 0) {}
    while (send(full[0], junk, 1, MSG_DONTWAIT) > 0) {}
    listener = must(socket(AF_UNIX, SOCK_STREAM, 0));
    must(setsockopt(listener, SOL_SOCKET, SO_RCVTIMEO, &t, sizeof t));
    must(bind(listener, (struct sockaddr *)&name, sizeof(sa_family_t))); /* autobind */
    must(listen(listener, 1));
    name_len = sizeof name;
    must(getsockname(listener, (struct sockaddr *)&name, &name_len));
    must(pipe(ends));
    char path[] = "/tmp/podmig-calls-XXXXXX";
    locked = must(mkstemp(path));
    mine = must(open(path, O_RDWR));
    unlink(path);
    must(flock(locked, LOCK_EX));
    child = must(fork());
    if (child == 0) { signal(SIGTERM, SIG_DFL); for (;;) pause(); }
    sigset_t m; sigemptyset(&m); sigaddset(&m, SIGUSR1);
    pthread_sigmask(SIG_BLOCK, &m, NULL);
}

static void wake(void) {
    uint64_t one = 1;
    must(write(event, &one, 8));
    struct sembuf b[2] = {{0, 1, 0}, {1, 1, 0}};
    must(semop(sems, b, 2));
    must(pthread_kill(waiter, SIGUSR1));
    char c = 'x';
    struct iocb cb = {.aio_lio_opcode = IOCB_CMD_PWRITE, .aio_fildes = locked, .aio_buf = (uint64_t)&c, .aio_nbytes = 1};
    struct iocb *list = &cb;
    must(syscall(SYS_io_submit, aio, 1, &list));
    must(write(sv[1], &c, 1));
    must(connect(socket(AF_UNIX, SOCK_STREAM, 0), (struct sockaddr *)&name, name_len));
    static char junk[4096];
    while (recv(full[1], junk, sizeof junk, MSG_DONTWAIT) > 0) {}
    must(write(ends[1], &c, 1));
    /* Both waiters; one that has not gone back to sleep yet is woken by the word. */
    word = 0;
    must(syscall(SYS_futex, &word, FUTEX_WAKE, 10, NULL, NULL, 0));
    must(flock(locked, LOCK_UN));
    must(kill(child, SIGTERM));
}

int main(void) {
    char line[16];
    setup();
    pthread_barrier_init(&told, NULL, N + 1);
    for (long i = 0; i < N; i++) must(-pthread_create(&threads[i], NULL, body, (void *)i));
    pthread_barrier_wait(&told);
    printf("ready\n");
    fflush(stdout);
    if (!fgets(line, sizeof line, stdin)) { kill(child, SIGKILL); semctl(sems, 0, IPC_RMID); return 1; }
    wake();
    for (int i = 0; i < N; i++) {
        pthread_join(threads[i], NULL);
        printf("%s %ld %d %s\n", all[i].name, all[i].got, all[i].error, all[i].got == all[i].want ? "right" : "WRONG");
    }
    semctl(sems, 0, IPC_RMID);
    printf("end\n");
    return 0;
}
