#!/usr/bin/env python3
"""The load of `scripts/bench --sweep`: much of one kind of thing, which it checks itself when asked.

usage: bench_load.py KIND COUNT       a server on port 7000: KIND is descriptors, connections, processes, threads, mappings
       bench_load.py clients ADDRESS COUNT   COUNT connections to it, checked for each line on standard input: ok, or failed: …
"""
import ctypes
import mmap
import os
import resource
import select
import socket
import sys
import threading

PORT = 7000
PAGE = mmap.PAGESIZE


def descriptors(count):
    """A third each: files at a position, pipes with a byte in them, eventfds that count."""
    kept = []
    while len(kept) < count:
        n = len(kept)
        if n % 3 == 0:
            one = os.open("/proc/self/exe", os.O_RDONLY)
            os.lseek(one, n, os.SEEK_SET)
            kept.append(("file", one, n))
        elif n % 3 == 1 and n + 1 < count:
            one, other = os.pipe()
            os.write(other, bytes([n % 251]))
            kept += [("pipe", one, (other, n % 251)), ("end", other, 0)]
        else:
            kept.append(("event", os.eventfd(n, os.EFD_NONBLOCK), n))

    def check():
        for kind, fd, value in kept:
            if kind == "file" and os.lseek(fd, 0, os.SEEK_CUR) != value:
                return f"descriptor {fd} has lost its position"
            if kind == "pipe":
                got = os.read(fd, 2)
                os.write(value[0], got)
                if got != bytes([value[1]]):
                    return f"pipe {fd} holds {got}"
            if kind == "event" and value:
                got = os.eventfd_read(fd)
                os.eventfd_write(fd, got)
                if got != value:
                    return f"eventfd {fd} is at {got}"
        return "ok"

    return check


def processes(count):
    """Children that answer through pipes."""
    kept = []
    for n in range(count - 1):
        ask, answer = os.pipe(), os.pipe()
        if os.fork() == 0:
            while True:
                word = os.read(ask[0], 1)
                if not word:
                    os._exit(0)
                os.write(answer[1], bytes([(word[0] + n) % 256]))
        os.close(ask[0])
        os.close(answer[1])
        kept.append((ask[1], answer[0], n))

    def check():
        for ask, answer, n in kept:
            os.write(ask, b"\x05")
            if os.read(answer, 1) != bytes([(5 + n) % 256]):
                return f"child {n} gives another answer"
        return "ok"

    return check


def threads(count):
    """Threads that count when told to."""
    threading.stack_size(256 << 10)
    turns, counted = threading.Condition(), [0] * (count - 1)
    state = {"turn": 0, "done": 0}

    def run(n):
        seen = 0
        while True:
            with turns:
                turns.wait_for(lambda: state["turn"] > seen)
                seen = state["turn"]
                counted[n] += 1
                state["done"] += 1
                turns.notify_all()

    for n in range(count - 1):
        threading.Thread(target=run, args=(n,), daemon=True).start()

    def check():
        with turns:
            state["turn"] += 1
            state["done"] = 0
            turns.notify_all()
            if not turns.wait_for(lambda: state["done"] == len(counted), timeout=60):
                return f"{len(counted) - state['done']} threads do not answer"
        return "ok" if all(c == state["turn"] for c in counted) else "a thread has lost count"

    return check


def mappings(count):
    """Private pages, each second one read-only, so that none is joined to the next; a few are written."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    base = libc.mmap(None, count * PAGE, 3, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    for n in range(0, count, 100):
        ctypes.c_ubyte.from_address(base + n * PAGE).value = n % 251
    for n in range(1, count, 2):
        if libc.mprotect(base + n * PAGE, PAGE, 1) != 0:
            sys.exit(f"mprotect of page {n}: {os.strerror(ctypes.get_errno())}")

    def check():
        for n in range(0, count, 50):
            if ctypes.c_ubyte.from_address(base + n * PAGE).value != (0 if n % 100 else n % 251):
                return f"page {n} is not what it was"
        return "ok"

    return check


def connections(_count):
    return lambda: "ok"


def serve(check):
    """Echoes what comes; the word `check` is answered by the check."""
    listener = socket.create_server(("", PORT), backlog=4096)
    poll, all_ = select.epoll(), {}
    listener.setblocking(False)
    poll.register(listener.fileno(), select.EPOLLIN)
    while True:
        for fd, _ in poll.poll():
            if fd == listener.fileno():
                one, _ = listener.accept()
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                all_[one.fileno()] = one
                poll.register(one.fileno(), select.EPOLLIN)
                continue
            word = all_[fd].recv(256)
            if word == b"check":
                all_[fd].sendall(check().encode())
            elif word:
                all_[fd].sendall(word)
            else:
                poll.unregister(fd)
                all_.pop(fd).close()


def clients(address, count):
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    first = socket.create_connection((address, PORT), timeout=60)
    rest = [socket.create_connection((address, PORT), timeout=60) for _ in range(count - 1)]
    for line in sys.stdin:
        first.sendall(b"check")
        answer = first.recv(256).decode()
        for n, one in enumerate(rest):
            one.sendall(b"%d" % n)
        for n, one in enumerate(rest):
            if one.recv(16) != b"%d" % n:
                answer = f"connection {n} is not what it was"
        print(answer if answer == "ok" else f"failed: {answer}", flush=True)


def main():
    if sys.argv[1] == "clients":
        return clients(sys.argv[2], int(sys.argv[3]))
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    kinds = {f.__name__: f for f in (descriptors, connections, processes, threads, mappings)}
    serve(kinds[sys.argv[1]](int(sys.argv[2])))


if __name__ == "__main__":
    main()
