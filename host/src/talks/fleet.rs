//! The Pis that are connected, what they may ask of the server, and what its operator may ask of them.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use piman_core::talks::{Codec, ID, IDENTITY, STATUS};

use super::data::Data;
use super::engine::{Answer, Functions, Peer, Request};
use crate::lock::lock;
use crate::state::now_ms;

/// The name of the operator's socket in the state folder.
pub const SOCKET: &str = "talks.sock";
/// The operator's call: all Pis that are connected.
pub(super) const LIST: u8 = 1;
/// The operator's call: call a function of a Pi.
pub(super) const CALL: u8 = 2;
/// How long a Pi may take to say who it is.
const INTRODUCTION: Duration = Duration::from_secs(10);

/// One Pi that is connected.
#[derive(Debug, Clone)]
struct Member {
    serial: Option<String>,
    mac: Option<String>,
    model: Option<String>,
    agent: Option<String>,
    since_ms: u64,
    peer: Peer,
}

impl Member {
    fn address(&self) -> String {
        self.peer.to_string()
    }

    fn key(&self) -> String {
        self.serial.clone().unwrap_or_else(|| self.address())
    }
}

/// All Pis that are connected.
#[derive(Debug, Clone, Default)]
pub struct Fleet(Arc<Mutex<Vec<Member>>>);

impl Fleet {
    fn lock(&self) -> MutexGuard<'_, Vec<Member>> {
        lock(&self.0)
    }

    /// How many are connected.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// The connection of a Pi, by its serial number or else its address, as the list has it.
    #[must_use]
    pub fn find(&self, key: &str) -> Option<Peer> {
        self.lock().iter().find(|m| m.key() == key).map(|m| m.peer.clone())
    }

    /// Closes all connections.
    pub fn close(&self) {
        self.lock().iter().for_each(|m| m.peer.close());
    }

    /// Asks a Pi who it is. Old peers have no such function and stay with their address.
    async fn introduce(self, peer: Peer) {
        let known = peer.call(IDENTITY, Vec::new(), INTRODUCTION).await;
        let text = |key: &str| known.as_ref().ok()?.find(key)?.str().map(str::to_owned);
        // Names are compared exactly, so they are kept in one spelling.
        let name = |key: &str| text(key).map(|name| name.to_ascii_lowercase());
        let (serial, mac) = (name("serial"), name("mac"));
        let mut members = self.lock();
        if serial.is_some() {
            // The same Pi again: its old connection is one that nobody has noticed to be dead.
            for old in members.iter().filter(|m| m.serial == serial && !m.peer.is(&peer)) {
                old.peer.close();
            }
            members.retain(|m| m.serial != serial || m.peer.is(&peer));
        }
        if let Some(member) = members.iter_mut().find(|m| m.peer.is(&peer)) {
            (member.serial, member.mac) = (serial, mac);
            (member.model, member.agent) = (text("model"), text("agent"));
            let (address, key) = (member.address().to_string(), member.key().to_string());
            if address != key {
                log::info!("talks: {address} is {key}");
            }
        }
    }
}

/// What a Pi may ask of the server.
impl Functions for Fleet {
    fn call(&self, _peer: &Peer, request: Request) -> Answer {
        let answer = match u8::try_from(request.opcode) {
            Ok(IDENTITY) => {
                Ok(Data::dict([("server", "piman".into()), ("version", env!("CARGO_PKG_VERSION").into())]))
            }
            Ok(STATUS) => Ok(Data::dict([
                ("connected", i64::try_from(self.len()).unwrap_or(i64::MAX).into()),
                ("time", i64::try_from(now_ms()).unwrap_or(i64::MAX).into()),
            ])),
            Ok(ID) => Ok("piman0".into()),
            _ => Err(format!("LookupError: no function is bound to opcode {}", request.opcode)),
        };
        Box::pin(std::future::ready(answer))
    }

    fn opened(&self, peer: &Peer) {
        let member = Member {
            serial: None,
            mac: None,
            model: None,
            agent: None,
            since_ms: now_ms(),
            peer: peer.clone(),
        };
        self.lock().push(member);
        log::info!("talks: {peer} is connected");
        tokio::spawn(self.clone().introduce(peer.clone()));
    }

    fn closed(&self, peer: &Peer) {
        self.lock().retain(|m| !m.peer.is(peer));
        log::info!("talks: {peer} is gone");
    }
}

/// What the operator may ask, on the socket in the state folder.
#[derive(Debug, Clone)]
pub(super) struct Operator(pub(super) Fleet);

impl Functions for Operator {
    fn call(&self, _peer: &Peer, request: Request) -> Answer {
        match u8::try_from(request.opcode) {
            Ok(LIST) => Box::pin(std::future::ready(Ok(self.list()))),
            Ok(CALL) => {
                let fleet = self.0.clone();
                Box::pin(async move { relay(fleet, request).await })
            }
            _ => Box::pin(std::future::ready(Err("this server does not know that command".into()))),
        }
    }
}

impl Operator {
    fn list(&self) -> Data {
        let optional = |text: &Option<String>| text.clone().map_or(Data::None, Data::Str);
        let members = self.0.lock();
        let list = members.iter().map(|m| {
            Data::dict([
                ("device", m.key().into()),
                ("serial", optional(&m.serial)),
                ("mac", optional(&m.mac)),
                ("model", optional(&m.model)),
                ("agent", optional(&m.agent)),
                ("address", m.address().into()),
                ("codec", if m.peer.codec() == Codec::Pickle { "pickle" } else { "postcard" }.into()),
                ("since", i64::try_from(m.since_ms).unwrap_or(i64::MAX).into()),
            ])
        });
        Data::List(list.collect())
    }
}

async fn relay(fleet: Fleet, request: Request) -> Result<Data, String> {
    let [Data::Str(device), Data::Int(opcode), Data::Int(within_ms), Data::Tuple(args)] = &request.args[..]
    else {
        return Err("this server does not understand the command".into());
    };
    let peer = fleet.find(device).ok_or_else(|| format!("{device} is not connected"))?;
    let opcode = u8::try_from(*opcode).map_err(|_| "an opcode is a number from 0 to 255".to_owned())?;
    let within = Duration::from_millis(u64::try_from(*within_ms).unwrap_or(0));
    peer.call(opcode, args.clone(), within).await.map_err(|e| e.to_string())
}
