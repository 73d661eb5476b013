"""The client of the old file transfer pair: `D` or `U`, port, name, path. It reads with recv(2048)."""
import os, socket, sys

operation, port, name, path = sys.argv[1:]


def exactly(conn, count):
    data = b""
    while len(data) < count:
        piece = conn.recv(min(2048, count - len(data)))
        if not piece:
            sys.exit("the server closed the connection")
        data += piece
    return data


with socket.create_connection(("127.0.0.1", int(port))) as conn:
    conn.sendall(operation.encode() + name.encode().ljust(255, b"\0"))
    if operation == "D":
        if exactly(conn, 1) != b"T":
            sys.exit("there is no such file")
        left = int.from_bytes(exactly(conn, 8), "big")
        conn.sendall(b"T")
        with open(path, "wb") as file:
            while left > 0:
                piece = exactly(conn, min(2048, left))
                file.write(piece)
                left -= len(piece)
    else:
        if exactly(conn, 1) != b"T":
            sys.exit("refused")
        conn.sendall(os.path.getsize(path).to_bytes(8, "big"))
        if exactly(conn, 1) != b"T":
            sys.exit("no space")
        with open(path, "rb") as file:
            while piece := file.read(2048):
                conn.sendall(piece)
        while conn.recv(2048):
            pass
