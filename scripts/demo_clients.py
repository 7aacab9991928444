#!/usr/bin/env python3
"""The demo's clients of a Redis: one counts and checks every reply, one waits for a message it must still get.

usage: demo_clients.py ADDRESS PORT, then commands on standard input, one answer a line on standard output:
  mark       start a new interval               -> ok
  report     what the counter saw since `mark`  -> REPLIES WRONG LONGEST_GAP_MS
  publish T  from a new connection; the subscription, open since the start, must get T -> got T
"""
import queue
import signal
import socket
import sys
import threading
import time

ADDRESS = (sys.argv[1], int(sys.argv[2]))
LIMIT = 30.0  # seconds any one reply may take


class Redis:
    """One connection, never opened again: if it breaks, the demo has failed."""

    def __init__(self, limit):
        self.socket = socket.create_connection(ADDRESS, timeout=LIMIT)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.settimeout(limit)
        self.input = self.socket.makefile("rb")

    def send(self, *words):
        words = [str(w).encode() for w in words]
        lines = b"".join(b"$%d\r\n%s\r\n" % (len(w), w) for w in words)
        self.socket.sendall(b"*%d\r\n%s" % (len(words), lines))

    def reply(self):
        line = self.input.readline()
        if not line.endswith(b"\r\n"):
            raise ConnectionError("the connection has ended")
        kind, rest = line[:1], line[1:-2]
        if kind == b":":
            return int(rest)
        if kind == b"+":
            return rest.decode()
        if kind == b"$":
            return self.input.read(int(rest) + 2)[:-2].decode()
        if kind == b"*":
            return [self.reply() for _ in range(int(rest))]
        raise ValueError(f"the server says {line!r}")

    def ask(self, *words):
        self.send(*words)
        return self.reply()


class Counter(threading.Thread):
    """INCR, then GET: each reply must be the one number that is due. Lost or repeated ones show at once."""

    def __init__(self):
        super().__init__(daemon=True)
        self.lock = threading.Lock()
        self.redis = Redis(LIMIT)
        self.redis.ask("SET", "counter", 0)
        self.replies = self.wrong = 0
        self.gap, self.last, self.failure = 0.0, time.monotonic(), None

    def run(self):
        due = 0
        try:
            while True:
                due += 1
                for words in (("INCR", "counter"), ("GET", "counter")):
                    got = self.redis.ask(*words)
                    self.count(int(got) != due)
        except (OSError, ValueError, TypeError) as error:
            with self.lock:
                self.failure = error

    def count(self, wrong):
        with self.lock:
            now = time.monotonic()
            self.gap, self.last = max(self.gap, now - self.last), now
            self.replies += 1
            self.wrong += wrong

    def mark(self):
        with self.lock:
            self.replies = self.wrong = 0
            self.gap, self.last = 0.0, time.monotonic()

    def report(self):
        """Waits for ten more replies, so that the counter is seen to go on."""
        end = time.monotonic() + LIMIT
        with self.lock:
            due = self.replies + 10
        while True:
            with self.lock:
                if self.failure:
                    raise self.failure
                if self.replies >= due:
                    return f"{self.replies} {self.wrong} {self.gap * 1e3:.1f}"
            if time.monotonic() > end:
                raise TimeoutError("the counter gets no replies any more")
            time.sleep(0.001)


class Subscription(threading.Thread):
    """Waits for messages and does nothing else."""

    def __init__(self):
        super().__init__(daemon=True)
        self.redis = Redis(None)
        self.redis.ask("SUBSCRIBE", "news")
        self.messages = queue.Queue()

    def run(self):
        try:
            while True:
                self.messages.put(self.redis.reply()[2])
        except (OSError, ValueError, TypeError) as error:
            self.messages.put(f"<{error}>")


def publish(subscription, text):
    count = Redis(LIMIT).ask("PUBLISH", "news", text)
    got = subscription.messages.get(timeout=LIMIT)
    if count != 1 or got != text:
        raise ValueError(f"published {text!r} to {count} subscribers, the subscription got {got!r}")
    return f"got {got}"


def main():
    # The demo ends us itself, whatever is typed at the terminal.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    counter, subscription = Counter(), Subscription()
    counter.start()
    subscription.start()
    for line in sys.stdin:
        word, _, text = line.strip().partition(" ")
        try:
            if word == "mark":
                counter.mark()
                print("ok", flush=True)
            elif word == "report":
                print(counter.report(), flush=True)
            elif word == "publish":
                print(publish(subscription, text), flush=True)
        except (OSError, ValueError, queue.Empty) as error:
            print(f"failed: {type(error).__name__}: {error}", flush=True)
            return 1
    return 0


sys.exit(main())
