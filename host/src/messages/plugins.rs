//! Plugins by name, such that a Python peer needs no more than its own modules `zlib` and `binascii`.

use clap::ValueEnum;
use flate2::{Compress, Compression, Crc, Decompress, FlushCompress, FlushDecompress, Status};
use piman_core::messages::{self, PluginError};

use crate::messages::transport::MakePlugins;

/// A transformation of whole messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Plugin {
    /// Compressed, as Python's zlib.compress does it
    Zlib,
    /// With a CRC-32 at the end, 4 bytes big-endian; a message whose CRC is wrong is dropped
    Crc32,
}

impl Plugin {
    /// What makes the plugins of a connection, in this order.
    #[must_use]
    pub fn make(all: &[Self]) -> Box<MakePlugins> {
        let all = all.to_vec();
        Box::new(move || all.iter().map(|plugin| plugin.one()).collect())
    }

    fn one(self) -> Box<dyn messages::Plugin + Send> {
        match self {
            Self::Zlib => Box::new(Zlib),
            Self::Crc32 => Box::new(Crc32),
        }
    }
}

struct Zlib;

impl messages::Plugin for Zlib {
    fn outgoing(&mut self, message: &[u8], to: &mut [u8]) -> Result<usize, PluginError> {
        let mut zlib = Compress::new(Compression::default(), true);
        match zlib.compress(message, to, FlushCompress::Finish) {
            Ok(Status::StreamEnd) => Ok(usize::try_from(zlib.total_out()).unwrap_or(usize::MAX)),
            _ => Err(PluginError::NoRoom),
        }
    }

    fn incoming(&mut self, message: &[u8], to: &mut [u8]) -> Result<usize, PluginError> {
        let mut zlib = Decompress::new(true);
        let done = zlib.decompress(message, to, FlushDecompress::Finish);
        let out = usize::try_from(zlib.total_out()).unwrap_or(usize::MAX);
        match done {
            Ok(Status::StreamEnd) if zlib.total_in() == message.len() as u64 => Ok(out),
            Ok(Status::Ok | Status::BufError) if out >= to.len() => Err(PluginError::NoRoom),
            _ => Err(PluginError::Malformed),
        }
    }
}

struct Crc32;

impl Crc32 {
    fn of(message: &[u8]) -> [u8; 4] {
        let mut crc = Crc::new();
        crc.update(message);
        crc.sum().to_be_bytes()
    }
}

impl messages::Plugin for Crc32 {
    fn outgoing(&mut self, message: &[u8], to: &mut [u8]) -> Result<usize, PluginError> {
        let whole = message.len() + 4;
        let to = to.get_mut(..whole).ok_or(PluginError::NoRoom)?;
        let (body, end) = to.split_at_mut_checked(message.len()).ok_or(PluginError::NoRoom)?;
        body.copy_from_slice(message);
        end.copy_from_slice(&Self::of(message));
        Ok(whole)
    }

    fn incoming(&mut self, message: &[u8], to: &mut [u8]) -> Result<usize, PluginError> {
        let (body, crc) = message.split_last_chunk::<4>().ok_or(PluginError::Malformed)?;
        if Self::of(body) != *crc {
            return Err(PluginError::Malformed);
        }
        to.get_mut(..body.len()).ok_or(PluginError::NoRoom)?.copy_from_slice(body);
        Ok(body.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use piman_core::messages::Plugin as _;

    #[test]
    fn there_and_back_and_nothing_else() {
        for message in [&b""[..], b"piman", &[7; 100_000]] {
            for plugin in [Plugin::Zlib, Plugin::Crc32] {
                let mut plugin = plugin.one();
                let mut out = vec![0; 2 * message.len() + 100];
                let n = plugin.outgoing(message, &mut out).unwrap();
                let mut back = vec![0; message.len()];
                assert_eq!(plugin.incoming(&out[..n], &mut back), Ok(message.len()));
                assert_eq!(back, message);
                for broken in [&out[..n - 1], &[&out[..n], b"x"].concat()] {
                    let result = plugin.incoming(broken, &mut vec![0; message.len() + 100]);
                    assert_eq!(result, Err(PluginError::Malformed), "{n}");
                }
                if !message.is_empty() {
                    assert_eq!(plugin.incoming(&out[..n], &mut back[1..]), Err(PluginError::NoRoom));
                }
                assert_eq!(plugin.outgoing(message, &mut out[..n - 1]), Err(PluginError::NoRoom));
            }
        }
        assert_eq!(Zlib.incoming(b"no zlib", &mut [0; 9]), Err(PluginError::Malformed));
        assert_eq!(Crc32.incoming(b"abc", &mut [0; 9]), Err(PluginError::Malformed));
    }
}
