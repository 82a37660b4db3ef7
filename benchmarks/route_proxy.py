"""What the router in front of a server adds to a request.

Three processes on this machine: a client, `tinylora route-proxy` with a tree of eight leaves on the demo's base, and a
server that answers at once. The client asks the server through the router and directly, in turns, over connections that
stay open, for prompts of three lengths and for the first part of a stream. Wall time, because a client waits in that;
it grows with whatever else the machine does, so the router's own CPU seconds stand beside it.
"""

import json
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

N_EACH = 300
WORDS = {"20 words": 20, "200 words": 200, "2000 words": 2000}
GOAL_MS = 10.0
"""Of the median, for 200 words; a server's first token takes tens of milliseconds."""
ANSWER = {"id": "1", "object": "text_completion", "created": 1, "model": "leaf", "choices": [{"index": 0, "text": "x"}]}
SERVER = """
import sys, uvicorn
from benchmarks.route_proxy import make_server
uvicorn.run(make_server(), host="127.0.0.1", port=int(sys.argv[1]), log_level="error", access_log=False)
"""


def measure() -> dict[str, Any]:
    """Added milliseconds, by length of the prompt."""
    import httpx

    with TemporaryDirectory(prefix="tinylora-bench-") as folder:
        file = Path(folder) / "bundle.safetensors"
        base = _write_bundle(file)
        with _running([sys.executable, "-c", SERVER, str(port := _free_port())]):
            direct = f"http://127.0.0.1:{port}"
            _until_it_answers(direct)
            command = [sys.executable, "-m", "tinylora.cli", "route-proxy", str(file), "--base", base]
            with _running([*command, "--upstream", direct, "--port", "0"]) as router:
                assert router.stdout
                routed = router.stdout.readline().split()[0].removesuffix("/v1")
                with httpx.Client(timeout=60, trust_env=False) as client:
                    found = {name: _compare(client, direct, routed, n, router.pid) for name, n in WORDS.items()}
                    found["first part of a stream"] = _compare(client, direct, routed, 200, router.pid, is_stream=True)
    added = found["200 words"]["added_median_ms"]
    return {
        "compares": "wall time of a request through the router with the same asked directly",
        "goal": f"median of what is added at most {GOAL_MS:g} ms for 200 words",
        "is_met": added <= GOAL_MS,
        "figure": {"added_median_ms": added, "added_p95_ms": found["200 words"]["added_p95_ms"]},
        "details": {"n_each": N_EACH, "base": "the demo's, of 0.5 M parameters", "leaves": 8, **found},
    }


def make_server() -> Any:
    """A server that says the same to everybody, at once."""
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response, StreamingResponse
    from starlette.routing import Route

    async def answer(request: Request) -> Response:
        if not (await request.json()).get("stream"):
            return JSONResponse(ANSWER)
        parts = (f"data: {json.dumps(ANSWER)}\n\n" for _ in range(3))
        return StreamingResponse(parts, media_type="text/event-stream")

    return Starlette(routes=[Route("/v1/completions", answer, methods=["POST"])])


def _compare(
    client: Any, direct: str, routed: str, n_words: int, router_pid: int, *, is_stream: bool = False
) -> dict[str, float]:
    """Milliseconds of both ways, and of the differences of neighbours."""
    import psutil

    draw = iter(range(10**9))

    def ask(url: str) -> float:
        prompt = " ".join(f"word{next(draw) % 97}" for _ in range(n_words))
        body = {"model": "tree", "prompt": prompt, "stream": is_stream}
        start = time.perf_counter()
        with client.stream("POST", f"{url}/v1/completions", json=body) as response:
            parts = response.iter_raw()
            next(parts)
            seconds = time.perf_counter() - start
            for _ in parts:
                pass
        assert response.status_code == 200
        return 1e3 * seconds

    for url in (direct, routed) * 20:
        ask(url)
    process = psutil.Process(router_pid)
    before = process.cpu_times()
    pairs = [(ask(direct), ask(routed)) for _ in range(N_EACH)]
    after = process.cpu_times()
    cpu_s = (after.user + after.system) - (before.user + before.system)
    direct_ms, routed_ms = ([pair[i] for pair in pairs] for i in (0, 1))
    added = [ours - theirs for theirs, ours in pairs]
    rows: dict[str, tuple[Callable[[list[float]], float], list[float]]] = {
        "direct_median_ms": (statistics.median, direct_ms),
        "direct_p95_ms": (_p95, direct_ms),
        "routed_median_ms": (statistics.median, routed_ms),
        "routed_p95_ms": (_p95, routed_ms),
        "added_median_ms": (statistics.median, added),
        "added_p95_ms": (_p95, added),
    }
    found = {name: round(take(values), 2) for name, (take, values) in rows.items()}
    return found | {"router_cpu_ms": round(1e3 * cpu_s / N_EACH, 2)}


def _p95(values: list[float]) -> float:
    return statistics.quantiles(values, n=20)[-1]


def _write_bundle(file: Path) -> str:
    import numpy as np

    from tinylora.adapters.lora import init_adapter
    from tinylora.adapters.spec import AdapterSpec
    from tinylora.base_model import load_base
    from tinylora.bundle import Bundle, write_bundle
    from tinylora.demo.experiment import BASE_DIR
    from tinylora.routing.gates import Gate, Gates
    from tinylora.tree import Topology

    base, topology, spec = load_base(BASE_DIR), Topology.perfect(3), AdapterSpec("lora", 2)
    draw, dim = np.random.default_rng(0), base.facts.feature_dim
    gates = Gates({node: Gate(draw.standard_normal(dim), 0.0, 1.0) for node in topology.inner}, dim)
    nodes = {leaf: init_adapter(base.facts, spec, seed=0, path=leaf) for leaf in topology.leaves}
    write_bundle(Bundle("bench", topology, base.facts, spec, 1.0, nodes, gates), file)
    return str(BASE_DIR)


@contextmanager
def _running(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    made = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield made
    finally:
        made.terminate()
        made.wait(30)
        if made.stdout:
            made.stdout.close()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def _until_it_answers(url: str) -> None:
    import httpx

    with httpx.Client(transport=httpx.HTTPTransport(retries=10), timeout=60) as client:
        client.get(url)
