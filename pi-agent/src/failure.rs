//! Why an installation failed: what was being done, whose fault it is, and so whether
//! trying again can help.

use std::fmt;

use piman_core::hosted::causes::in_one_line;
use piman_core::install::Stage;

/// Whose fault it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The connection or the server: passing.
    Network,
    /// The archive or the image that was sent is damaged or cannot be installed.
    Image,
    /// The disk: full, failing, read-only.
    Disk,
    /// What is to be installed will never have room on this disk.
    TooSmall,
    /// This disk must not be touched, or the order makes no sense.
    Refused,
}

impl Cause {
    /// Whether trying again by itself can help.
    #[must_use]
    pub const fn is_passing(self) -> bool {
        matches!(self, Self::Network)
    }

    /// The exit code of a program that ends for it.
    #[must_use]
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::TooSmall => 3,
            _ => 1,
        }
    }
}

/// A failed installation.
#[derive(Debug)]
pub struct Failure {
    /// What was being done.
    pub stage: Stage,
    /// Whose fault it is.
    pub cause: Cause,
    /// What happened, from the outside in, and what to do.
    pub error: anyhow::Error,
}

/// One line for people: `transfer: receiving the archive: connection reset by peer`. Before anything is written
/// the error says all by itself: it may be the server's and not the disk's.
impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.stage {
            Stage::Disk => f.write_str(&in_one_line(self.error.as_ref())),
            stage => write!(f, "{}: {}", stage.word(), in_one_line(self.error.as_ref())),
        }
    }
}

impl std::error::Error for Failure {}

/// Turns any error into a [`Failure`] with what was being done.
pub trait OrFail<T> {
    /// `what` says what was being done, as "receiving the archive".
    ///
    /// # Errors
    /// The error itself, as a [`Failure`].
    fn or_fail(self, stage: Stage, cause: Cause, what: impl fmt::Display) -> Result<T, Failure>;
}

impl<T, E: Into<anyhow::Error>> OrFail<T> for Result<T, E> {
    fn or_fail(self, stage: Stage, cause: Cause, what: impl fmt::Display) -> Result<T, Failure> {
        self.map_err(|e| Failure { stage, cause, error: e.into().context(what.to_string()) })
    }
}
