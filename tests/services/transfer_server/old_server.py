"""The server of the old file transfer pair: a folder, and the port that it takes is printed.

It reads with recv(2048) until it has as many bytes as it expects, and never asks whether there will be any more: at
the end of a connection in the midst of something it goes round in circles for ever. To an operation that it does not
know it answers nothing and expects more.
"""
import os, shutil, socket, sys, threading

folder = sys.argv[1]
busy, lock = set(), threading.Lock()


def say(*words):
    print(*words, flush=True)


def exactly(conn, count):
    data, nothing = b"", 0
    while len(data) < count:
        piece = conn.recv(min(2048, count - len(data)))
        data += piece
        # The original has nothing like this. What it would do until somebody ends it is reported instead.
        nothing += not piece
        if nothing > 10_000:
            say("spins")
            raise SystemExit
    return data


def download(conn, name):
    path = os.path.join(folder, name)
    if name in busy or not os.path.exists(path):
        conn.sendall(b"F" + (0).to_bytes(8, "big"))
        return
    size = os.path.getsize(path)
    conn.sendall(b"T" + size.to_bytes(8, "big"))
    if exactly(conn, 1) != b"T":
        return
    with open(path, "rb") as file:
        while piece := file.read(2048):
            conn.sendall(piece)


def upload(conn, name):
    path = os.path.join(folder, name)
    with lock:
        taken = name in busy or os.path.exists(path)
        if not taken:
            busy.add(name)
    if taken:
        conn.sendall(b"F")
        return
    conn.sendall(b"T")
    size = int.from_bytes(exactly(conn, 8), "big")
    if size > shutil.disk_usage(folder).free:
        conn.sendall(b"F")
        return
    conn.sendall(b"T")
    with open(path, "wb") as file:
        left = size
        while left > 0:
            piece = exactly(conn, min(2048, left))
            file.write(piece)
            left -= len(piece)
    busy.discard(name)


def serve(conn):
    request = exactly(conn, 256)
    operation, name = request[:1], request[1:].decode().strip("\0").strip()
    say(operation.decode(), name)
    if operation == b"D":
        download(conn, name)
    elif operation == b"U":
        upload(conn, name)
    else:
        exactly(conn, 1 << 62)
    conn.close()


listener = socket.create_server(("127.0.0.1", 0), backlog=100)
say(listener.getsockname()[1])
while True:
    conn, _ = listener.accept()
    threading.Thread(target=serve, args=(conn,), daemon=True).start()
