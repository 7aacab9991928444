/* pid 1 of a test pod: reaps, and says on descriptor 1 who ended ("pid status\n"); with arguments it first
   starts a program in a session of its own, its output to descriptor 3. No libc, no threads. */
typedef long word;
static word call(word n, word a, word b, word c, word d) {
    word r;
    register word r10 __asm__("r10") = d;
    __asm__ volatile("syscall" : "=a"(r) : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10) : "rcx", "r11", "memory");
    return r;
}
__asm__(".globl borrowed\nborrowed: syscall\nret\n");
static char *number(char *at, unsigned n) {
    char digits[10];
    int i = 0;
    do digits[i++] = '0' + n % 10; while (n /= 10);
    while (i) *at++ = digits[--i];
    return at;
}
__asm__(".globl _start\n_start: mov %rsp, %rdi\nand $-16, %rsp\ncall run\n");
static void start(char **argv) {
    unsigned long none = 0;
    if (call(57, 0, 0, 0, 0)) return; /* fork */
    call(112, 0, 0, 0, 0); /* setsid */
    call(292, 3, 1, 0, 0); /* dup3 */
    call(292, 3, 2, 0, 0);
    call(436, 3, ~0u, 0, 0); /* close_range: whatever the test was started with */
    call(3, 3, 0, 0, 0);
    call(14, 2, (word)&none, 0, 8);
    char *env[] = {"PATH=/usr/bin:/bin", 0};
    call(59, (word)argv[0], (word)argv, (word)env, 0); /* execve */
    call(231, 127, 0, 0, 0);
}
void run(word *stack) {
    unsigned long all = ~0ul, chld = 1ul << 16;
    call(14, 2, (word)&all, 0, 8); /* rt_sigprocmask(SIG_SETMASK) */
    call(1, 1, (word)"up\n", 3, 0);
    char go;
    call(0, 0, (word)&go, 1, 0); /* until it is in its cgroup */
    if (stack[0] > 1) start((char **)stack + 2);
    call(3, 3, 0, 0, 0);
    for (;;) {
        call(128, (word)&chld, 0, 0, 8); /* rt_sigtimedwait */
        int status;
        word pid;
        while ((pid = call(61, -1, (word)&status, 0x40000001, 0)) > 0) { /* wait4(WNOHANG|__WALL) */
            char line[32], *at = number(line, (unsigned)pid);
            *at++ = ' ';
            at = number(at, (unsigned)status);
            *at++ = '\n';
            call(1, 1, (word)line, at - line, 0);
        }
    }
}
