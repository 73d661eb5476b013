//! A small HTTP/1.1 server for files: GET and HEAD, ranges, connections that stay open.
//!
//! `httparse` reads the head of a request; the bytes of a file go by sendfile, with the limits of all other services.
//! `hyper` and `axum` were looked at first: they bring nine and twenty crates, and a body goes through their buffers.
//!
//! | module | what lives there |
//! |---|---|
//! | [`request`] | from the bytes of a head to what is asked for |
//! | [`range`] | which part of a file that is |
//! | [`response`] | the head of an answer |
//! | [`serve`] | connections: time-outs, and the bytes |

pub mod range;
pub mod request;
pub mod response;
pub mod serve;

pub use serve::{Body, Ended, Files, Limits, Refusal, run};
