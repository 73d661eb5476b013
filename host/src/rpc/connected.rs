//! The Pis that are connected, what they may ask of the server, and what its operator may ask of them.

use std::collections::{HashMap, HashSet};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use piman_core::rpc::{Codec, ID, IDENTITY, STATUS};

use super::data::Data;
use super::engine::{Answer, Functions, Request};
use super::peer::{CallError, Peer};
use crate::sys::clock::now_ms;
use crate::sys::lock::lock;

/// The name of the operator's socket in the state folder.
pub const SOCKET: &str = "rpc.sock";
/// The operator's call: all Pis that are connected.
pub(crate) const LIST: u8 = 1;
/// The operator's call: call a function of a Pi.
pub(crate) const CALL: u8 = 2;
/// How long a Pi may take to say who it is.
const INTRODUCTION: Duration = Duration::from_secs(10);
/// How long a peer has to answer when another one comes with its name: a connection that is dead must not keep its Pi
/// out for long.
const ALIVE: Duration = Duration::from_secs(3);

/// One Pi that is connected.
#[derive(Debug, Clone)]
struct Member {
    serial: Option<String>,
    mac: Option<String>,
    model: Option<String>,
    agent: Option<String>,
    since_ms: u64,
    /// Which one it is of those at its address, from 1.
    number: usize,
    peer: Peer,
}

impl Member {
    fn address(&self) -> String {
        self.peer.to_string()
    }

    /// The name of this connection, which no other has: several old peers may be at one address.
    fn connection(&self) -> String {
        match self.number {
            1 => self.address(),
            n => format!("{}#{n}", self.address()),
        }
    }

    fn key(&self) -> String {
        self.serial.clone().unwrap_or_else(|| self.connection())
    }
}

/// The longest serial number, hardware address, model and version that a Pi may claim, in bytes.
const CLAIM_MAX: usize = 128;

/// All Pis that are connected.
#[derive(Debug, Clone, Default)]
pub struct ConnectedPis(Arc<Mutex<Table>>);

#[derive(Debug, Default)]
struct Table {
    members: Vec<Member>,
    /// Who has which name, in its one spelling; also peers whose login is not over.
    names: HashMap<String, Peer>,
}

impl Table {
    /// Gives a peer the name, or says who has it.
    fn claim(&mut self, peer: &Peer, name: &str) -> Result<(), Peer> {
        match self.names.get(name) {
            Some(holder) if !holder.is(peer) => Err(holder.clone()),
            _ => {
                self.names.insert(name.to_owned(), peer.clone());
                Ok(())
            }
        }
    }

    /// Takes a peer out.
    fn remove(&mut self, peer: &Peer) -> Option<Member> {
        self.names.retain(|_, holder| !holder.is(peer));
        let at = self.members.iter().position(|m| m.peer.is(peer))?;
        Some(self.members.swap_remove(at))
    }

    /// The name that a peer has.
    fn name_of(&self, peer: &Peer) -> Option<String> {
        self.names.iter().find(|(_, holder)| holder.is(peer)).map(|(name, _)| name.clone())
    }
}

/// Names are compared in one spelling: small letters, without spaces.
fn one_spelling(name: &str) -> String {
    name.chars().filter(|c| !c.is_whitespace()).flat_map(char::to_lowercase).collect()
}

impl ConnectedPis {
    fn lock(&self) -> MutexGuard<'_, Table> {
        lock(&self.0)
    }

    /// Gives a peer the name, unless another one has it that answers.
    async fn claim_name(self, peer: Peer, name: String) -> bool {
        loop {
            let holder = match self.lock().claim(&peer, &name) {
                Ok(()) => return true,
                Err(holder) => holder,
            };
            // Any answer shows that it is alive: old peers have no such function, and say that.
            match holder.call(IDENTITY, Vec::new(), ALIVE).await {
                Err(CallError::TimedOut(_) | CallError::Closed) => {}
                _ => {
                    tracing::warn!(
                        "rpc: {peer} says that it is {name}, which is connected from {holder} and answers: refused"
                    );
                    return false;
                }
            }
            tracing::info!("rpc: {name} at {holder} does not answer: {peer} takes its place");
            holder.close();
            self.lock().remove(&holder);
        }
    }

    /// How many are connected.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lock().members.len()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lock().members.is_empty()
    }

    /// The connection of a Pi, by its serial number or the name of its connection, as the list has it. A Pi
    /// keeps the latter when it has said who it is.
    #[must_use]
    pub fn find(&self, key: &str) -> Option<Peer> {
        let table = self.lock();
        let members = &table.members;
        let by_serial = members.iter().find(|m| m.serial.as_deref() == Some(key));
        let found = by_serial.or_else(|| members.iter().find(|m| m.connection() == key));
        found.map(|m| m.peer.clone())
    }

    /// Closes all connections.
    pub fn close(&self) {
        self.lock().members.iter().for_each(|m| m.peer.close());
    }

    /// Asks a Pi who it is. Old peers have no such function and stay with their address.
    async fn introduce(self, peer: Peer) {
        let known = peer.call(IDENTITY, Vec::new(), INTRODUCTION).await;
        // What is printed in tables is one short line.
        let fits = |text: &&str| text.len() <= CLAIM_MAX && text.chars().all(piman_core::text::is_shown);
        let text = |key: &str| known.as_ref().ok()?.find(key)?.str().filter(fits).map(str::to_owned);
        let name = |key: &str| text(key).map(|name| one_spelling(&name)).filter(|name| !name.is_empty());
        let (mut serial, mac) = (name("serial"), name("mac"));
        let logged_in_as = self.lock().name_of(&peer);
        match (&logged_in_as, &serial) {
            (Some(name), Some(other)) if name != other => {
                tracing::warn!(
                    "rpc: {peer} logged in as {name} and says now that it is {other}: it stays {name}"
                );
                serial = logged_in_as;
            }
            (None, Some(name)) if !self.clone().claim_name(peer.clone(), name.clone()).await => {
                peer.close();
                return;
            }
            _ => serial = serial.or(logged_in_as),
        }
        let mut table = self.lock();
        if let Some(member) = table.members.iter_mut().find(|m| m.peer.is(&peer)) {
            (member.serial, member.mac) = (serial, mac);
            (member.model, member.agent) = (text("model"), text("agent"));
            match &member.serial {
                Some(serial) => tracing::info!("rpc: {} is {serial}", member.connection()),
                None => tracing::info!("rpc: {} does not say who it is", member.connection()),
            }
        } else {
            // It is gone already, and its name with it.
            table.remove(&peer);
        }
    }
}

/// What a Pi may ask of the server.
impl Functions for ConnectedPis {
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

    fn claim(&self, peer: &Peer, name: &str) -> Pin<Box<dyn Future<Output = bool> + Send>> {
        Box::pin(self.clone().claim_name(peer.clone(), one_spelling(name)))
    }

    fn opened(&self, peer: &Peer) {
        let mut table = self.lock();
        let serial = table.name_of(peer);
        let members = &mut table.members;
        // The first number that is free: names stay short, and each is one connection's as long as it lives.
        let taken: HashSet<usize> =
            members.iter().filter(|m| m.peer.address() == peer.address()).map(|m| m.number).collect();
        let number = (1..).find(|n| !taken.contains(n)).unwrap_or(usize::MAX);
        let member = Member {
            serial,
            mac: None,
            model: None,
            agent: None,
            since_ms: now_ms(),
            number,
            peer: peer.clone(),
        };
        let old = if peer.is_protected() { "" } else { " (old login, not protected)" };
        tracing::info!("rpc: {} is connected{old}", member.connection());
        members.push(member);
        drop(table);
        tokio::spawn(self.clone().introduce(peer.clone()));
    }

    fn closed(&self, peer: &Peer) {
        let gone = self.lock().remove(peer);
        // One that has come again meanwhile took the place of this connection.
        tracing::info!("rpc: {} is gone", gone.map_or_else(|| peer.to_string(), |m| m.key()));
    }
}

/// What the operator may ask, on the socket in the state folder.
#[derive(Debug, Clone)]
pub(crate) struct Operator(pub(crate) ConnectedPis);

impl Functions for Operator {
    fn call(&self, _peer: &Peer, request: Request) -> Answer {
        match u8::try_from(request.opcode) {
            Ok(LIST) => Box::pin(std::future::ready(Ok(self.list()))),
            Ok(CALL) => {
                let connected = self.0.clone();
                Box::pin(async move { relay(connected, request).await })
            }
            _ => Box::pin(std::future::ready(Err("this server does not know that command".into()))),
        }
    }
}

impl Operator {
    fn list(&self) -> Data {
        let optional = |text: &Option<String>| text.clone().map_or(Data::None, Data::Str);
        let table = self.0.lock();
        let list = table.members.iter().map(|m| {
            Data::dict([
                ("device", m.key().into()),
                ("connection", m.connection().into()),
                ("serial", optional(&m.serial)),
                ("mac", optional(&m.mac)),
                ("model", optional(&m.model)),
                ("agent", optional(&m.agent)),
                ("address", m.address().into()),
                ("codec", if m.peer.codec() == Codec::Pickle { "pickle" } else { "postcard" }.into()),
                ("protected", m.peer.is_protected().into()),
                ("since", i64::try_from(m.since_ms).unwrap_or(i64::MAX).into()),
            ])
        });
        Data::List(list.collect())
    }
}

async fn relay(connected: ConnectedPis, request: Request) -> Result<Data, String> {
    let [Data::Str(device), Data::Int(opcode), Data::Int(within_ms), Data::Tuple(args)] = &request.args[..]
    else {
        return Err("this server does not understand the command".into());
    };
    let keywords = request.keywords.clone();
    let peer = connected.find(device).ok_or_else(|| format!("{device} is not connected"))?;
    let opcode = u8::try_from(*opcode).map_err(|_| "an opcode is a number from 0 to 255".to_owned())?;
    let within = Duration::from_millis(u64::try_from(*within_ms).unwrap_or(0));
    // An error of the Pi's function is an outcome like its result; the operator tells it from a Pi that
    // does not answer.
    match peer.call_with(opcode, args.clone(), keywords, within).await {
        Ok(value) => Ok(Data::Tuple(vec![true.into(), value])),
        Err(CallError::Function(text)) => Ok(Data::Tuple(vec![false.into(), text.into()])),
        Err(e) => Err(e.to_string()),
    }
}
