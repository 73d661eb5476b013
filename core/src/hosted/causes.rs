//! An error and its causes as one line for people.

use std::error::Error;
use std::string::{String, ToString};

/// An error with its causes, from the outside in. Some errors of libraries show their cause and name
/// it as well: nothing is said twice.
#[must_use]
pub fn in_one_line(error: &(dyn Error + 'static)) -> String {
    let mut line = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let text = cause.to_string();
        if !line.ends_with(&text) {
            line = std::format!("{line}: {text}");
        }
        next = cause.source();
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::boxed::Box;
    use std::fmt;

    #[derive(Debug)]
    struct Layer(&'static str, Option<Box<Self>>);

    impl fmt::Display for Layer {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }
    }

    impl Error for Layer {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            self.1.as_deref().map(|cause| cause as _)
        }
    }

    #[test]
    fn a_cause_that_its_error_shows_is_said_once() {
        let cause = Layer("invalid digit", None);
        let shown = Layer("cannot read --port: invalid digit", Some(Box::new(cause)));
        let error = Layer("reading the command line", Some(Box::new(shown)));
        assert_eq!(in_one_line(&error), "reading the command line: cannot read --port: invalid digit");
    }
}
