//! The protected login between our own peers, and the records in which everything after it travels (feature
//! `rpc-secure`).
//!
//! | file | what lives there |
//! |---|---|
//! | `pake` | CPace: a key from a password, without a way to guess the password from what was sent |
//! | `hello` | the first message of both sides, [`Hello`] |
//! | `login` | both sides of the login as pure steps, [`Client`] and [`Server`] |
//! | `record` | records: what is sealed, in which order, and where it ends, [`Inbox`] and [`Outbox`] |
//! | `drive` | the client's login and the records over a byte stream, [`login`] and [`Protected`] |
//!
//! | from | bytes | |
//! |---|---|---|
//! | client | [`Hello`] | versions, codec, name, its share of the key |
//! | server | [`Hello`], or [`FIRST`], 0 and a [`Status`] that refuses | the same of the server |
//! | client | 32 bytes | proof that it has the key |
//! | server | a [`Status`] and 32 bytes | proof that it has the key, too, and whether the client may stay |
//!
//! Both proofs cover both hellos, byte for byte: nobody between the two can change a version or a name. The client
//! proves first, so who only dials a server learns nothing; who is dialled in place of the server can try one
//! password for each dial, and the client notices it. Nothing that is sent can be used to try passwords later.
//!
//! After the login each side sends records ([`Outbox`]), until the last one says that it is the last.

mod drive;
mod hello;
mod login;
mod pake;
mod record;

pub use drive::{Buffers, Protected, ProtectedError, SecureError, login};
pub use hello::{
    FIRST, FLAG_ASKED, FLAG_PASSWORD, HELLO_MAX, HELLO_MIN, Hello, NAME_MAX, VERSION, hello_length,
};
pub use login::{Client, END_LENGTH, Keys, LoginFault, PROOF_LENGTH, RANDOM_LENGTH, Server, Status, Terms};
pub use record::{HEADER, Inbox, OVERHEAD, Opened, Outbox, RECORD_MAX, RECORD_MIN, RecordError, TAG};
