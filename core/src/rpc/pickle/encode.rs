//! Values as a pickle of protocol 3, which every Python 3 reads.

use crate::rpc::arena::Kind;
use crate::rpc::value::Class;
use crate::rpc::write::{Buffer, NoRoom, Out};

/// Writes one value as one pickle into a buffer of the caller's.
#[derive(Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Pickler<'b> {
    out: Buffer<'b>,
}

impl<'b> Pickler<'b> {
    /// A pickle at the front of `buf`.
    ///
    /// # Errors
    /// [`NoRoom`].
    pub fn new(buf: &'b mut [u8]) -> Result<Self, NoRoom> {
        let mut out = Buffer::new(buf);
        out.put(&[0x80, 3])?;
        Ok(Self { out })
    }

    /// Ends the pickle after its one value; returns its length in bytes.
    ///
    /// # Errors
    /// [`NoRoom`].
    pub fn finish(mut self) -> Result<usize, NoRoom> {
        self.out.put(b".")?;
        Ok(self.out.len())
    }

    /// An instruction, a length of 4 bytes and so many bytes.
    fn counted(&mut self, opcode: u8, bytes: &[u8]) -> Result<(), NoRoom> {
        // Longer than that no buffer of ours is.
        let length = i32::try_from(bytes.len()).map_err(|_| NoRoom)?;
        self.out.put(&[opcode])?;
        self.out.put(&length.to_le_bytes())?;
        self.out.put(bytes)
    }
}

impl Out for Pickler<'_> {
    fn none(&mut self) -> Result<(), NoRoom> {
        self.out.put(b"N")
    }

    fn bool(&mut self, value: bool) -> Result<(), NoRoom> {
        self.out.put(&[if value { 0x88 } else { 0x89 }])
    }

    fn int(&mut self, value: i64) -> Result<(), NoRoom> {
        if let Ok(byte) = u8::try_from(value) {
            self.out.put(&[b'K', byte])
        } else if let Ok(word) = i32::try_from(value) {
            self.out.put(b"J")?;
            self.out.put(&word.to_le_bytes())
        } else {
            self.out.put(&[0x8A, 8])?;
            self.out.put(&value.to_le_bytes())
        }
    }

    fn float(&mut self, value: f64) -> Result<(), NoRoom> {
        self.out.put(b"G")?;
        self.out.put(&value.to_be_bytes())
    }

    fn bytes(&mut self, value: &[u8]) -> Result<(), NoRoom> {
        let Ok(length) = u8::try_from(value.len()) else { return self.counted(b'B', value) };
        self.out.put(&[b'C', length])?;
        self.out.put(value)
    }

    fn byte_array(&mut self, value: &[u8]) -> Result<(), NoRoom> {
        self.out.put(b"cbuiltins\nbytearray\n")?;
        self.bytes(value)?;
        self.out.put(&[0x85, b'R'])
    }

    fn str(&mut self, value: &str) -> Result<(), NoRoom> {
        self.counted(b'X', value.as_bytes())
    }

    fn begin(&mut self, kind: Kind, count: usize) -> Result<(), NoRoom> {
        match (kind, count) {
            (Kind::Tuple | Kind::Object, 0..=3) => Ok(()),
            (Kind::Tuple | Kind::Object, _) => self.out.put(b"("),
            (Kind::List, _) => self.out.put(b"]("),
            (Kind::Set, _) => self.out.put(b"cbuiltins\nset\n]("),
            (Kind::FrozenSet, _) => self.out.put(b"cbuiltins\nfrozenset\n]("),
            (Kind::Dict, _) => self.out.put(b"}("),
        }
    }

    fn end(&mut self, kind: Kind, count: usize) -> Result<(), NoRoom> {
        match (kind, count) {
            (Kind::Tuple | Kind::Object, 0) => self.out.put(b")"),
            (Kind::Tuple | Kind::Object, 1) => self.out.put(&[0x85]),
            (Kind::Tuple | Kind::Object, 2) => self.out.put(&[0x86]),
            (Kind::Tuple | Kind::Object, 3) => self.out.put(&[0x87]),
            (Kind::Tuple | Kind::Object, _) => self.out.put(b"t"),
            (Kind::List, _) => self.out.put(b"e"),
            (Kind::Set | Kind::FrozenSet, _) => self.out.put(&[b'e', 0x85, b'R']),
            (Kind::Dict, _) => self.out.put(b"u"),
        }
    }

    /// As a text: an old peer would import the class, and run what is in its module. An object goes out as a
    /// tuple of this text and its parts.
    fn class(&mut self, class: Class<'_>) -> Result<(), NoRoom> {
        let length = class.module.len() + 1 + class.name.len();
        self.out.put(b"X")?;
        self.out.put(&i32::try_from(length).map_err(|_| NoRoom)?.to_le_bytes())?;
        for part in [class.module, ".", class.name] {
            self.out.put(part.as_bytes())?;
        }
        Ok(())
    }

    /// As the old library sends it: the type, the instance, and the lines of the traceback. There are
    /// none, but they must be a list: the caller's `execute` joins them before it raises the error.
    fn error(&mut self, class: &str, message: &str) -> Result<(), NoRoom> {
        let known = KNOWN.contains(&class);
        let name = if known { class } else { "RuntimeError" };
        for _ in 0..2 {
            self.out.put(b"cbuiltins\n")?;
            self.out.put(name.as_bytes())?;
            self.out.put(b"\n")?;
        }
        if known {
            self.str(message)?;
        } else {
            // "class: message", in one text.
            let length = i32::try_from(class.len() + 2 + message.len()).map_err(|_| NoRoom)?;
            self.out.put(b"X")?;
            self.out.put(&length.to_le_bytes())?;
            for part in [class, ": ", message] {
                self.out.put(part.as_bytes())?;
            }
        }
        self.out.put(&[0x85, b'R', b']', 0x87])
    }
}

/// Exceptions that Python has and that may be made of one text.
const KNOWN: [&str; 14] = [
    "ArithmeticError",
    "ConnectionError",
    "Exception",
    "FileNotFoundError",
    "KeyError",
    "LookupError",
    "MemoryError",
    "NotImplementedError",
    "OSError",
    "PermissionError",
    "RuntimeError",
    "TimeoutError",
    "TypeError",
    "ValueError",
];
