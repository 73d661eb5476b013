//! The head of an answer.

use std::fmt::Write as _;
use std::time::SystemTime;

use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimePrinter;

use super::range::Part;

/// What a status is called.
const fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        206 => "Partial Content",
        400 => "Bad Request",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        413 => "Content Too Large",
        414 => "URI Too Long",
        416 => "Range Not Satisfiable",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        503 => "Service Unavailable",
        505 => "HTTP Version Not Supported",
        _ => "Error",
    }
}

/// An answer without its content.
#[derive(Debug)]
pub(super) struct Head(String);

impl Head {
    /// `length`: of the content, in bytes, whether it is sent or not.
    pub(super) fn new(status: u16, length: u64, keep_alive: bool) -> Self {
        let mut head = Self(format!("HTTP/1.1 {status} {}\r\n", reason(status)));
        head.date("Date", SystemTime::now());
        head.field("Server", "piman");
        head.field("Content-Length", &length.to_string());
        head.field("Connection", if keep_alive { "keep-alive" } else { "close" });
        head
    }

    /// The head of an error, and its text.
    pub(super) fn error(status: u16, text: &str, keep_alive: bool) -> (Self, String) {
        let text = format!("{text}\n");
        let mut head = Self::new(status, text.len() as u64, keep_alive);
        head.field("Content-Type", "text/plain; charset=utf-8");
        match status {
            405 => head.field("Allow", "GET, HEAD"),
            503 => head.field("Retry-After", "1"),
            _ => {}
        }
        (head, text)
    }

    pub(super) fn field(&mut self, name: &str, value: &str) {
        // Writing to a string does not fail.
        let _ = write!(self.0, "{name}: {value}\r\n");
    }

    pub(super) fn date(&mut self, name: &str, at: SystemTime) {
        let text = Timestamp::try_from(at)
            .ok()
            .and_then(|at| DateTimePrinter::new().timestamp_to_rfc9110_string(&at).ok());
        if let Some(text) = text {
            self.field(name, &text);
        }
    }

    /// `part` of `length` bytes is sent; `None`: none is.
    pub(super) fn content_range(&mut self, part: Option<Part>, length: u64) {
        let value = match part {
            Some(Part { offset, length: n }) => {
                format!("bytes {offset}-{}/{length}", offset.saturating_add(n).saturating_sub(1))
            }
            None => format!("bytes */{length}"),
        };
        self.field("Content-Range", &value);
    }

    pub(super) fn bytes(mut self) -> Vec<u8> {
        self.0.push_str("\r\n");
        self.0.into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    #[test]
    fn heads() {
        let mut head = Head::new(206, 5, true);
        head.date("Last-Modified", UNIX_EPOCH + Duration::from_secs(784_111_777));
        head.content_range(Some(Part { offset: 3, length: 5 }), 10);
        let text = String::from_utf8(head.bytes()).unwrap();
        assert!(text.starts_with("HTTP/1.1 206 Partial Content\r\nDate: "), "{text}");
        for line in [
            "Content-Length: 5",
            "Connection: keep-alive",
            "Last-Modified: Sun, 06 Nov 1994 08:49:37 GMT",
            "Content-Range: bytes 3-7/10",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}: {text}");
        }
        assert!(text.ends_with("\r\n\r\n"));
        let (mut head, text) = Head::error(416, "no", false);
        head.content_range(None, 10);
        let head = String::from_utf8(head.bytes()).unwrap();
        assert!(head.contains("Content-Range: bytes */10\r\n") && head.contains("Content-Length: 3\r\n"));
        assert_eq!(text, "no\n");
    }
}
