"""A server under load: clients that ask without a pause, and what it answers.

    python benchmarks/serve.py --model MODEL [--clients N] [--seconds S] [--json OUT]

Each client sends one photo after the other, of different sizes and settings, and waits as long as
it is told when it is sent away. Every caption is compared with that of `regard caption`. Memory is
the server's, at a fifth of the time and at its end: ``growth`` is wanted below 1.1.
"""

from __future__ import annotations

import argparse
import json as jsonlib
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
from measuring import SHARED, options, report, table

PHOTOS = 64


def main() -> None:
    """Measure, print, write."""
    parser = options(__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--encoder", help="where the encoder's weights are")
    parser.add_argument("--photos", type=Path, default=SHARED / "data" / "flickr8k" / "Images")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60.0)
    arguments = parser.parse_args()
    files = sorted(arguments.photos.glob("*.jpg"))[:PHOTOS]
    load = ["--model", arguments.model]
    load += ["--encoder", arguments.encoder] if arguments.encoder else []
    wanted = {str(beam): _said_by_the_command(files, load, beam) for beam in (1, 3)}
    command = [str(Path(sys.executable).with_name("regard")), "serve", *load, "--port", "0"]
    with subprocess.Popen(
        [*command, "--per-client", "48"], stdout=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stdout is not None
            address = server.stdout.readline().split()[-1].rstrip("/")
            figures = _load(address, server.pid, files, wanted, arguments)
        finally:
            server.terminate()
    statuses = ", ".join(f"{count:,} x {status}" for status, count in figures["statuses"].items())
    text = "\n\n".join([
        f"{arguments.clients} clients for {arguments.seconds:g} s, beams of 1 and 3, "
        f"{len(files)} photos.",
        table(["", ""], [
            ("answers", statuses),
            ("captions a second", f"{figures['rate']:.1f}"),
            ("seconds to a caption, median", f"{figures['median']:.2f}"),
            ("95 of 100 within", f"{figures['p95']:.2f}"),
            ("photos of a batch, mean", f"{figures['batch']:.1f}"),
            ("other captions than `regard caption`", figures["different"]),
            ("memory after a fifth, MiB", f"{figures['memory'][0]:.0f}"),
            ("memory at the end, MiB", f"{figures['memory'][1]:.0f}"),
        ]),
        f"Memory grew to {figures['growth']:.3f} times what it was.",
    ])  # fmt: skip
    report("serve", text, figures, json=arguments.json)


def _said_by_the_command(files: list[Path], load: list[str], beam: int) -> dict[str, str]:
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "captions.jsonl"
        command = [str(Path(sys.executable).with_name("regard")), "caption", *map(str, files)]
        subprocess.run([*command, *load, "--beam", str(beam), "--out", str(out)], check=True)
        made = map(jsonlib.loads, out.read_text(encoding="utf-8").splitlines())
        return {Path(one["path"]).name: one["caption"] for one in made}


def _load(
    address: str,
    process: int,
    files: list[Path],
    wanted: dict[str, dict[str, str]],
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    statuses: Counter[int] = Counter()
    seconds: list[float] = []
    different = 0
    lock = threading.Lock()
    contents = [file.read_bytes() for file in files]
    over = time.perf_counter() + arguments.seconds

    def client(number: int) -> None:
        nonlocal different
        with httpx.Client(timeout=60) as asking:
            turn = number
            while time.perf_counter() < over:
                turn += 1
                at, beam = (turn * 7) % len(files), "13"[turn % 2]
                began = time.perf_counter()
                answer = asking.post(
                    f"{address}/v1/captions?beam={beam}", content=contents[at],
                    headers={"Content-Type": "image/jpeg"},
                )  # fmt: skip
                with lock:
                    statuses[answer.status_code] += 1
                    if answer.is_success:
                        seconds.append(time.perf_counter() - began)
                        said = answer.json()["captions"][0]["text"]
                        different += said != wanted[beam][files[at].name]
                if not answer.is_success:
                    time.sleep(float(answer.headers.get("Retry-After", 1)))

    clients = [threading.Thread(target=client, args=(i,)) for i in range(arguments.clients)]
    for one in clients:
        one.start()
    time.sleep(arguments.seconds / 5)
    memory = [_memory(process)]
    for one in clients:
        one.join()
    memory.append(_memory(process))
    metrics = httpx.get(f"{address}/metrics").text
    photos, batches = (
        float(re.search(rf"^regard_batch_photos_{name} (\S+)", metrics, re.MULTILINE)[1])  # type: ignore[index]
        for name in ("sum", "count")
    )
    seconds.sort()
    return {
        "statuses": dict(sorted(statuses.items())),
        "rate": len(seconds) / arguments.seconds,
        "median": seconds[len(seconds) // 2],
        "p95": seconds[len(seconds) * 95 // 100],
        "batch": photos / batches,
        "different": different,
        "memory": memory,
        "growth": memory[1] / memory[0],
    }


def _memory(process: int) -> float:
    """What a process holds, in MiB."""
    status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024  # type: ignore[index]


if __name__ == "__main__":
    main()
