//! The sockets of the DHCP service: one interface, replies, looking whether an address is taken.

use std::collections::{HashSet, VecDeque};
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use piman_core::dhcp::{Kind, SERVER_PORT};
use rustix::net::sockopt;
use serde::Deserialize;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::mpsc;

use super::message::{Ask, Reply, encode};
use super::network::Network;
use super::pool::{Pool, Step};
use super::proxy::{self, Boot, Port};
use super::{Fixed, Range, probe, store};
use crate::netboot::only_known::OnlyKnown;
use crate::sys::clock::now_ms;
use crate::sys::mac::Mac;

/// Where requests come, and those of PXE clients that have a proxy's offer.
const DHCP_PORT: u16 = SERVER_PORT;
const PXE_PORT: u16 = 4011;
/// How many addresses are looked at at the same time. A look takes 0.4 seconds.
const PROBES_MAX: usize = 128;
/// How many clients wait until the address for them is looked at: a few seconds for the last. More have to ask
/// again.
const WAITING_MAX: usize = 1024;
/// How many requests are answered after one write of the leases.
const TOGETHER_MAX: usize = 128;
/// Room for the requests that come while the leases are written: of a thousand machines that are switched on
/// at once.
const RECEIVE_BUFFER: usize = 4 << 20;
/// How many relays of other networks are named in the log.
const RELAYS_SAID: usize = 16;

/// What the service does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Another server gives addresses; here Pis learn where to boot from.
    Proxy,
    /// Addresses are given too.
    Server,
}

/// What the service is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// What it does.
    pub mode: Mode,
    /// The only interface on which it hears and answers.
    pub interface: String,
    /// Addresses to give.
    pub range: Option<Range>,
    /// Who always gets which.
    pub fixed: Vec<Fixed>,
    /// The router that clients are told of.
    pub router: Option<Ipv4Addr>,
    /// The name servers that clients are told of.
    pub dns: Vec<Ipv4Addr>,
    /// How long a lease lasts.
    pub lease: Duration,
    /// Where to boot from.
    pub boot: Boot,
    /// The folder where leases are kept.
    pub state: PathBuf,
    /// Whether addresses are given although another server answers.
    pub force: bool,
}

/// Something that a client was told.
#[derive(Debug, Clone)]
pub struct Report {
    /// Who.
    pub mac: Mac,
    /// Whether it got no answer, since it is not in the device list.
    pub refused: bool,
    /// The address that it was given or has, if that is known here.
    pub ip: Option<Ipv4Addr>,
    /// In words.
    pub text: String,
}

/// Says which clients are known; it may wait for the disk.
pub type Known = Box<dyn Fn() -> HashSet<Mac> + Send + Sync>;

/// How old that may be.
const KNOWN_FRESH: Duration = Duration::from_secs(10);

/// Who is told of what clients were told.
pub type Tell = Arc<dyn Fn(Report) + Send + Sync>;

/// A service that can run: its ports are open.
pub struct Dhcp {
    settings: Settings,
    pool: Pool,
    dhcp: UdpSocket,
    pxe: Option<UdpSocket>,
    /// Clients whose address is to be looked at.
    waiting: VecDeque<(Ask, Ipv4Addr)>,
    /// What is to be sent when the leases are on the disk.
    replies: Vec<(Ask, Box<Reply>)>,
    /// Relays of other networks, which have been named in the log.
    strange_relays: HashSet<Ipv4Addr>,
}

/// That an address has been looked at: for whom, which, and whether somebody has it.
type Looked = (Ask, Ipv4Addr, bool);

/// The IPv4 address of an interface and its mask.
///
/// # Errors
/// If there is no such interface, or it has no address; the message says which there are.
pub fn address(interface: &str) -> anyhow::Result<(Ipv4Addr, Ipv4Addr)> {
    let all = if_addrs::get_if_addrs().context("asking for the interfaces")?;
    let found = all.iter().find_map(|i| match &i.addr {
        if_addrs::IfAddr::V4(v4) if i.name == interface => Some((v4.ip, v4.netmask)),
        _ => None,
    });
    found.ok_or_else(|| {
        let mut names: Vec<String> = all
            .iter()
            .filter(|i| i.ip().is_ipv4() && !i.is_loopback())
            .map(|i| format!("{} ({})", i.name, i.ip()))
            .collect();
        names.sort();
        anyhow!(
            "the interface {interface} has no IPv4 address, or does not exist; with an address are: {}. Name one with --dhcp-interface, or give it one: `ip address add 192.168.77.1/24 dev {interface}`",
            names.join(", ")
        )
    })
}

fn socket(interface: &str, port: u16, share: bool) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_reuse_address(share)?;
    socket.set_broadcast(true)?;
    // Whatever else this machine is connected to never hears an answer from here.
    socket.bind_device(Some(interface.as_bytes()))?;
    socket.bind(&SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port).into())?;
    socket.set_nonblocking(true)?;
    if sockopt::set_socket_recv_buffer_size_force(&socket, RECEIVE_BUFFER).is_err() {
        // Without the permission to go beyond the system's limit it is as much as that.
        socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
    }
    Ok(socket.into())
}

/// What is to be said if another program of this machine listens for DHCP as well. The port is shared
/// with it, since it may serve other interfaces.
#[must_use]
pub fn neighbour(interface: &str) -> Option<String> {
    let taken = socket(interface, DHCP_PORT, false).is_err_and(|e| e.kind() == ErrorKind::AddrInUse);
    taken.then(|| {
        format!(
            "another program of this machine listens on UDP port {DHCP_PORT}, too: `ss -lunp 'sport = :{DHCP_PORT}'` says which. If it answers on {interface}, stop it: two servers would contradict each other"
        )
    })
}

pub(super) fn open(interface: &str, port: u16) -> anyhow::Result<UdpSocket> {
    socket(interface, port, true).map_err(|e| {
        let what = format!("cannot answer DHCP on {interface}, port {port}: {e}");
        match e.kind() {
            ErrorKind::AddrInUse => anyhow!(
                "{what}; another program has the port: `ss -lunp 'sport = :{port}'` says which. Stop it, or leave --dhcp out and let it send Pis here"
            ),
            ErrorKind::PermissionDenied => anyhow!(
                "{what}; start as root, or allow it with `setcap cap_net_bind_service,cap_net_raw=+ep piman`"
            ),
            _ => anyhow!(what),
        }
    })
}

impl Dhcp {
    /// Opens the ports on the interface.
    ///
    /// # Errors
    /// If the settings do not fit the interface, a port cannot be had, or the leases cannot be read.
    pub fn open(settings: Settings) -> anyhow::Result<Self> {
        let (me, mask) = address(&settings.interface)?;
        let net = settings.network(me, mask);
        let mut leases = Default::default();
        if settings.mode == Mode::Server {
            if settings.range.is_none() && settings.fixed.is_empty() {
                bail!("--dhcp server needs addresses to give: name them with --dhcp-range FIRST-LAST");
            }
            let ends = settings.range.into_iter().flat_map(|r| [r.first, r.last]);
            for ip in ends.chain(settings.fixed.iter().map(|f| f.ip)) {
                if !net.contains(ip) {
                    bail!(
                        "{ip} is not in the network of {}, which is {me} with the mask {mask}: choose addresses there",
                        settings.interface
                    );
                }
            }
            leases = store::load(&settings.state)?;
        }
        if let Some(text) = neighbour(&settings.interface) {
            tracing::warn!("dhcp: {text}");
        }
        let dhcp = open(&settings.interface, DHCP_PORT)?;
        let pxe = match (open(&settings.interface, PXE_PORT), settings.mode) {
            (Ok(socket), _) => Some(socket),
            (Err(e), Mode::Proxy) => return Err(e),
            // Most clients that get their address here do not need it.
            (Err(e), Mode::Server) => {
                tracing::warn!("dhcp: {e:#}");
                None
            }
        };
        let seconds = u32::try_from(settings.lease.as_secs()).unwrap_or(u32::MAX).max(60);
        let pool = Pool::new(settings.range, settings.fixed.clone(), seconds, leases);
        let (waiting, replies, strange_relays) = Default::default();
        Ok(Self { settings, pool, dhcp, pxe, waiting, replies, strange_relays })
    }

    /// In words, where it answers.
    #[must_use]
    pub fn place(&self) -> String {
        let mode = match self.settings.mode {
            Mode::Proxy => "proxy",
            Mode::Server => "server",
        };
        format!("{mode} {}", self.settings.interface)
    }

    /// Answers for ever; with `only_known` those alone that it does not refuse.
    ///
    /// # Errors
    /// If a socket cannot be used at all.
    pub async fn serve(
        mut self,
        only_known: Option<Arc<OnlyKnown>>,
        known: Known,
        tell: Tell,
    ) -> anyhow::Result<()> {
        let admits = move |packet: &[u8], tell: &Tell| {
            let Some((known, ask)) = only_known.as_ref().zip(Ask::parse(packet)) else { return true };
            if known.refuses_dhcp(&ask).is_none() {
                return true;
            }
            let text = "gets no answer by DHCP: it is not in the device list (--only-known)".into();
            tell(Report { mac: ask.mac, refused: true, ip: None, text });
            false
        };
        let dhcp = tokio::net::UdpSocket::from_std(self.dhcp.try_clone()?).context("the DHCP socket")?;
        let pxe = self.pxe.as_ref().map(UdpSocket::try_clone).transpose()?;
        let pxe = pxe.map(tokio::net::UdpSocket::from_std).transpose().context("the PXE socket")?;
        let (found, mut probes) = mpsc::channel::<Looked>(PROBES_MAX);
        let (mut one, mut other) = ([0; 2048], [0; 2048]);
        let mut read: Option<Instant> = None;
        loop {
            if self.settings.mode == Mode::Server && read.is_none_or(|at| at.elapsed() > KNOWN_FRESH) {
                self.pool.set_known(tokio::task::block_in_place(&known));
                read = Some(Instant::now());
            }
            tokio::select! {
                received = dhcp.recv_from(&mut one) => match received {
                    Ok((n, _)) => {
                        let packet = one.get(..n).unwrap_or_default();
                        if admits(packet, &tell) {
                            self.heard(packet);
                        }
                    }
                    Err(e) => trouble(&e).await,
                },
                received = receive(pxe.as_ref(), &mut other) => match received {
                    Ok((n, peer)) => {
                        let packet = other.get(..n).unwrap_or_default();
                        if let Some(socket) = pxe.as_ref().filter(|_| admits(packet, &tell)) {
                            self.heard_pxe(packet, peer, socket, &tell).await;
                        }
                    }
                    Err(e) => trouble(&e).await,
                },
                Some(looked) = probes.recv() => self.looked(&looked),
            }
            // All that has come meanwhile: one write of the leases is enough for it.
            for _ in 0..TOGETHER_MAX {
                if let Ok(looked) = probes.try_recv() {
                    self.looked(&looked);
                } else if let Ok((n, _)) = dhcp.try_recv_from(&mut one) {
                    let packet = one.get(..n).unwrap_or_default();
                    if admits(packet, &tell) {
                        self.heard(packet);
                    }
                } else {
                    break;
                }
            }
            self.look(&found);
            self.reply(&dhcp, &tell).await;
        }
    }

    fn network(&self) -> Option<Network> {
        match address(&self.settings.interface) {
            Ok((me, mask)) => Some(self.settings.network(me, mask)),
            Err(e) => {
                tracing::debug!("dhcp: {e:#}");
                None
            }
        }
    }

    /// A request to port 67.
    fn heard(&mut self, packet: &[u8]) {
        let Some(ask) = Ask::parse(packet) else { return };
        // The interface may have got another address.
        let Some(net) = self.network() else { return };
        tracing::debug!("dhcp: {} ({}) sends {:?}", ask.mac, ask.describe(), ask.kind);
        match self.settings.mode {
            Mode::Proxy => {
                let reply = proxy::answer(&ask, Port::Dhcp, net.me, &self.settings.boot);
                self.replies.extend(reply.map(|reply| (ask, Box::new(reply))));
            }
            Mode::Server => {
                if let Some(relay) = ask.relay().filter(|relay| !net.contains(*relay)) {
                    self.strange(relay, ask.mac);
                    return;
                }
                let step = self.pool.handle(&ask, &net, &self.settings.boot, now());
                self.carry_out(step, ask);
            }
        }
    }

    /// The addresses here are no good in the network of this relay.
    fn strange(&mut self, relay: Ipv4Addr, mac: Mac) {
        let interface = &self.settings.interface;
        let text = format!(
            "dhcp: {mac} asks through the relay {relay}: other networks are not served, addresses are for that of {interface} only"
        );
        if self.strange_relays.len() < RELAYS_SAID && self.strange_relays.insert(relay) {
            tracing::warn!("{text} (said once)");
        } else {
            tracing::debug!("{text}");
        }
    }

    /// A request to port 4011: of a client that has an address and asks again where to boot from.
    async fn heard_pxe(&self, packet: &[u8], peer: SocketAddr, socket: &tokio::net::UdpSocket, tell: &Tell) {
        let Some(ask) = Ask::parse(packet) else { return };
        let Some(net) = self.network() else { return };
        tracing::debug!("dhcp: {} ({}) sends {:?} to port {PXE_PORT}", ask.mac, ask.describe(), ask.kind);
        let Some(reply) = proxy::answer(&ask, Port::Pxe, net.me, &self.settings.boot) else { return };
        let to = match peer {
            SocketAddr::V4(peer) if !peer.ip().is_unspecified() => peer,
            _ => ask.destination(reply.kind()),
        };
        self.send(&ask, &reply, to, socket, tell).await;
    }

    /// It is known whether somebody has an address.
    fn looked(&mut self, (ask, ip, taken): &Looked) {
        if *taken {
            tracing::warn!("dhcp: somebody has {ip} who did not get it from here: it is left alone");
        }
        let Some(net) = self.network() else { return };
        let step = self.pool.probed(ask, *ip, *taken, &net, &self.settings.boot, now());
        self.carry_out(step, ask.clone());
    }

    fn carry_out(&mut self, step: Step, ask: Ask) {
        match step {
            Step::Reply(reply) => self.replies.push((ask, reply)),
            Step::Full => {
                tracing::warn!("dhcp: {}: no address is left: make --dhcp-range larger", ask.mac);
            }
            Step::Nothing(why) => tracing::debug!("dhcp: {}: {why}", ask.mac),
            Step::Probe(ip) if self.waiting.len() < WAITING_MAX => self.waiting.push_back((ask, ip)),
            Step::Probe(_) => {
                tracing::debug!("dhcp: {}: too many wait for an address, it has to ask again", ask.mac);
                self.pool.not_probed(&ask);
            }
        }
    }

    /// Begins to look at as many addresses as may be looked at.
    fn look(&mut self, found: &mpsc::Sender<Looked>) {
        while !self.waiting.is_empty()
            && let Ok(place) = found.clone().try_reserve_owned()
            && let Some((ask, ip)) = self.waiting.pop_front()
        {
            let interface = self.settings.interface.clone();
            tokio::task::spawn_blocking(move || {
                let taken = probe::is_taken(&interface, ip).unwrap_or_else(|e| {
                    tracing::warn!("dhcp: cannot look whether somebody has {ip}: {e}");
                    false
                });
                place.send((ask, ip, taken));
            });
        }
    }

    /// Sends what is to be sent.
    async fn reply(&mut self, socket: &tokio::net::UdpSocket, tell: &Tell) {
        // Before the clients know: after a crash nobody else may get their addresses.
        if let Some(leases) = self.pool.changes()
            && let Err(e) = tokio::task::block_in_place(|| store::save(&self.settings.state, leases))
        {
            tracing::error!("dhcp: {e:#}");
        }
        for (ask, reply) in std::mem::take(&mut self.replies) {
            self.send(&ask, &reply, ask.destination(reply.kind()), socket, tell).await;
        }
    }

    async fn send(
        &self,
        ask: &Ask,
        reply: &Reply,
        to: SocketAddrV4,
        socket: &tokio::net::UdpSocket,
        tell: &Tell,
    ) {
        let Some(bytes) = encode(reply) else {
            tracing::error!("dhcp: a reply to {} does not fit: is --dhcp-file too long?", ask.mac);
            return;
        };
        if let Err(e) = socket.send_to(&bytes, to).await {
            tracing::warn!("dhcp: {}: cannot send to {to}: {e}", ask.mac);
            return;
        }
        if !self.settings.boot.is_told_of(ask) {
            return;
        }
        let given = Some(reply.header.your_address).filter(|ip| !ip.is_unspecified());
        let who = ask.describe();
        let text = match (reply.kind(), given) {
            (Kind::Offer, Some(ip)) => format!("{who} is offered {ip}"),
            (Kind::Offer, None) => format!("{who} is told where to boot from"),
            (Kind::Ack, Some(ip)) => format!("{who} has {ip}"),
            (Kind::Nak, _) => format!("{who} may not have the address that it asks for"),
            _ => format!("{who} is told what it asks for"),
        };
        tell(Report { mac: ask.mac, refused: false, ip: given.or(ask.address()), text });
    }
}

impl Settings {
    fn network(&self, me: Ipv4Addr, mask: Ipv4Addr) -> Network {
        Network { me, mask, router: self.router, dns: self.dns.clone() }
    }
}

fn now() -> u64 {
    now_ms() / 1000
}

/// Only troubles of the moment (the interface is down, say) come here.
async fn trouble(e: &io::Error) {
    tracing::debug!("dhcp: {e}");
    tokio::time::sleep(Duration::from_millis(100)).await;
}

async fn receive(
    socket: Option<&tokio::net::UdpSocket>,
    buffer: &mut [u8],
) -> io::Result<(usize, SocketAddr)> {
    match socket {
        Some(socket) => socket.recv_from(buffer).await,
        None => std::future::pending().await,
    }
}

/// The addresses of this machine on an interface that Pis could be connected to.
///
/// # Errors
/// If the system does not say.
pub fn interfaces() -> io::Result<Vec<(String, IpAddr)>> {
    let all = if_addrs::get_if_addrs()?;
    Ok(all.into_iter().filter(|i| !i.is_loopback()).map(|i| (i.name.clone(), i.ip())).collect())
}
