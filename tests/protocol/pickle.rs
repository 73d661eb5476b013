//! Pickles: Python's own module is the judge of what is read and written; hostile ones build nothing,
//! run nothing and stay within the memory they were given.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};

use piman_core::rpc::pickle::{Assembler, Pickler, decode, head};
use piman_core::rpc::{DecodeError, Encode, Head, Memory, Slot, Value};
use proptest::prelude::*;

/// Memory for one message.
struct Room {
    slots: Vec<Slot>,
    stack: Vec<u32>,
    memo: Vec<u32>,
    text: Vec<u8>,
}

impl Room {
    fn new(n: usize) -> Self {
        Self { slots: vec![Slot::default(); n], stack: vec![0; n], memo: vec![0; n], text: vec![0; 4 * n] }
    }

    fn memory(&mut self) -> Memory<'_> {
        let Self { slots, stack, memo, text } = self;
        Memory { slots, stack, memo, text, depth_max: 64, weight_max: 1 << 20 }
    }
}

/// What the message says, as Python would print it.
fn read(message: &[u8]) -> Result<String, DecodeError> {
    decode(message, Room::new(4096).memory()).map(|value| value.to_string())
}

fn write(value: &dyn Encode) -> Vec<u8> {
    let mut buf = vec![0; 1 << 20];
    let mut out = Pickler::new(&mut buf).unwrap();
    value.encode(&mut out).unwrap();
    let n = out.finish().unwrap();
    buf.truncate(n);
    buf
}

/// A python3 with this program.
fn python(program: &str) -> Child {
    let mut python = Command::new("python3");
    python.args(["-c", program]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("python3 starts")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    text.as_bytes()
        .chunks(2)
        .map(|p| u8::from_str_radix(std::str::from_utf8(p).unwrap(), 16).unwrap())
        .collect()
}

/// Sends every value in every protocol, and wants it back as a pickle of ours.
const JUDGE: &str = r#"
import sys, pickle, math
shared = ["shared", 1]
values = [
    None, True, False, 0, 1, -1, 255, 256, 65535, 65536, -2**31, 2**31, 2**62, 2**63-1, -2**63,
    0.0, -0.0, 1.5, -1e300, 5e-324, float("inf"), float("-inf"),
    b"", b"a", b"\x00\xff\n\r\\'", bytes(range(256)) * 3, b"x" * 70000,
    "", "a", "\n\r\0\\'\"\x1a", "\u00e9\u20ac\U0001f600", "\\u0041", "x" * 70000, "\u00ff" * 300,
    (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), tuple(range(2000)), ((((),),),),
    [], [1], list(range(2500)), [[], [[]]], [None] * 1001,
    {}, {1: 2}, {"a": [1, {"b": (2, b"c")}]}, {i: str(i) for i in range(1500)},
    set(), {1, 2, 3}, {"a", b"b", 3.0, (1, 2)}, frozenset(), frozenset([1, 2]), set(range(1200)),
    [shared, shared, (shared,)], ("dup", "dup", b"dup", b"dup", b"dup"),
    (b"R", 17, 4294967295, (1, "two", [3.0]), {"key": b"word"}),
    (b"A", 0xAA, (None,)), (b"A", 0xAA, (True,)), (b"A", 3, ({"nested": {"x": {1, 2}}},)),
]
deep = []
for _ in range(60): deep = [deep]
values.append(deep)
values += [bytearray(), bytearray(b"\x00\xe9bytearray"), bytearray(b"long") * 100, {frozenset([1]): bytearray(b"a")}]
count = 0
for value in values:
    for protocol in range(6):
        for make in (pickle.dumps, pickle._dumps):
            print(make(value, protocol).hex(), flush=True)
            line = sys.stdin.readline().strip()
            back = pickle.loads(bytes.fromhex(line))
            want = value
            if not (type(back) is type(want) and back == want and repr(math.copysign(1, back) if isinstance(back, float) else 0) == repr(math.copysign(1, want) if isinstance(want, float) else 0)):
                print("WRONG", protocol, repr(want)[:200], repr(back)[:200], flush=True)
                sys.exit(1)
            count += 1
print("ALL", count, flush=True)
"#;

#[test]
#[cfg_attr(lacks = "python3", ignore = "needs python3")]
fn python_is_the_judge_of_every_type_in_every_protocol() {
    let mut child = python(JUDGE);
    let mut to = child.stdin.take().unwrap();
    let mut room = Room::new(200_000);
    let mut exchanged = 0;
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        if let Some(count) = line.strip_prefix("ALL ") {
            assert_eq!(count.parse(), Ok(exchanged));
            break;
        }
        assert!(!line.starts_with("WRONG"), "{line}");
        let message = unhex(&line);
        let value = decode(&message, room.memory());
        let value = value.unwrap_or_else(|e| panic!("{e}: {}", &line[..line.len().min(400)]));
        writeln!(to, "{}", hex(&write(&value))).unwrap();
        exchanged += 1;
    }
    assert!(child.wait().unwrap().success());
    assert!(exchanged > 700, "{exchanged}");
}

/// What the old library answers when a function fails, in every protocol.
const FAILURES: &str = r#"
import pickle, sys
class Trace:
    "Stands in for a traceback that can be pickled."
    def __init__(self, frames): self.frames = frames
class Own(Exception):
    def __init__(self, a, b): super().__init__(a, b); self.extra = {"a": [a]}
def failure(f):
    try: f()
    except Exception as e:
        return ((type(e), e, Trace([("file.py", 3, "f")])),)
def own(): raise Own("first", 2)
cases = [
    (lambda: int("x"), "ValueError: invalid literal for int() with base 10: 'x'"),
    (lambda: {}[5], "KeyError: 5"),
    (lambda: 1/0, "ZeroDivisionError: division by zero"),
    (lambda: open("/does/not/exist"), "FileNotFoundError: (2, 'No such file or directory', '/does/not/exist')"),
    (lambda: 1 + "", "TypeError: unsupported operand type(s) for +: 'int' and 'str'"),
    (own, "__main__.Own: ('first', 2)"),
]
for f, want in cases:
    for protocol in range(6):
        answer = (b"A", 7, failure(f))
        # The protocols of Python 2 carry the names of Python 2.
        name = want.replace("FileNotFoundError", "OSError") if protocol < 3 else want
        print(pickle.dumps(answer, protocol).hex() + " " + name, flush=True)
"#;

#[test]
#[cfg_attr(lacks = "python3", ignore = "needs python3")]
fn exceptions_become_errors_with_class_and_message() {
    let child = python(FAILURES);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text.lines().count(), 36);
    for line in text.lines() {
        let (message, want) = line.split_once(' ').unwrap();
        let message = unhex(message);
        let mut room = Room::new(4096);
        let value = decode(&message, room.memory()).unwrap();
        let got = value.fault().unwrap().to_string();
        assert_eq!(got, want, "{value}");
    }
}

/// Messages that are refused, whole or cut: which call each belongs to, and the error it reports.
const REFUSED: &str = r#"
import pickle, traceback
deep = 7
for _ in range(100): deep = [deep]
def failure():
    try: raise ValueError("no")
    except ValueError as e:
        lines = traceback.extract_tb(e.__traceback__)
        # The same object again and again takes one slot each time: more than the reader has.
        while len(lines) < 5000: lines.extend(lines[:1000])
        # The first protocols cannot carry the objects of a traceback.
        return (type(e), e, lines if protocol > 1 else [tuple(line) for line in lines])
cases = lambda: [
    ((b"R", 5, 77, (2**100,), {}), 0, "call 77"),
    ((b"R", 5, 77, (1, 2, 3, 2**100), {}), 0, "call 77"),
    ((b"R", 5, 77, (), {"key": -2**100}), 0, "call 77"),
    ((b"R", 2**100, 77, (1,), {}), 0, "call 77"),
    ((b"R", 5, 4294967295, (deep,), {}), 0, "call 4294967295"),
    ((b"R", 5, 77, ([None] * 5000,), {}), 0, "call 77"),
    ((b"R", 5, 77, (b"x" * 90000,), {}), 500, "call 77"),
    ((b"R", 5, 77, ("x" * 90000, 1), {"a": 1}), 500, "call 77"),
    ((b"A", 77, (2**100,)), 0, "answer 77"),
    ((b"A", 77, (deep,)), 0, "answer 77"),
    ((b"A", 77, ([None] * 5000,)), 0, "answer 77"),
    ((b"A", 77, (b"x" * 90000,)), 500, "answer 77"),
    ((b"A", 77, (failure(),)), 0, "answer 77 ValueError: no"),
    ((b"A", 77, (failure(),)), 800, "answer 77 ValueError: no"),
    ((b"A", 77, ({*range(5000)},)), 200, "answer 77"),
    ((b"Z", 77, (2**100,)), 0, "nothing"),
    ((b"R", 5, 2**32, (2**100,)), 0, "nothing"),
    ([b"x" * 90000], 500, "nothing"),
]
for protocol in range(6):
    for message, cut, want in cases():
        for make in (pickle.dumps, pickle._dumps):
            print((make(message, protocol)[:cut or None]).hex() + " " + want, flush=True)
"#;

#[test]
#[cfg_attr(lacks = "python3", ignore = "needs python3")]
fn what_is_refused_still_tells_which_call_it_belongs_to() {
    let child = python(REFUSED);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text.lines().count(), 18 * 12);
    for line in text.lines() {
        let (message, want) = line.split_once(' ').unwrap();
        let message = unhex(message);
        let beginning = message[..message.len().min(300)].escape_ascii();
        assert!(read(&message).is_err(), "{want}: not refused: {beginning}");
        let mut room = Room::new(4096);
        let got = match head(&message, room.memory()) {
            Some(Head::Call { retcode }) => format!("call {retcode}"),
            Some(Head::Answer { retcode, value }) => match value.and_then(Value::fault) {
                None => format!("answer {retcode}"),
                Some(fault) => format!("answer {retcode} {fault}"),
            },
            None => "nothing".into(),
        };
        assert_eq!(got, want, "{beginning}");
    }
}

#[test]
#[cfg_attr(lacks = "python3", ignore = "needs python3")]
fn our_errors_are_exceptions_to_python() {
    let failure = |class, message| {
        let answer = piman_core::rpc::Failure { class, message };
        hex(&write(&piman_core::rpc::Tuple(&[&answer])))
    };
    let mut child = python(
        "import pickle,sys\nfor l in sys.stdin:\n ((t, v, tb),) = pickle.loads(bytes.fromhex(l))\n assert t is type(v) and tb == []\n print(repr(v))",
    );
    let mut to = child.stdin.take().unwrap();
    writeln!(to, "{}\n{}", failure("ValueError", "not so"), failure("Busy", "é")).unwrap();
    drop(to);
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text, "ValueError('not so')\nRuntimeError('Busy: é')\n");
}

#[test]
fn hostile_pickles_build_nothing_and_run_nothing() {
    let marker = tempfile::tempdir().unwrap();
    let path = marker.path().join("ran");
    let command = format!("touch {}", path.display());
    // os.system(command), in the ways that Python's unpickler would run it.
    let run = [
        format!("cos\nsystem\n(V{command}\ntR."),
        format!("(V{command}\nios\nsystem\n."),
        format!("(cos\nsystem\nV{command}\no."),
        format!("cbuiltins\neval\n(V__import__('os').system('{command}')\ntR."),
        format!("\x63__builtin__\napply\n(cos\nsystem\n(V{command}\nttR."),
    ];
    for message in run {
        let mut room = Room::new(64);
        let value = decode(message.as_bytes(), room.memory()).unwrap();
        assert!(value.fault().is_some(), "{value}");
        assert!(matches!(value, Value::Object(_)), "{value}");
    }
    assert!(!path.exists());

    let cases: [(&[u8], DecodeError); 30] = [
        // Lists, dictionaries and objects that contain themselves, directly and through others.
        (b"]q\0h\0a.", DecodeError::Recursive),
        (b"]q\0]q\x01h\0ah\x01a.", DecodeError::Recursive),
        (b"]q\0(h\0t.", DecodeError::Malformed),
        (b"]q\0(h\0tah\0h\0a.", DecodeError::Recursive),
        (b"}q\0K\x01h\0s.", DecodeError::Recursive),
        (b"cx\ny\n)Rq\0h\0b.", DecodeError::Recursive),
        (b"h\0.", DecodeError::Malformed),
        (b"q\0.", DecodeError::Malformed),
        (b"Nr\xff\xff\xff\xff.", DecodeError::NoRoom),
        (b".", DecodeError::Malformed),
        (b"NN.", DecodeError::Malformed),
        (b"(.", DecodeError::Malformed),
        (b"N.N", DecodeError::Trailing),
        (b"a.", DecodeError::Malformed),
        (b"(K\x01d.", DecodeError::Malformed),
        (b"}(K\x01u.", DecodeError::Malformed),
        // Members of one kind put into a container of another: a dictionary would get a key without a value.
        (b"}K\x01a.", DecodeError::Malformed),
        (b"}(K\x01e.", DecodeError::Malformed),
        (b"}(K\x01\x90.", DecodeError::Malformed),
        (b")K\x01a.", DecodeError::Malformed),
        (b"]K\x01K\x02s.", DecodeError::Malformed),
        (b"](K\x01K\x02u.", DecodeError::Malformed),
        (b"\x8f(K\x01e.", DecodeError::Malformed),
        (b"(K\x01\x91K\x02a.", DecodeError::Malformed),
        (b"Pid\n.", DecodeError::Unsupported(b'P')),
        (b"\x82\x01.", DecodeError::Unsupported(0x82)),
        (b"\x97.", DecodeError::Unsupported(0x97)),
        (b"\x80\x06N.", DecodeError::Unsupported(0x80)),
        (b"X\x02\0\0\0\xc3\x28.", DecodeError::BadText),
        (b"\x8a\x09\0\0\0\0\0\0\0\0\x01.", DecodeError::BigInteger),
    ];
    for (message, error) in cases {
        match read(message) {
            Err(e) => assert_eq!(e, error, "{}", message.escape_ascii()),
            // A tuple that holds a list which nobody changes afterwards is fine.
            Ok(text) => assert_eq!((message, &*text), (&b"]q\0(h\0t."[..], "([],)")),
        }
    }
}

#[test]
fn what_unfolds_hugely_or_deeply_is_refused() {
    // A list of ten times the list before, thirty times: 10^30 values in 1 KiB.
    let mut laughs = b"]K\x01aq\0".to_vec();
    for i in 1..=30_u8 {
        laughs.extend(b"](");
        for _ in 0..10 {
            laughs.extend([b'h', i - 1]);
        }
        laughs.extend([b'e', b'q', i]);
    }
    laughs.extend(b"t.");
    laughs.splice(0..0, *b"(");
    assert_eq!(read(&laughs), Err(DecodeError::TooHeavy));
    let deep = [vec![b']'; 3000], vec![b'a'; 2999], b".".to_vec()].concat();
    assert_eq!(read(&deep), Err(DecodeError::TooDeep));
    let wide = [b"(".to_vec(), vec![b'N'; 5000], b"t.".to_vec()].concat();
    assert_eq!(read(&wide), Err(DecodeError::NoRoom));
    let long = [b"V".to_vec(), vec![0xE9; 9000], b"\n.".to_vec()].concat();
    assert_eq!(read(&long), Err(DecodeError::NoRoom));
}

/// Messages of every form, made by hand, so that they need no Python.
fn samples() -> Vec<Vec<u8>> {
    vec![
        b"\x80\x04\x95\x2a\0\0\0\0\0\0\0(C\x01RK\x07J\x78\x56\x34\x12K\x01\x8c\x03two]\x94(K\x03K\x04e\x87}\x94\x8c\x01kC\x02\xff\0st.".to_vec(),
        b"(c_codecs\nencode\np0\n(VA\np1\nVlatin1\np2\ntRp3\nI170\n(I01\nttp4\n.".to_vec(),
        b"\x80\x02cbuiltins\nset\nq\0]q\x01(K\x01K\x02e\x85q\x02Rq\x03.".to_vec(),
        b"\x80\x04\x8f\x94(K\x01K\x02\x90.".to_vec(),
        b"(dp0\nVkey\np1\nF1.5\nsVlong\n\x8a\x02\x39\x30s.".to_vec(),
        b"(lp0\nS'it\\'s'\naI5\naL6L\na.".to_vec(),
        b"\x80\x03cbuiltins\nValueError\nX\x02\0\0\0no\x85R}X\x01\0\0\0aK\x01sb.".to_vec(),
    ]
}

#[test]
fn samples_read_as_they_should() {
    let want = [
        "(b'R', 7, 305419896, (1, 'two', [3, 4]), {'k': b'\\xff\\x00'})",
        "(b'A', 170, (True,))",
        "{1, 2}",
        "{1, 2}",
        "{'key': 1.5, 'long': 12345}",
        "['it\\'s', 5, 6]",
        "<ValueError: no>",
    ];
    for (sample, want) in samples().iter().zip(want) {
        assert_eq!(read(sample).as_deref(), Ok(want));
    }
}

#[test]
fn truncated_at_every_byte_is_an_error() {
    for sample in samples() {
        for end in 0..sample.len() {
            assert!(read(&sample[..end]).is_err(), "{}", sample[..end].escape_ascii());
            let mut buf = [0; 256];
            let mut assembler = Assembler::new(&mut buf);
            assembler.spare()[..end].copy_from_slice(&sample[..end]);
            assembler.filled(end);
            assert_eq!(assembler.next_message(), Ok(None));
        }
    }
}

#[test]
fn memory_of_every_size_is_enough_or_refused() {
    for sample in samples() {
        let whole = read(&sample).unwrap();
        let mut enough = 0;
        for n in 0..64 {
            match decode(&sample, Room::new(n).memory()) {
                Ok(value) => {
                    assert_eq!(value.to_string(), whole);
                    enough += 1;
                }
                Err(e) => assert_eq!((e, enough), (DecodeError::NoRoom, 0)),
            }
        }
        assert!(enough > 0);
    }
}

proptest! {
    /// Bytes that look like pickles, mostly: instructions, and now and then anything.
    #[test]
    fn no_bytes_break_it(bytes in prop::collection::vec(
        prop_oneof![
            4 => prop::sample::select(&b"(.012NRabd}elo]st)uaKhqUC\x80\x81\x85\x86\x87\x88\x8c\x8f\x90\x91\x92\x93\x94\x95"[..]),
            1 => any::<u8>(),
        ], 0..200))
    {
        let _ = head(&bytes, Room::new(64).memory());
        if let Ok(value) = decode(&bytes, Room::new(256).memory()) {
            let again = write(&value);
            prop_assert!(decode(&again, Room::new(4096).memory()).is_ok() || value.fault().is_some());
        }
        let mut buf = [0; 64];
        let mut assembler = Assembler::new(&mut buf);
        for chunk in bytes.chunks(7) {
            let spare = assembler.spare();
            let n = chunk.len().min(spare.len());
            spare[..n].copy_from_slice(&chunk[..n]);
            assembler.filled(n);
            while let Ok(Some(message)) = assembler.next_message() {
                prop_assert!(message.ends_with(b"."));
            }
        }
    }

    /// One byte of a real message changed.
    #[test]
    fn no_changed_byte_breaks_it(which in 0..7_usize, at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut sample = samples()[which].clone();
        let at = at.index(sample.len());
        sample[at] = byte;
        if let Ok(value) = decode(&sample, Room::new(256).memory()) {
            let _ = value.to_string();
        }
    }
}
