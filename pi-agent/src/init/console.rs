//! Plain lines on the console: `piman:    1.250 waiting for /dev/mmcblk0`. Nothing here
//! fails or panics: a Pi without a console is installed all the same.

use std::fmt;
use std::fs::File;
use std::io::Write;
use std::time::Instant;

use rustix::fs::{Mode, OFlags};

/// Where lines go, and since when their seconds count.
pub struct Console {
    out: Box<dyn Write + Send>,
    start: Instant,
}

impl Console {
    /// `/dev/console`, or standard error if it cannot be opened.
    #[must_use]
    pub fn open() -> Self {
        // Without O_NOCTTY a session leader would get the console as its controlling terminal,
        // and the installed system's own init could not take it any more.
        let flags = OFlags::WRONLY | OFlags::NOCTTY | OFlags::CLOEXEC;
        let out: Box<dyn Write + Send> = match rustix::fs::open("/dev/console", flags, Mode::empty()) {
            Ok(fd) => Box::new(File::from(fd)),
            Err(_) => Box::new(std::io::stderr()),
        };
        Self::to(out)
    }

    /// Lines into anything that can be written to.
    #[must_use]
    pub fn to(out: Box<dyn Write + Send>) -> Self {
        Self { out, start: Instant::now() }
    }

    /// Writes one line. Several lines of text become several lines.
    pub fn write_line(&mut self, text: impl fmt::Display) {
        let seconds = self.start.elapsed().as_secs_f64();
        let mut block = String::new();
        for line in text.to_string().lines() {
            let line: String = line.chars().map(piman_core::text::shown_or_space).collect();
            block.push_str(&format!("piman: {seconds:8.3} {}\n", line.trim_end()));
        }
        // One write, so that the kernel's own messages do not come between.
        let _ = self.out.write_all(block.as_bytes());
        let _ = self.out.flush();
    }
}

impl fmt::Debug for Console {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Console").field("start", &self.start).finish_non_exhaustive()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    /// Keeps what was written, for tests to look at.
    #[derive(Clone, Default)]
    pub(in crate::init) struct Kept(Arc<Mutex<Vec<u8>>>);

    impl Kept {
        pub(in crate::init) fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    impl Write for Kept {
        fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(buf)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// A console that fails on every write.
    struct Broken;

    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::BrokenPipe.into())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Err(std::io::ErrorKind::BrokenPipe.into())
        }
    }

    #[test]
    fn lines_have_a_prefix_seconds_and_no_control_characters() {
        let kept = Kept::default();
        Console::to(Box::new(kept.clone())).write_line("one\ntwo\u{7} \u{1b}[1m\r\n");
        let text = kept.text();
        let lines: Vec<_> = text.split('\n').collect();
        assert_eq!(lines.len(), 3, "{text:?}");
        for (line, end) in lines.iter().zip(["one", "two   [1m"]) {
            let rest = line.strip_prefix("piman: ").unwrap();
            let (seconds, said) = rest.trim_start().split_once(' ').unwrap();
            assert!(seconds.parse::<f64>().unwrap() >= 0.0 && said == end, "{line:?}");
        }
    }

    #[test]
    fn a_console_that_fails_is_no_matter() {
        Console::to(Box::new(Broken)).write_line("nobody hears this");
    }
}
