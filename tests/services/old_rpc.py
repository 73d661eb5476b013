"""An old peer: the calls of TCPTalks as its library makes and answers them.

Messages are pickles one after another. One thread per connection reads 256 bytes at a time, looks by halving for
the end of the first message, and runs the called functions itself; the others call and wait. A server of one
client closes its listener once it has accepted, and opens it again after a wrong password; a server of many asks
each client for its id. Both send nothing before the login and wait one second for it.
"""

import json
import pickle
import queue
import random
import socket
import sys
import threading
import time
import traceback

LOGIN, ID = 0xAA, 0xBB
NOT_WHOLE = (EOFError, pickle.UnpicklingError, AttributeError)


class LoginError(Exception):
    pass


def first_of(data):
    """The first message of `data` and what follows it."""
    low, high = 0, len(data)
    while high - low > 1:
        middle = (low + high) // 2
        try:
            pickle.loads(data[:middle])
        except NOT_WHOLE:
            low = middle
        else:
            high = middle
    return pickle.loads(data[:high]), data[high:]


class Peer:
    def __init__(self, sock, protocol, functions, admitted):
        self.sock, self.protocol, self.functions, self.admitted = sock, protocol, functions, admitted
        self.sock.settimeout(1)
        self.sending, self.table = threading.RLock(), threading.RLock()
        self.queues, self.stop = {}, threading.Event()
        self.listener = threading.Thread(target=self.listen, daemon=True)
        self.listener.start()

    def put(self, message):
        data = pickle.dumps(message, self.protocol)
        with self.sending:
            sent = 0
            while sent < len(data):
                sent += self.sock.send(data[sent:])

    def listen(self):
        data = b""
        while not self.stop.is_set():
            try:
                more = self.sock.recv(256)
            except socket.timeout:
                continue
            except OSError:
                more = b""
            if not more:
                self.stop.set()
                self.sock.close()
                return
            data += more
            try:
                while True:
                    message, data = first_of(data)
                    self.process(message)
            except NOT_WHOLE:
                continue
            except OSError:
                self.stop.set()
                return

    def process(self, message):
        if message[0] == b"R":
            opcode, retcode, args, kwargs = message[1:]
            try:
                if not self.admitted:
                    raise LoginError("not logged in")
                if opcode not in self.functions:
                    raise KeyError("opcode {} is not bound".format(opcode))
                output = self.functions[opcode](*args, **kwargs)
            except Exception:
                kind, value, trace = sys.exc_info()
                output = (kind, value, traceback.extract_tb(trace))
            self.put((b"A", retcode, (output,)))
        elif message[0] == b"A":
            retcode, args = message[1:]
            self.queue(retcode).put(args)

    def queue(self, retcode):
        with self.table:
            return self.queues.setdefault(retcode, queue.Queue())

    def poll(self, retcode, timeout):
        assert threading.current_thread() is not self.listener
        try:
            output = self.queue(retcode).get(True, timeout)
        except queue.Empty:
            raise TimeoutError("no answer") from None
        with self.table:
            del self.queues[retcode]
        return output if len(output) > 1 else output[0]

    def execute(self, opcode, *args, timeout=5, sent=None, **kwargs):
        retcode = random.randint(0, 0xFFFFFFFF)
        self.put((b"R", opcode, retcode, args, kwargs))
        if sent:
            sent.set()
        output = self.poll(retcode, timeout)
        if isinstance(output, tuple) and isinstance(output[0], type) and issubclass(output[0], Exception):
            kind, value, trace = output
            raise kind("{}\n{}".format(value, "".join(traceback.format_list(trace))))
        return output

    def disconnect(self):
        self.stop.set()
        if self.listener is not threading.current_thread():
            self.listener.join()
        self.sock.close()


def listener(port):
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", port))
    sock.listen(1)
    return sock


def admit(peer, password):
    given = peer.poll(LOGIN, 1)
    peer.admitted = password in (None, given)
    peer.put((b"A", LOGIN, (peer.admitted,)))
    return peer.admitted


def serve_one(first, password, protocol, functions):
    """The server of one client. Whoever does not log in within a second ends the program."""
    port = first.getsockname()[1]
    while True:
        first = first or listener(port)
        first.settimeout(60)
        sock = first.accept()[0]
        first.close()
        first = None
        peer = Peer(sock, protocol, functions, False)
        if admit(peer, password):
            return peer
        peer.disconnect()
        time.sleep(1)


def serve_many(first, password, protocol, functions, asked):
    """The server of many clients; its `connect` fails where a client does not log in, or leaves before it is
    asked for its id."""
    first.settimeout(60)
    peer = Peer(first.accept()[0], protocol, functions, True)
    if not admit(peer, password):
        raise LoginError("bad password")
    try:
        peer.id = peer.execute(ID, timeout=1, sent=asked)
    except TimeoutError:
        peer.id = None
    return peer


def join(port, password, protocol, functions):
    peer = Peer(socket.create_connection(("127.0.0.1", port)), protocol, functions, False)
    peer.put((b"A", LOGIN, (password,)))
    peer.admitted = peer.poll(LOGIN, 1)
    if not peer.admitted:
        peer.disconnect()
        raise LoginError("login failed")
    return peer


def say(*words):
    print(*words, flush=True)


def sample(n):
    """An argument that is another one for each number; the other side makes the same."""
    kinds = [n, -n, n * 2**33, n / 8, "t\u00e9xt %d" % n, b"%d\x00\xff" % n, [n, (n, None)], {"n": n}, {n, -1}, True]
    return kinds[n % len(kinds)] if n % 500 else "x" * 5000


def same(a, b):
    """Whether two values are equal and of the same types all the way down: True is not 1, 1 is not 1.0."""
    if type(a) is not type(b):
        return False
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b))
    return a == b


def fail(n):
    raise ValueError("no %d" % n)


def many_calls(peer, count, threads):
    """Calls of many threads at once; every answer is looked at."""
    wrong, lock = [], threading.Lock()

    def some(start):
        for n in range(start, count, threads):
            try:
                want = (2 * n + 1, sample(n))
                got = peer.execute(2, n, payload=sample(n), timeout=60) if n % 2 else peer.execute(2, n, sample(n), timeout=60)
                if not same(got, want):
                    with lock:
                        wrong.append((n, repr(got)[:200], repr(want)[:200]))
            except Exception as e:
                with lock:
                    wrong.append((n, repr(e)[:500]))

    workers = [threading.Thread(target=some, args=(i,)) for i in range(threads)]
    [w.start() for w in workers]
    [w.join() for w in workers]
    return wrong


def main():
    options = json.loads(sys.argv[1])
    password, protocol = options.get("password"), options["protocol"]
    finished, asked = threading.Event(), threading.Event()

    def echo(*args):
        # A client may make one call and leave; it is not to overtake the question for its id, which another
        # thread sends. So a client that has the result has had the question before.
        assert role != "many" or asked.wait(60), "the client has not been asked for its id"
        return list(args)

    functions = {
        1: echo,
        2: lambda n, payload: (2 * n + 1, payload),
        3: fail,
        4: lambda: finished.set(),
        7: lambda **kwargs: kwargs,
        ID: lambda: "OLDOLD",
    }
    role = options["role"]
    if role == "client":
        try:
            peer = join(options["port"], password, protocol, functions)
        except LoginError:
            return say("refused")
        say("in")
    else:
        first = listener(options.get("port", 0))
        say("port", first.getsockname()[1])
        if role == "one":
            peer = serve_one(first, password, protocol, functions)
        else:
            peer = serve_many(first, password, protocol, functions, asked)
        say("in", getattr(peer, "id", ""))
    calls = options.get("calls", [])
    if options.get("large"):
        calls += [[7, ["x" * options["large"]]], [ID, []]]
    for opcode, args in calls:
        try:
            say("result", json.dumps(peer.execute(opcode, *args, timeout=30)))
        except Exception as e:
            say("error", type(e).__name__, str(e).split("\n")[0])
    if options.get("count"):
        wrong = many_calls(peer, options["count"], options["threads"])
        say("wrong", len(wrong), wrong[:3])
    if options.get("until") == "told":
        # The other side calls function 4 when it has made all its calls.
        assert finished.wait(300), "the other side has not finished"
        time.sleep(0.1)
        peer.disconnect()
    else:
        assert peer.stop.wait(60), "the other side does not close"
    say("end")


main()
