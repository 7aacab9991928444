# A process whose memory the tests move about: one command a line on stdin, one line of answer.
import ctypes, os, random, sys

libc = ctypes.CDLL(None, use_errno=True)
P, U = ctypes.c_void_p, ctypes.c_size_t
libc.mmap.restype = libc.mremap.restype = libc.sbrk.restype = P
libc.mmap.argtypes = [P, U, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.mremap.argtypes = [P, U, U, ctypes.c_int, P]
libc.munmap.argtypes = [P, U]
libc.mprotect.argtypes = libc.madvise.argtypes = [P, U, ctypes.c_int]
libc.sbrk.argtypes = [ctypes.c_long]
libc.syscall.restype = ctypes.c_long
PAGE = 4096
PRIVATE, SHARED, FIXED, ANON, NORESERVE = 2, 1, 0x10, 0x20, 0x4000
fds, children = {}, []
MAIN = os.getpid()


def fork():
    pid = os.fork()
    if pid == 0:
        libc.prctl(1, 9)  # PR_SET_PDEATHSIG: never left behind
        if os.getppid() != MAIN:
            os._exit(1)
    return pid


def check(r):
    if r in (-1, None, 2**64 - 1):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return r


def fill(addr, length, seed):
    """Page n of the range gets bytes that depend on seed and n; seed 0 gives zeros."""
    for n in range(length // PAGE):
        word = (seed * 1000003 + n * 7919) & 0xFFFFFFFFFFFFFFFF if seed else 0
        ctypes.memmove(addr + n * PAGE, word.to_bytes(8, "little") * (PAGE // 8), PAGE)


def reap():
    while children:
        pid = children.pop()
        os.kill(pid, 9)
        os.waitpid(pid, 0)


def remap(*args):
    """mremap; False where the range is two mappings. Tracking can be the cause: one that is registered and one
    that is not yet do not merge."""
    r = libc.mremap(*args)
    if r == 2**64 - 1 and ctypes.get_errno() == 14:
        return False
    check(r)
    return True


class Wild:
    """Random traffic over an arena of address space, slot by slot."""

    SLOT, SLOTS = 64 * PAGE, 24

    def __init__(self, base, seed, path):
        self.base, self.rng, self.path = base, random.Random(seed), path
        self.live = {}  # slot -> (address, pages)

    def step(self):
        rng = self.rng
        slot = rng.randrange(self.SLOTS)
        addr = self.base + slot * self.SLOT
        if slot not in self.live:
            pages = rng.randrange(1, 33)
            if rng.random() < 0.2:
                fd = os.open(self.path, os.O_RDWR)
                check(libc.mmap(addr, pages * PAGE, 3, PRIVATE | FIXED, fd, 0))
                os.close(fd)
            else:
                check(libc.mmap(addr, pages * PAGE, 3, PRIVATE | FIXED | ANON, -1, 0))
            self.live[slot] = pages
            return
        pages = self.live[slot]
        first = rng.randrange(pages)
        some = rng.randrange(1, pages - first + 1)
        at, length = addr + first * PAGE, some * PAGE
        what = rng.random()
        if what < 0.55:
            fill(at, length, rng.randrange(3))
        elif what < 0.60:
            ctypes.string_at(at, length)
        elif what < 0.72:
            check(libc.madvise(at, length, 4))  # MADV_DONTNEED
        elif what < 0.78:
            check(libc.munmap(addr, pages * PAGE))
            del self.live[slot]
        elif what < 0.82:
            # the same place again, in one breath: looks unchanged from outside
            check(libc.mmap(addr, pages * PAGE, 3, PRIVATE | FIXED | ANON, -1, 0))
        elif what < 0.88:
            other = rng.randrange(self.SLOTS)
            if other not in self.live:
                new = rng.randrange(1, 33)
                if remap(addr, pages * PAGE, new * PAGE, 3, self.base + other * self.SLOT):
                    self.live[other] = new
                else:  # cut by then, perhaps
                    check(libc.munmap(addr, self.SLOT))
                del self.live[slot]
        elif what < 0.91:
            new = min(pages + rng.randrange(1, 9), 64)
            if remap(addr, pages * PAGE, new * PAGE, 0, None):
                self.live[slot] = new
        elif what < 0.94:
            check(libc.mprotect(at, length, rng.choice([0, 1])))
            check(libc.mprotect(at, length, 3))
        elif what < 0.97:
            old = check(libc.sbrk(rng.choice([0, 1, 2, 5]) * PAGE))
            if check(libc.sbrk(0)) > old:
                ctypes.memset(old, rng.randrange(256), 8)
        else:
            pid = fork()
            if pid == 0:
                if rng.random() < 0.5:
                    fill(at, PAGE, 9)
                os.kill(os.getpid(), 19)
            os.waitpid(pid, 2)  # WUNTRACED: it has stopped
            children.append(pid)
            if len(children) > 2:
                reap()


wild = None


def run(words):
    global wild
    op, args = words[0], [int(w, 0) if w[:1].isdigit() or w[:1] == "-" else w for w in words[1:]]
    if op == "map":  # ADDR LEN PROT FLAGS [FD OFFSET]
        fd, offset = (fds[args[4]], args[5]) if len(args) > 4 else (-1, 0)
        check(libc.mmap(args[0], args[1], args[2], args[3] | FIXED, fd, offset))
    elif op == "unmap":
        check(libc.munmap(args[0], args[1]))
    elif op == "remap":  # OLD LEN NEW LEN
        check(libc.mremap(args[0], args[1], args[3], 3, args[2]))
    elif op == "protect":
        check(libc.mprotect(*args))
    elif op == "advise":
        check(libc.madvise(*args))
    elif op == "small":  # no huge pages from here on: PR_SET_THP_DISABLE
        check(libc.prctl(41, 1, 0, 0, 0))
    elif op == "guard":  # ADDR LEN: MADV_GUARD_INSTALL, on kernels without it MADV_DONTNEED (the same for content)
        if libc.madvise(args[0], args[1], 102):
            check(libc.madvise(args[0], args[1], 4))
    elif op == "unguard":  # MADV_GUARD_REMOVE
        libc.madvise(args[0], args[1], 103)
    elif op == "fill":
        fill(*args)
    elif op == "touch":  # ADDR: one byte
        ctypes.memset(args[0], 0x5A, 1)
    elif op == "set":  # ADDR LEN BYTE
        ctypes.memset(args[0], args[2], args[1])
    elif op == "scatter":  # ADDR LEN COUNT: one byte in COUNT random pages
        for _ in range(args[2]):
            ctypes.memset(args[0] + random.randrange(args[1] // PAGE) * PAGE, 1, 1)
    elif op == "sum":  # ADDR LEN: what the program itself reads
        return str(hash(ctypes.string_at(args[0], args[1])))
    elif op == "read":
        ctypes.string_at(args[0], args[1])
    elif op == "open":
        fds[args[0]] = os.open(args[1], os.O_RDWR)
        return str(fds[args[0]])
    elif op == "memfd":  # NAME SIZE
        fds[args[0]] = os.memfd_create("pm")
        os.ftruncate(fds[args[0]], args[1])
        return str(fds[args[0]])
    elif op == "pwrite":  # NAME OFFSET BYTE
        os.pwrite(fds[args[0]], bytes([args[2]]), args[1])
    elif op == "close":
        os.close(fds.pop(args[0]))
    elif op == "closefd":
        os.close(args[0])
    elif op == "child":  # ADDR BYTE: a child writes one byte and ends
        pid = fork()
        if pid == 0:
            ctypes.memset(args[0], args[1], 1)
            os._exit(0)
        os.waitpid(pid, 0)
    elif op == "nofile":  # COUNT
        import resource
        resource.setrlimit(resource.RLIMIT_NOFILE, (args[0], args[0]))
    elif op == "uffd":
        return str(check(libc.syscall(323, args[0])))
    elif op == "wildinit":  # BASE SEED PATH
        wild = Wild(*args)
    elif op == "wild":  # COUNT
        for _ in range(args[0]):
            wild.step()
    elif op == "exec":
        os.execv(sys.executable, [sys.executable, "-c", "import sys; print('ok', flush=True); sys.stdin.read()"])
    elif op == "reap":
        reap()
    else:
        raise ValueError(op)
    return ""


print("ok", flush=True)
for line in sys.stdin:
    try:
        print("ok", run(line.split()), flush=True)
    except Exception as e:
        print("failed", repr(e).replace("\n", " "), flush=True)
reap()
