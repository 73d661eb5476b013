//! The plugins of a connection, with memory that grows as messages need it.

use std::borrow::Cow;
use std::fmt;

use piman_core::messages::{Plugin, PluginError, SIZE_MAX, incoming, outgoing};

/// What makes the plugins of each connection.
pub type MakePlugins = dyn Fn() -> Vec<Box<dyn Plugin + Send>> + Send + Sync;

/// The plugins of one connection.
#[derive(Default)]
pub(super) struct Plugins(pub(super) Vec<Box<dyn Plugin + Send>>);

impl fmt::Debug for Plugins {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} plugins", self.0.len())
    }
}

impl Plugins {
    pub(super) fn outgoing<'m>(&mut self, message: &'m [u8]) -> Result<Cow<'m, [u8]>, PluginError> {
        if self.0.is_empty() {
            return Ok(Cow::Borrowed(message));
        }
        self.through(message, SIZE_MAX, |plugins, a, b| Ok(outgoing(plugins, message, a, b)?.to_vec()))
            .map(Cow::Owned)
    }

    /// `limit` also bounds what a message may unfold to.
    pub(super) fn incoming(&mut self, message: Vec<u8>, limit: u32) -> Result<Vec<u8>, PluginError> {
        if self.0.is_empty() {
            return Ok(message);
        }
        self.through(&message, limit, |plugins, a, b| Ok(incoming(plugins, &message, a, b)?.to_vec()))
    }

    fn through(
        &mut self,
        message: &[u8],
        limit: u32,
        mut apply: impl FnMut(&mut [&mut dyn Plugin], &mut [u8], &mut [u8]) -> Result<Vec<u8>, PluginError>,
    ) -> Result<Vec<u8>, PluginError> {
        let limit = limit as usize;
        let mut room = (message.len() * 2 + 1024).min(limit);
        loop {
            let mut plugins: Vec<&mut dyn Plugin> =
                self.0.iter_mut().map(|p| &mut **p as &mut dyn Plugin).collect();
            match apply(&mut plugins, &mut vec![0; room], &mut vec![0; room]) {
                Err(PluginError::NoRoom) if room < limit => room = (room * 4).min(limit),
                done => return done,
            }
        }
    }
}
