//! Which protocol a client speaks to a server that it does not know yet.

use core::fmt;
use core::str::FromStr;

use super::Codec;

/// Which protocol a client speaks, and how it finds out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Protocol {
    /// Ask the server by a login that old servers and ours take, [`auth::EITHER`](super::auth::EITHER). A
    /// password crosses the network in clear, since an old server accepts nobody without it.
    Auto,
    /// Pickles only, for an old TCPTalks server. A password crosses the network in clear.
    Pickle,
    /// piman's own protocol only. A password never crosses the network.
    Piman,
}

impl Protocol {
    /// What a client speaks that was not told: it never gives a password away unasked.
    #[must_use]
    pub fn default_for(has_password: bool) -> Self {
        if has_password { Self::Piman } else { Self::Auto }
    }

    /// Its name on a command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Pickle => "pickle",
            Self::Piman => "piman",
        }
    }
}

/// The one protocol that has this codec.
impl From<Codec> for Protocol {
    fn from(codec: Codec) -> Self {
        match codec {
            Codec::Pickle => Self::Pickle,
            #[cfg(feature = "postcard")]
            Codec::Postcard => Self::Piman,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// No protocol has this name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct UnknownProtocol;

impl fmt::Display for UnknownProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("unknown protocol: use auto, pickle or piman")
    }
}

impl core::error::Error for UnknownProtocol {}

impl FromStr for Protocol {
    type Err = UnknownProtocol;

    fn from_str(name: &str) -> Result<Self, UnknownProtocol> {
        let all = [Self::Auto, Self::Pickle, Self::Piman];
        all.into_iter().find(|p| p.name() == name).ok_or(UnknownProtocol)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        for protocol in [Protocol::Auto, Protocol::Pickle, Protocol::Piman] {
            assert_eq!(protocol.name().parse(), Ok(protocol));
        }
        assert_eq!("".parse::<Protocol>(), Err(UnknownProtocol));
        assert_eq!("Auto".parse::<Protocol>(), Err(UnknownProtocol));
    }
}
