"""Imports what `spectramind` needs, then forks a process for every command line: command_line.py.

    python tests/warm_server.py FOLDER      # leaves the program FOLDER/spectramind

It computes nothing itself, so that no thread is lost in a fork.
"""

import atexit
import importlib
import json
import os
import runpy
import select
import shutil
import signal
import socket
import sys
import traceback
from pathlib import Path

IMPORTED = [
    "torch", "hydra", "hydra._internal.hydra", "hydra._internal.core_plugins.basic_launcher",
    "hydra._internal.core_plugins.basic_sweeper", "lightning_fabric", "chemotools.datasets",
    "matplotlib.pyplot", "rich.console", "spectramind_fused", "spectramind_fused.cli.runs",
    "spectramind_fused.cli.bench", "spectramind_fused.cli.doctor",
    "spectramind_fused.cli.completion", "spectramind_fused.cli.compare", "torch._dynamo",
]  # fmt: skip
CLIENT = """#!{python} -SE
import json, os, signal, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({path!r})
    words = sys.argv + os.environ.get("SPECTRAMIND_TEST_WORDS", "").split()
    typed = json.dumps([words, os.getcwd(), dict(os.environ)]).encode()
    socket.send_fds(server, [typed], [0, 1, 2])
    server.shutdown(socket.SHUT_WR)
    answers = server.makefile()
    child = int(answers.readline())
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, lambda number, _: os.kill(child, number))
    sys.exit(int(answers.readline() or 1))
"""


def main(folder: Path) -> None:
    """Serves until its standard input is closed; the folder ends with it."""
    for name in IMPORTED:
        importlib.import_module(name)
    path = str(folder / "socket")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        client = folder / "new"
        client.write_text(CLIENT.format(python=sys.executable, path=path))
        client.chmod(0o755)
        client.rename(folder / "spectramind")
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those who answer
        while sys.stdin not in select.select([server, sys.stdin], [], [])[0]:
            connection, _ = server.accept()
            if os.fork() == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                server.close()
                answer(connection)
                os._exit(0)
            connection.close()
    shutil.rmtree(folder)


def answer(connection: socket.socket) -> None:
    """Has a process run what was typed, and answers how it ended."""
    typed, streams, _, _ = socket.recv_fds(connection, 65536, 3)
    while more := connection.recv(65536):
        typed += more
    child = os.fork()
    if child == 0:
        connection.close()
        run(*json.loads(typed), streams)
    connection.sendall(f"{child}\n".encode())
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    connection.sendall(str(code if code >= 0 else 128 - code).encode())


def run(words: list[str], folder: str, environment: dict[str, str], streams: list[int]) -> None:
    """Does what `python -m spectramind_fused` does, to its end."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    sys.stdout, sys.stderr = (open(n, "w", n - 1 or -1, closefd=False) for n in (1, 2))  # noqa: SIM115
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = words
    sys.path[0] = folder
    if hook := environment.get("SPECTRAMIND_TEST_HOOK"):
        importlib.import_module(hook)
    code = 0
    try:
        runpy.run_module("spectramind_fused", run_name="__main__")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
