/* A restartable sequence that takes long. Line 0: passes begun; line 1: committed; line 2: aborted (first field of each); line 0's other fields:
 * start and length of the critical section. Uses the C library's registration (glibc 2.35 and later), else says 77 in line 0's errors. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

struct line { uint64_t rounds, errors, code, detail; };
extern const ptrdiff_t __rseq_offset __attribute__((weak));
extern const unsigned int __rseq_size __attribute__((weak));

struct cs { uint32_t version, flags; uint64_t start, length, abort; } __attribute__((aligned(32)));

int main(int argc, char **argv) {
    int fd = open(argv[1], O_RDWR);
    volatile struct line *l = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (argc < 2 || l == MAP_FAILED) return 1;
    if (!&__rseq_size || __rseq_size == 0) { l[0].errors = 77; for (;;) pause(); }
    static struct cs cs;
    char *area = (char *)__builtin_thread_pointer() + __rseq_offset;
    volatile uint64_t *field = (uint64_t *)(area + 8);
    for (;;) {
        uint64_t ok;
        l[0].rounds++;
        asm volatile(
            "lea 1f(%%rip), %%rax\n mov %%rax, 8(%[cs])\n"
            "lea 2f(%%rip), %%rcx\n sub %%rax, %%rcx\n mov %%rcx, 16(%[cs])\n"
            "mov %%rax, %[start]\n mov %%rcx, %[length]\n"
            "lea 4f(%%rip), %%rax\n mov %%rax, 24(%[cs])\n"
            "mov $200000000, %%ecx\n"
            "mov %[cs], %[field]\n"
            "1: dec %%ecx\n jnz 1b\n nop\n"
            "2: mov $1, %[ok]\n jmp 5f\n"
            ".long 0x53053053\n"
            "4: xor %k[ok], %k[ok]\n"
            "5:\n"
            : [ok] "=&r"(ok), [field] "=m"(*field), [start] "=m"(l[0].code), [length] "=m"(l[0].detail)
            : [cs] "r"(&cs)
            : "rax", "rcx", "memory", "cc");
        *field = 0;
        l[ok ? 1 : 2].rounds++;
    }
}
