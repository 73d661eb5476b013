"""Programs made with the old message library, re-enacted: the same order of calls on the sockets, the same
reads, the same ends. A program is chosen by the first argument."""

import binascii
import json
import os
import selectors
import socket
import sys
import threading
import time
import zlib

OK = 0xFF
CHUNK = 512 * 1024


class Rejected(Exception):
    """Nothing catches it: the thread of the connection dies, as in the library."""


class Connection:
    """One connection, which lives in a thread of its own."""

    def __init__(self, sock, remote=None, plugins=()):
        self.sock, self.remote, self.plugins = sock, remote, list(plugins)
        self.stopped = False
        self.lock = threading.RLock()
        self.selector = selectors.DefaultSelector()
        self.thread = threading.Thread(target=self.run, daemon=True)

    def write(self, data):
        data = bytearray([data]) if isinstance(data, int) else bytearray(data)
        left = len(data)
        while left > 0:
            left -= self.sock.send(data[-left:])

    def read(self, size):
        data = bytearray()
        while size > 0:
            part = self.sock.recv(size)
            if len(part) == 0:
                self.stopped = True
                return data + bytearray(4)
            data.extend(part)
            size -= len(part)
        return data

    def receive(self):
        try:
            with self.lock:
                size = int.from_bytes(self.read(4)[:4], "big")
                if size > 0xF0FFFFFF:
                    self.write(0x00)
                    return False
                if size == 0 and self.stopped:
                    return False
                self.write(OK)
                message = self.read(size)
                for plugin in reversed(self.plugins):
                    message = plugin[1](message)
                return message
        except OSError as e:
            self.stopped = True
            print("receive:", e, file=sys.stderr)
            return bytearray()

    def transmit(self, message):
        try:
            with self.lock:
                for plugin in self.plugins:
                    message = plugin[0](message)
                self.write(len(message).to_bytes(4, "big"))
                answer = self.read(1)
                if answer[0] != OK:
                    raise Rejected(answer)
                self.write(message)
        except OSError as e:
            self.stopped = True
            print("transmit:", e, file=sys.stderr)

    def run(self):
        if self.remote is not None:
            self.sock.connect(self.remote)
        self.write(OK)
        answer = self.read(1)
        if answer[0] != OK:
            print("refused", answer[0], flush=True)
            raise Rejected(answer)
        self.selector.register(self.sock, selectors.EVENT_READ)
        while not self.stopped:
            with self.lock:
                if self.selector.select(0.03):
                    message = self.receive()
                    if message is not False:
                        self.received(message)
                self.loop_pass()
        self.sock.close()
        self.selector.close()

    def received(self, message):
        pass

    def loop_pass(self):
        pass


class Boxes(Connection):
    """The chat's: what is sent and what came wait in lists."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.inbox, self.outbox, self.boxes = [], [], threading.Lock()

    def take(self, name):
        with self.boxes:
            taken = getattr(self, name)
            setattr(self, name, [])
            return taken

    def put(self, name, value):
        with self.boxes:
            getattr(self, name).append(value)

    def received(self, message):
        self.put("inbox", message.decode())

    def loop_pass(self):
        for message in self.take("outbox"):
            self.transmit(message.encode())


def dial(kind, host, port, timeout, plugins=()):
    sock = socket.socket()
    sock.settimeout(timeout)
    connection = kind(sock, (host, port), plugins)
    connection.thread.start()
    return connection


def chat(host, port, plugins=()):
    """The chat's client: `quit` is sent, then it ends."""
    connection = dial(Boxes, host, port, 3, plugins)

    def show():
        while True:
            for line in connection.take("inbox"):
                print(line, flush=True)
            time.sleep(0.03)

    threading.Thread(target=show, daemon=True).start()
    line = ""
    while line != "quit" and connection.thread.is_alive():
        line = sys.stdin.readline().rstrip("\n")
        connection.put("outbox", line)
    # The original sets the flag at once; the last line may be lost with it.
    connection.stopped = True
    connection.thread.join(10)


def serve(kind, connections, each_pass, joined, left, port=0):
    """The library's server: a list of connections that live."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen(5)
    print(listener.getsockname()[1], flush=True)
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    number = 0
    while True:
        if selector.select(0.03):
            sock, _ = listener.accept()
            number += 1
            connection = kind(sock)
            joined(number, connection)
            connection.thread.start()
            connections[number] = connection
        for key in list(connections):
            if not connections[key].thread.is_alive():
                left(key, connections.pop(key))
        each_pass()


def chat_server():
    connections = {}

    def spread(key, messages):
        for other, connection in connections.items():
            if other != key:
                for message in messages:
                    connection.put("outbox", "[%s] %s" % (key, message))

    def each_pass():
        for key, connection in list(connections.items()):
            spread(key, connection.take("inbox"))

    def joined(key, connection):
        print("[INFO] New connection", key, flush=True)
        spread(key, ["**joined the chat"])

    left = lambda key, connection: spread(key, ["**left the chat"])
    serve(Boxes, connections, each_pass, joined, left)


class Echo(Connection):
    def received(self, message):
        message = message.decode()
        if message == "QUIT":
            self.stopped = True
        else:
            self.transmit("Echo back: {0}".format(message).encode())


class FileServer(Connection):
    """The file transfer's server, at one connection."""

    def status(self, text):
        self.transmit(json.dumps({"status": text}).encode())

    def received(self, message):
        try:
            request = json.loads(message.decode())
            request["op"]
        except Exception:
            self.status("shutdown")
            self.stopped = True
            return
        if request["op"] == "upload":
            self.upload(request["msg"])
        elif request["op"] == "download":
            self.download(request)

    def upload(self, request):
        try:
            file = open(request["destination"], "wb")
        except IOError:
            self.status("failed")
            self.stopped = True
            return
        self.status("ok")
        total = 0
        while total < request["source_size"]:
            part = self.receive()
            file.write(part)
            total += len(part)
            if total >= request["source_size"]:
                # The original leaves this to the end of the program.
                file.close()
            self.status("ok")
        self.stopped = True

    def download(self, request):
        try:
            file = open(request["msg"]["source"], "rb")
        except IOError:
            self.status("failed")
            self.stopped = True
            return
        size = os.fstat(file.fileno()).st_size
        request["msg"]["source_size"] = size
        request["msg"]["chunk_size"] = CHUNK
        self.transmit(json.dumps(request).encode())
        answer = json.loads(self.receive().decode())
        if answer["status"] != "ok":
            self.stopped = True
            return
        total = 0
        while total < size:
            part = file.read(CHUNK)
            self.transmit(part)
            answer = json.loads(self.receive().decode())
            if answer["status"] != "ok":
                self.stopped = True
                return
            total += len(part)


class FileClient(Connection):
    """The file transfer's client: one operation, in the first pass of its loop."""

    def loop_pass(self):
        operation, source, destination = sys.argv[4:7]
        message = {"source": source, "destination": destination}
        if operation == "upload":
            self.upload(message)
        else:
            self.download(message)
        self.stopped = True

    def received(self, message):
        raise IOError("Unhandled transmission in client should not happen")

    def upload(self, message):
        file = open(message["source"], "rb")
        message["source_size"] = size = os.fstat(file.fileno()).st_size
        message["chunk_size"] = CHUNK
        self.transmit(json.dumps({"op": "upload", "msg": message}).encode())
        total, answer = 0, json.loads(self.receive().decode())
        while answer["status"] == "ok" and total < size:
            part = file.read(CHUNK)
            self.transmit(part)
            answer = json.loads(self.receive().decode())
            total += len(part)
        print("uploaded", total, answer["status"], flush=True)

    def download(self, message):
        self.transmit(json.dumps({"op": "download", "msg": message}).encode())
        answer = json.loads(self.receive().decode())
        if "status" in answer:
            print("downloaded 0", answer["status"], flush=True)
            return
        with open(answer["msg"]["destination"], "wb") as file:
            self.transmit(json.dumps({"status": "ok"}).encode())
            total = 0
            while total < answer["msg"]["source_size"]:
                part = self.receive()
                file.write(part)
                total += len(part)
                self.transmit(json.dumps({"status": "ok"}).encode())
        print("downloaded", total, "ok", flush=True)


ZLIB = (zlib.compress, lambda message: bytearray(zlib.decompress(message)))


def check(message):
    body, crc = message[:-4], message[-4:]
    if binascii.crc32(body).to_bytes(4, "big") != bytes(crc):
        raise ValueError("CRC")
    return body


CRC32 = (lambda message: bytes(message) + binascii.crc32(message).to_bytes(4, "big"), check)

if __name__ == "__main__":
    program = sys.argv[1]
    if program == "chat":
        chat(sys.argv[2], int(sys.argv[3]))
    elif program == "chat-with-plugins":
        chat(sys.argv[2], int(sys.argv[3]), [ZLIB, CRC32])
    elif program == "chat-server":
        chat_server()
    elif program == "echo-server":
        serve(Echo, {}, lambda: None, lambda *_: None, lambda *_: None)
    elif program == "file-server":
        serve(FileServer, {}, lambda: None, lambda *_: None, lambda *_: None)
    elif program == "file-member":
        # The server's side of the file transfer, as a member of a channel.
        member = dial(FileServer, sys.argv[2], int(sys.argv[3]), 60)
        print("ready", flush=True)
        member.thread.join()
    elif program == "file-client":
        dial(FileClient, sys.argv[2], int(sys.argv[3]), 60).thread.join()
