//! Python's pickles, as the old peers send them: protocols 0 to 5, read into plain values.
//!
//! | file | what lives there |
//! |---|---|
//! | `opcode` | the instructions and the form of their arguments |
//! | `scan` | where a message ends in a stream, [`Assembler`] |
//! | `decode` | a whole message into values, [`decode`]; what can be known of one that is refused, [`head`] |
//! | `text` | numbers and strings of the text protocols |
//! | `float` | numbers in decimal, without the tables of the standard library |
//! | `encode` | values as protocol 3, [`Pickler`] |
//!
//! A pickle is a program. This decoder follows only what builds plain values; a class is a name, an
//! instance a note of what it was to be made of, and nothing is ever imported, called or built.

mod decode;
mod encode;
mod float;
mod opcode;
mod scan;
mod text;

pub use decode::{decode, head};
pub use encode::Pickler;
pub use scan::{Assembler, Scanner};
