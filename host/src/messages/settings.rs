//! Channels as they are written in options.

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use serde::Deserialize;

/// The name of the channel on `--messages-port`.
pub const MAIN: &str = "main";
/// The longest name of a channel.
const NAME_MAX: usize = 32;
/// The most channels: each may hold a queue's worth of messages.
pub(super) const CHANNELS_MAX: usize = 64;

/// What a channel does with a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The others get it as it is.
    Relay,
    /// The others get it as a line of text with the sender's name, and read who comes and goes.
    Chat,
}

/// `NAME=PORT` or `NAME=IP:PORT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// The channel.
    pub name: String,
    /// Where it listens; `None`: where the other services do.
    pub ip: Option<IpAddr>,
    /// On which port.
    pub port: u16,
}

impl FromStr for Named {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` names no channel; write NAME=PORT or NAME=IP:PORT");
        let (name, at) = text.split_once('=').ok_or_else(wrong)?;
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
        if name.is_empty() || name.len() > NAME_MAX || !name.bytes().all(plain) {
            return Err(format!(
                "`{name}` cannot be the name of a channel: use 1 to {NAME_MAX} letters, digits, `.`, `_` and `-`"
            ));
        }
        let (ip, port) = match at.parse::<SocketAddr>() {
            Ok(address) => (Some(address.ip()), address.port()),
            Err(_) => (None, at.parse().map_err(|_| wrong())?),
        };
        Ok(Self { name: name.to_owned(), ip, port })
    }
}

impl<'de> Deserialize<'de> for Named {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
    }
}

/// One channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Channel {
    /// Its name, for the log and for people.
    pub name: String,
    /// What it does.
    pub kind: Kind,
    /// Where it listens, and the option that said so.
    pub at: Vec<(SocketAddr, &'static str)>,
}

/// What the service is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// At least one.
    pub channels: Vec<Channel>,
    /// The largest message, in bytes.
    pub limit: u32,
    /// How many messages may wait for one member.
    pub queue: usize,
}

impl Settings {
    /// Puts the channels together: a name that is given again has one more address. `None` if there are
    /// no channels.
    ///
    /// # Errors
    /// If a channel is to be of both kinds, or there are too many.
    pub fn new(
        ip: IpAddr,
        port: Option<u16>,
        relays: Vec<Named>,
        chats: Vec<Named>,
        limit: u32,
        queue: usize,
    ) -> Result<Option<Self>, String> {
        let main = port.map(|port| Named { name: MAIN.into(), ip: None, port });
        let main = main.map(|named| (named, Kind::Relay, "--messages-port"));
        let relays = relays.into_iter().map(|named| (named, Kind::Relay, "--messages-channel"));
        let chats = chats.into_iter().map(|named| (named, Kind::Chat, "--messages-chat"));
        let mut channels: Vec<Channel> = Vec::new();
        for (named, kind, flag) in main.into_iter().chain(relays).chain(chats) {
            let at = (SocketAddr::new(named.ip.unwrap_or(ip), named.port), flag);
            match channels.iter_mut().find(|c| c.name == named.name) {
                Some(channel) if channel.kind == kind => channel.at.push(at),
                Some(_) => {
                    return Err(format!(
                        "the channel {} is named by --messages-chat and by another option: it can be a chat or a relay, not both",
                        named.name
                    ));
                }
                None => channels.push(Channel { name: named.name, kind, at: vec![at] }),
            }
        }
        if channels.len() > CHANNELS_MAX {
            return Err(format!("{} message channels are too many: {CHANNELS_MAX} at most", channels.len()));
        }
        Ok((!channels.is_empty()).then_some(Self { channels, limit, queue }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels() {
        let named = |text: &str| text.parse::<Named>();
        assert_eq!(named("a=1"), Ok(Named { name: "a".into(), ip: None, port: 1 }));
        assert_eq!(named("b=[::1]:2").unwrap().ip, Some("::1".parse().unwrap()));
        for bad in ["", "a", "a=", "=1", "a=70000", "a=host:1", "a b=1", "\u{e9}=1", &format!("{:33}=1", "x")]
        {
            assert!(named(bad).is_err(), "{bad}");
        }
        let ip = [127, 0, 0, 1].into();
        let all = |relays: &[&str], chats: &[&str]| {
            let all = |texts: &[&str]| texts.iter().map(|t| named(t).unwrap()).collect();
            Settings::new(ip, Some(9), all(relays), all(chats), 1, 1)
        };
        let settings = all(&["main=10.0.0.1:5", "a=6"], &["talk=7"]).unwrap().unwrap();
        let names: Vec<_> = settings.channels.iter().map(|c| (c.name.as_str(), c.kind, c.at.len())).collect();
        assert_eq!(names, [("main", Kind::Relay, 2), ("a", Kind::Relay, 1), ("talk", Kind::Chat, 1)]);
        assert!(all(&["a=6"], &["a=7"]).unwrap_err().contains("not both"));
        assert_eq!(Settings::new(ip, None, vec![], vec![], 1, 1), Ok(None));
        let many = (1..=65).map(|n| Named { name: n.to_string(), ip: None, port: n }).collect();
        assert!(Settings::new(ip, None, many, vec![], 1, 1).is_err());
    }
}
