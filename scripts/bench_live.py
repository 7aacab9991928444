#!/usr/bin/env python3
"""`scripts/bench --live`: moves with pre-copy. Idle pods of several sizes, a Redis under load, a writer faster or slower
than the stream; the first move of each row is verified, mapping by mapping, and not counted.

usage: bench_live.py writer MIB RATE    rewrites MIB of memory at RATE MiB/s for ever, a server on port 7000 meanwhile
"""
import json
import mmap
import os
import socket
import statistics
import subprocess
import sys
import threading
import time

MIB = 1 << 20
SIZES = (16, 256, 1024, 4096)
HEADLINE = 1024  # MiB of the row that is moved most often
RATIOS = (0.1, 0.5, 0.9, 1.5)
WRITER_MIB = 128
POD = "10.77.0.50"


def live(bench, lab, name, to, *more):
    """Moves a pod with pre-copy; its report."""
    host = "a" if to == "b" else "b"
    text = bench.out(*bench.inside(host, lab.podmig, "move", name, to, "--mode", "live", "--json", *more),
                     env=lab.env(host), stdin=subprocess.DEVNULL)
    report = json.loads(text)
    if report["mode"] != "live":
        raise RuntimeError(f"not moved live: {report['warnings']}")
    return report


def verified(bench, lab, name, to):
    """A move whose memory is compared at both ends: not timed."""
    report = live(bench, lab, name, to, "--verify")
    if not report["verified"]:
        raise RuntimeError(f"not verified: {report}")
    return report


def gone(lab, name):
    for host in ("a", "b"):
        lab.on(host, "rm", "-f", name)


def idle(bench, lab, mib, moves):
    """A Redis of this size with 100 connections that are quiet and one that always has a request in flight."""
    lab.redis("idle", mib)
    to, reports, stalls = bench.ends(), [], []
    with bench.Clients(bench.__file__, "--idle", "100") as crowd, \
         bench.Clients(os.path.join(os.path.dirname(bench.__file__), "demo_clients.py"), POD, "6379") as busy:
        first = verified(bench, lab, "idle", next(to))
        crowd.ask("check")
        for _ in range(moves):
            busy.ask("mark")
            reports.append(live(bench, lab, "idle", next(to)))
            _, wrong, gap = busy.ask("report").split()
            if wrong != "0":
                raise RuntimeError(f"{wrong} wrong replies")
            stalls.append(float(gap) * 1e3)
            crowd.ask("check")
    gone(lab, "idle")
    memory = first["rounds"][0]["pages"] * mmap.PAGESIZE
    return {
        "mib": mib,
        "memory_bytes": memory,
        "frozen_us": bench.spread([r["frozen_us"] for r in reports]),
        "stall_us": bench.spread(stalls),
        "total_us": bench.spread([r["total_us"] for r in reports]),
        "rounds": bench.spread([len(r["rounds"]) for r in reports]),
        "sent_over_memory": statistics.median(r["bytes_sent"] for r in reports) / memory,
        "stages_us": bench.stages(reports),
    }


def commands(bench):
    text = bench.out(*bench.inside("c", "redis-cli", "-h", POD, "info", "stats"))
    return int(next(line for line in text.splitlines() if line.startswith("total_commands_processed")).split(":")[1])


def rate(bench, work):
    """Commands a second while `work` goes on, and what it gave."""
    before, start = commands(bench), time.monotonic()
    done = work()
    return (commands(bench) - before) / (time.monotonic() - start), done


def loaded(bench, lab, mib, moves):
    """A Redis under redis-benchmark, reads and writes half and half."""
    lab.redis("loaded", mib)
    load = subprocess.Popen(
        bench.inside("c", "redis-benchmark", "-h", POD, "-c", "20", "-l", "-q", "-t", "get,set", "-r", "100000", "-d", "512"),
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    to, reports, stalls, losses = bench.ends(), [], [], []
    try:
        with bench.Clients(os.path.join(os.path.dirname(bench.__file__), "demo_clients.py"), POD, "6379") as busy:
            verified(bench, lab, "loaded", next(to))
            for _ in range(moves):
                alone, _ = rate(bench, lambda: time.sleep(1))
                busy.ask("mark")
                meanwhile, report = rate(bench, lambda: live(bench, lab, "loaded", next(to)))
                stalls.append(float(busy.ask("report").split()[2]) * 1e3)
                reports.append(report)
                # The freeze itself is not pre-copy.
                running = 1 - report["frozen_us"] / report["total_us"]
                losses.append(1 - meanwhile / running / alone)
    finally:
        load.kill()
        load.wait()
    gone(lab, "loaded")
    return {
        "mib": mib,
        "frozen_us": bench.spread([r["frozen_us"] for r in reports]),
        "stall_us": bench.spread(stalls),
        "total_us": bench.spread([r["total_us"] for r in reports]),
        "rounds": bench.spread([len(r["rounds"]) for r in reports]),
        "throughput_loss": bench.spread(losses),
        "stages_us": bench.stages(reports),
    }


def writer(mib, mib_per_s):
    """Rewrites memory at a rate; what it wrote last is checked as it goes round."""
    server = socket.create_server(("0.0.0.0", 7000))
    threading.Thread(target=lambda: [server.accept() for _ in iter(int, 1)], daemon=True).start()
    memory, turn, start, done = mmap.mmap(-1, mib * MIB), 0, time.monotonic(), 0
    blocks = [bytes([n]) * MIB for n in range(1, 256)]
    while True:
        for n in range(mib):
            if turn and memory[n * MIB] != blocks[(turn - 1 + n) % 255][0]:
                os._exit(1)
            memory[n * MIB:(n + 1) * MIB] = blocks[(turn + n) % 255]
            done += 1
            due = start + done / mib_per_s - time.monotonic()
            if due > 0:
                time.sleep(due)
            elif due < -0.05:
                start, done = time.monotonic(), 0  # stood still: not made up for
        turn += 1


def writers(bench, lab, moves):
    """Writers whose rate d is a share of the rate r at which an idle pod of their size is sent."""
    rows, r = [], None
    for ratio in (None, *RATIOS):
        d = 0.001 if ratio is None else ratio * r
        lab.on("a", "start", "--name", "writer", "--net", "lan:br0", "--ip", f"{POD}/24", "-w", "/", "--",
               sys.executable, os.path.abspath(__file__), "writer", str(WRITER_MIB), str(d))
        lab.on("a", "wait", "writer", "--for", "tcp:7000", "--timeout", "30s")
        if ratio is None:
            # All of it must be there to be sent.
            gone(lab, "writer")
            lab.redis("plain", WRITER_MIB)
            reports = [live(bench, lab, "plain", end) for end in ("b", "a", "b")]
            gone(lab, "plain")
            r = statistics.median(x["rounds"][0]["bytes"] / x["rounds"][0]["us"] for x in reports) * 1e6 / MIB
            continue
        to = bench.ends()
        verified(bench, lab, "writer", next(to))
        reports = [live(bench, lab, "writer", next(to)) for _ in range(moves)]
        for host in ("a", "b"):
            ended = [p for p in json.loads(lab.on(host, "ps", "--json")) if p["name"] == "writer" and p["state"] == "exited"]
            if ended:
                raise RuntimeError("the writer has found wrong memory")
        gone(lab, "writer")
        rows.append({
            "ratio": ratio, "r_mib_per_s": r, "d_mib_per_s": d, "mib": WRITER_MIB,
            "frozen_us": bench.spread([x["frozen_us"] for x in reports]),
            "total_us": bench.spread([x["total_us"] for x in reports]),
            "rounds": bench.spread([len(x["rounds"]) for x in reports]),
            "sent_over_memory": statistics.median(x["bytes_sent"] for x in reports) / (WRITER_MIB * MIB),
        })
        print(writer_row(rows[-1]), flush=True)
    return rows


def ms(values):
    return f"{values['median'] / 1e3:.1f}", f"{values['max'] / 1e3:.1f}"


def idle_row(row):
    frozen, stall, total = (ms(row[k]) for k in ("frozen_us", "stall_us", "total_us"))
    return (f"{'idle, ' + str(row['mib']) + ' MiB':<24}{frozen[0]:>10}{frozen[1]:>8}{stall[0]:>10}{stall[1]:>8}{total[0]:>10}"
            f"{row['rounds']['median']:>8.0f}{row['sent_over_memory']:>8.2f}")


def loaded_row(row):
    frozen, stall, total = (ms(row[k]) for k in ("frozen_us", "stall_us", "total_us"))
    loss = f"throughput -{row['throughput_loss']['median'] * 100:.0f} %"
    return (f"{'loaded, ' + str(row['mib']) + ' MiB':<24}{frozen[0]:>10}{frozen[1]:>8}{stall[0]:>10}{stall[1]:>8}{total[0]:>10}"
            f"{row['rounds']['median']:>8.0f}        {loss}")


def writer_row(row):
    frozen, total = ms(row["frozen_us"]), ms(row["total_us"])
    name = f"d/r {row['ratio']}, {row['mib']} MiB"
    return (f"{name:<24}{frozen[0]:>10}{frozen[1]:>8}{'':>18}{total[0]:>10}{row['rounds']['median']:>8.0f}"
            f"{row['sent_over_memory']:>8.2f}")


def plot(rows, path):
    """Pause against memory size, both from nought, as SVG."""
    width, height, left, bottom = 640, 360, 60, 50
    top = max(r["stall_us"]["median"] for r in rows) / 1e3 * 1.25
    far = max(r["memory_bytes"] for r in rows) / MIB * 1.05
    x = lambda mib: left + mib / far * (width - left - 20)
    y = lambda ms_: height - bottom - ms_ / top * (height - bottom - 20)
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
             f'<rect width="{width}" height="{height}" fill="white"/>']
    step = max(1, round(top / 6))
    for n in range(0, int(top) + 1, step):
        parts.append(f'<path d="M{left} {y(n):.1f}H{width - 20}" stroke="#ddd"/>'
                     f'<text x="{left - 8}" y="{y(n) + 4:.1f}" text-anchor="end">{n}</text>')
    for r in rows:
        mib = r["memory_bytes"] / MIB
        if mib > far / 50:
            parts.append(f'<text x="{x(mib):.1f}" y="{height - bottom + 18}" text-anchor="middle">{mib:.0f}</text>')
    for key, colour, label, place in (("frozen_us", "#1f5fa8", "frozen", 0), ("stall_us", "#c0504d", "seen by a client", 1)):
        points = [(x(r["memory_bytes"] / MIB), y(r[key]["median"] / 1e3)) for r in rows]
        line = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3.5" fill="{colour}"/>' for a, b in points]
        parts.append(f'<text x="{left + 14}" y="{32 + 16 * place}" fill="{colour}">{label} (median, ms)</text>')
    parts.append(f'<text x="{width / 2}" y="{height - 10}" text-anchor="middle">memory of the pod, MiB</text></svg>')
    with open(path, "w", encoding="utf-8") as file:
        file.write("\n".join(parts) + "\n")


def run(bench, lab, moves, sizes):
    """All of it; the figures."""
    print(f"{'live moves':<24}{'frozen ms':>10}{'max':>8}{'stall ms':>10}{'max':>8}{'total ms':>10}{'rounds':>8}{'sent':>8}")
    result = {"idle": [], "loaded": [], "writers": []}
    for mib in sizes:
        result["idle"].append(idle(bench, lab, mib, max(moves, 20) if mib == HEADLINE else moves))
        print(idle_row(result["idle"][-1]), flush=True)
    result["loaded"].append(loaded(bench, lab, 256, moves))
    print(loaded_row(result["loaded"][-1]), flush=True)
    result["writers"] = writers(bench, lab, moves)
    return result


if __name__ == "__main__" and sys.argv[1:2] == ["writer"]:
    writer(int(sys.argv[2]), float(sys.argv[3]))
