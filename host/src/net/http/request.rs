//! From the bytes of a request's head to what is asked for. Total: bytes of any kind are a request, an error with its
//! status, or not whole yet.

use httparse::{EMPTY_HEADER, Status};

/// The longest head that is read, in bytes.
pub const HEAD_MAX: usize = 4096;
/// The most header fields.
const FIELDS_MAX: usize = 32;

/// What can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// The file.
    Get,
    /// What is known of it.
    Head,
}

/// A request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// What for.
    pub method: Method,
    /// The path without what follows a `?`, with its percent signs decoded; it begins with `/`.
    pub path: String,
    /// The value of `Range`.
    pub range: Option<String>,
    /// The value of `If-Range`.
    pub if_range: Option<String>,
    /// Whether another request may follow.
    pub keep_alive: bool,
}

/// A head that cannot be answered with a file; the connection ends after the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bad {
    /// The status of the answer.
    pub status: u16,
    /// Why.
    pub text: &'static str,
}

const fn bad(status: u16, text: &'static str) -> Bad {
    Bad { status, text }
}

impl Request {
    /// Reads a head, and how many bytes it has; `None`: it is not whole yet.
    ///
    /// # Errors
    /// [`Bad`] if it is none, or asks for something else than a file.
    pub fn parse(bytes: &[u8]) -> Result<Option<(Self, usize)>, Bad> {
        let mut fields = [EMPTY_HEADER; FIELDS_MAX];
        let mut head = httparse::Request::new(&mut fields);
        let length = match head.parse(bytes) {
            Ok(Status::Complete(length)) => length,
            Ok(Status::Partial) if bytes.len() < HEAD_MAX => return Ok(None),
            Ok(Status::Partial) if bytes.contains(&b'\n') => return Err(bad(431, "the head is too long")),
            Ok(Status::Partial) => return Err(bad(414, "the path is too long")),
            Err(httparse::Error::TooManyHeaders) => return Err(bad(431, "too many header fields")),
            Err(httparse::Error::Version) => return Err(bad(505, "only HTTP/1.0 and 1.1 are answered")),
            Err(_) => return Err(bad(400, "this is no request")),
        };
        let method = match head.method {
            Some("GET") => Method::Get,
            Some("HEAD") => Method::Head,
            _ => return Err(bad(405, "only GET and HEAD are answered")),
        };
        let is_new = head.version == Some(1);
        let fields = Fields(head.headers);
        if is_new && fields.all("host").count() != 1 {
            return Err(bad(400, "the header field Host is missing, or there twice"));
        }
        // What follows would be taken for the next request otherwise.
        let body = fields.get("content-length").is_some_and(|value| value != "0");
        if body || fields.get("transfer-encoding").is_some() {
            return Err(bad(413, "a request for a file has no content"));
        }
        let path = path(head.path.unwrap_or_default())?;
        let connection = fields.get("connection").unwrap_or_default().to_ascii_lowercase();
        let says = |word: &str| connection.split(',').any(|other| other.trim() == word);
        let keep_alive = if is_new { !says("close") } else { says("keep-alive") };
        let owned = |name: &str| fields.get(name).map(str::to_owned);
        let request = Self { method, path, range: owned("range"), if_range: owned("if-range"), keep_alive };
        Ok(Some((request, length)))
    }
}

struct Fields<'a>(&'a [httparse::Header<'a>]);

impl<'a> Fields<'a> {
    fn all(&self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        self.0.iter().filter(move |field| field.name.eq_ignore_ascii_case(name)).map(|field| field.value)
    }

    /// The first one; what is no text counts as empty.
    fn get(&self, name: &'a str) -> Option<&'a str> {
        self.all(name).next().map(|value| std::str::from_utf8(value).map_or("", str::trim))
    }
}

/// The path of a target: `/PATH?QUERY`, or the same behind `http://HOST`.
fn path(target: &str) -> Result<String, Bad> {
    let path = match target.get(..7).filter(|start| start.eq_ignore_ascii_case("http://")) {
        Some(_) => {
            let rest = target.get(7..).unwrap_or_default();
            rest.find('/').and_then(|at| rest.get(at..)).unwrap_or("/")
        }
        None => target,
    };
    let path = path.split(['?', '#']).next().unwrap_or_default();
    if !path.starts_with('/') {
        return Err(bad(400, "the path does not begin with a /"));
    }
    decode(path).ok_or(bad(400, "the path has percent signs without two digits, or is no text"))
}

/// Replaces `%` and two hexadecimal digits by the byte that they say.
fn decode(path: &str) -> Option<String> {
    let mut bytes = path.bytes();
    let mut decoded = Vec::with_capacity(path.len());
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            decoded.push(byte);
            continue;
        }
        let mut digit = || char::from(bytes.next()?).to_digit(16).and_then(|n| u8::try_from(n).ok());
        decoded.push(digit()? << 4 | digit()?);
    }
    String::from_utf8(decoded).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(head: &str) -> Result<Option<Request>, Bad> {
        let with_host = head.replacen("\r\n", "\r\nHost: a\r\n", 1);
        Ok(Request::parse(with_host.as_bytes())?.map(|(request, length)| {
            assert_eq!(length, with_host.len());
            request
        }))
    }

    #[test]
    fn what_is_asked_for() {
        let path = |target: &str| request(&format!("GET {target} HTTP/1.1\r\n\r\n")).map(|r| r.unwrap().path);
        for (target, path_of) in [
            ("/boot.img", "/boot.img"),
            ("//a//b", "//a//b"),
            ("/a%20b%2Fc?d=%zz#e", "/a b/c"),
            ("/%2e%2E/secret", "/../secret"),
            ("http://host:80/a?b", "/a"),
            ("HTTP://host", "/"),
            ("/%c3%a9", "/\u{e9}"),
        ] {
            assert_eq!(path(target).as_deref(), Ok(path_of), "{target}");
        }
        for target in ["*", "boot.img", "/%", "/%2", "/%g0", "/%ff", "https://host/a"] {
            assert_eq!(path(target).map_err(|e| e.status), Err(400), "{target}");
        }
        let fields = "RANGE: bytes=0-1 \r\nIf-Range: \"x\"\r\n";
        let asked = request(&format!("HEAD / HTTP/1.1\r\n{fields}\r\n")).unwrap().unwrap();
        assert_eq!((asked.method, asked.range.as_deref()), (Method::Head, Some("bytes=0-1")));
        assert_eq!(asked.if_range.as_deref(), Some("\"x\""));
    }

    #[test]
    fn connections_that_stay_open() {
        let keeps = |version: &str, field: &str| {
            request(&format!("GET / HTTP/{version}\r\n{field}\r\n")).unwrap().unwrap().keep_alive
        };
        assert!(keeps("1.1", ""));
        assert!(!keeps("1.1", "Connection: TE, Close\r\n"));
        assert!(!keeps("1.0", ""));
        assert!(keeps("1.0", "Connection: Keep-Alive\r\n"));
    }

    #[test]
    fn what_is_no_request_for_a_file() {
        for (head, status) in [
            ("POST / HTTP/1.1\r\n\r\n", 405),
            ("BREW / HTTP/1.1\r\n\r\n", 405),
            ("GET / HTTP/2.0\r\n\r\n", 505),
            ("GET /\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nContent-Length: 5\r\n\r\n", 413),
            ("GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", 413),
            ("GET / HTTP/1.1\r\nHost: b\r\n\r\n", 400),
            ("\u{7f}\0\u{1}\r\n\r\n", 400),
        ] {
            assert_eq!(request(head).unwrap_err().status, status, "{head:?}");
        }
        let many = "A: b\r\n".repeat(FIELDS_MAX);
        assert_eq!(request(&format!("GET / HTTP/1.1\r\n{many}\r\n")).unwrap_err().status, 431);
        assert_eq!(Request::parse(b"GET / HTTP/1.1\r\n\r\n").unwrap_err().status, 400, "no Host");
        assert!(Request::parse(b"GET / HTTP/1.0\r\n\r\n").is_ok());
        for (head, status) in [("GET /".to_owned(), 414), ("GET / HTTP/1.1\r\nA: ".to_owned(), 431)] {
            let long = format!("{head}{}", "a".repeat(HEAD_MAX - head.len()));
            assert_eq!(Request::parse(long.as_bytes()).unwrap_err().status, status);
            assert_eq!(Request::parse(&long.as_bytes()[..HEAD_MAX - 1]), Ok(None));
        }
        let whole = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        for cut in 0..whole.len() {
            assert_eq!(Request::parse(&whole[..cut]), Ok(None), "{cut}");
        }
    }
}
