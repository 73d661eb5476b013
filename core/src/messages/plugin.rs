//! Plugins transform a whole message before it is sent, and back after it came.

use core::fmt;

/// A transformation of whole messages, such as compression or encryption. Both sides of a
/// connection need the same plugins in the same order.
pub trait Plugin {
    /// Writes `message`, transformed, to the front of `to`; returns how many bytes.
    ///
    /// # Errors
    /// [`PluginError`] if it does not fit or cannot be done.
    fn outgoing(&mut self, message: &[u8], to: &mut [u8]) -> Result<usize, PluginError>;

    /// Undoes [`outgoing`](Self::outgoing).
    ///
    /// # Errors
    /// [`PluginError`] if it does not fit or is not what `outgoing` makes: the peer's fault.
    fn incoming(&mut self, message: &[u8], to: &mut [u8]) -> Result<usize, PluginError>;
}

/// Why a plugin gave up on a message. The connection lives on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum PluginError {
    /// The result is larger than the buffer.
    NoRoom,
    /// The message is not what the plugin on the other side makes.
    Malformed,
}

impl fmt::Display for PluginError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoRoom => "the transformed message is larger than the buffer",
            Self::Malformed => "the message does not come from the same plugin",
        })
    }
}

impl core::error::Error for PluginError {}

/// Gives `message` through all plugins, first to last. The result lies in `a` or in `b`, or is
/// the message itself if there are no plugins.
///
/// # Errors
/// What the first plugin that fails says.
pub fn outgoing<'m>(
    plugins: &mut [&mut dyn Plugin],
    message: &'m [u8],
    a: &'m mut [u8],
    b: &'m mut [u8],
) -> Result<&'m [u8], PluginError> {
    through(plugins.iter_mut(), message, a, b, |plugin, from, to| plugin.outgoing(from, to))
}

/// Gives `message` through all plugins, last to first, so that it is what it was before
/// [`outgoing`] on the other side.
///
/// # Errors
/// What the first plugin that fails says.
pub fn incoming<'m>(
    plugins: &mut [&mut dyn Plugin],
    message: &'m [u8],
    a: &'m mut [u8],
    b: &'m mut [u8],
) -> Result<&'m [u8], PluginError> {
    through(plugins.iter_mut().rev(), message, a, b, |plugin, from, to| plugin.incoming(from, to))
}

fn through<'m, 'p: 'q, 'q>(
    plugins: impl Iterator<Item = &'q mut &'p mut dyn Plugin>,
    message: &'m [u8],
    a: &'m mut [u8],
    b: &'m mut [u8],
    mut apply: impl FnMut(&mut dyn Plugin, &[u8], &mut [u8]) -> Result<usize, PluginError>,
) -> Result<&'m [u8], PluginError> {
    let (mut from, mut to) = (a, b);
    let mut length = None;
    for plugin in plugins {
        let source = match length {
            None => message,
            Some(n) => from.get(..n).unwrap_or_default(),
        };
        length = Some(apply(*plugin, source, to)?.min(to.len()));
        core::mem::swap(&mut from, &mut to);
    }
    Ok(match length {
        None => message,
        Some(n) => from.get(..n).unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Puts one byte in front, and wants it back.
    struct Stamp(u8);

    impl Plugin for Stamp {
        fn outgoing(&mut self, message: &[u8], to: &mut [u8]) -> Result<usize, PluginError> {
            let (first, rest) = to.split_first_mut().ok_or(PluginError::NoRoom)?;
            *first = self.0;
            rest.get_mut(..message.len()).ok_or(PluginError::NoRoom)?.copy_from_slice(message);
            Ok(message.len() + 1)
        }

        fn incoming(&mut self, message: &[u8], to: &mut [u8]) -> Result<usize, PluginError> {
            let rest = message.strip_prefix(&[self.0]).ok_or(PluginError::Malformed)?;
            to.get_mut(..rest.len()).ok_or(PluginError::NoRoom)?.copy_from_slice(rest);
            Ok(rest.len())
        }
    }

    #[test]
    fn back_in_reverse_order() {
        for count in 0..5_u8 {
            let mut stamps: std::vec::Vec<_> = (0..count).map(Stamp).collect();
            let mut plugins: std::vec::Vec<&mut dyn Plugin> =
                stamps.iter_mut().map(|s| s as &mut dyn Plugin).collect();
            let (mut a, mut b) = ([0; 9], [0; 9]);
            let out = outgoing(&mut plugins, b"piman", &mut a, &mut b).unwrap().to_vec();
            let stamped: std::vec::Vec<u8> = (0..count).rev().collect();
            assert_eq!(out, [&stamped, &b"piman"[..]].concat());
            assert_eq!(incoming(&mut plugins, &out, &mut a, &mut b), Ok(&b"piman"[..]));
        }
    }

    #[test]
    fn no_room_and_foreign_messages_are_errors() {
        let (mut a, mut b) = ([0; 5], [0; 5]);
        let plugins: &mut [&mut dyn Plugin] = &mut [&mut Stamp(1)];
        assert_eq!(outgoing(plugins, b"piman", &mut a, &mut b), Err(PluginError::NoRoom));
        assert_eq!(incoming(plugins, b"piman", &mut a, &mut b), Err(PluginError::Malformed));
    }
}
