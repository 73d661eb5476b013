//! The network of a Pi that nobody has set up yet: its interfaces are switched on, and one of them
//! gets an address, by DHCP or as `ip=` says.
//!
//! A kernel with `ip=dhcp` of its own does that before `/init` begins; then nothing is done here.
//!
//! | file | what lives there |
//! |---|---|
//! | `addressing` | `ip=` |
//! | `message` | the bytes of DHCP |
//! | `client` | DHCP, without clock or socket |
//! | `link` | interfaces, addresses, routes |
//! | `socket` | packets of a Pi without address |

pub mod addressing;
pub mod client;
pub mod link;
pub mod message;
pub mod socket;

use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};

use crate::identity::Identity;
pub use addressing::{Addressing, Fixed};
use client::{Client, Event, Lease, To};
use link::{Interface, Kernel, Link, Links};
use message::Asker;
use socket::Socket;

/// What is known of the network, in the form of the kernel's /proc/net/pnp. It outlives an
/// attempt, so that the next one asks for the same address.
pub const KNOWN: &str = "/run/piman-net";

/// What the kernel's own DHCP left.
const PNP: &str = "/proc/net/pnp";
const ROUTES: &str = "/proc/net/route";

/// How often it is looked whether there are other interfaces.
const LOOK: Duration = Duration::from_millis(200);
/// How often it is said again what is waited for.
const REMIND: Duration = Duration::from_secs(10);

/// What is known of the network: by us, else by the kernel.
#[must_use]
pub fn known() -> (&'static str, String) {
    for file in [KNOWN, PNP] {
        if let Ok(text) = fs::read_to_string(file) {
            return (file, text);
        }
    }
    (PNP, String::new())
}

/// Switches the interfaces on and gets an address for one, if nobody else has. `seeks_piman`:
/// where piman is is not known yet. An address from an earlier attempt is asked for again.
///
/// # Errors
/// What is missing, in words, when the time is up.
pub fn set_up(addressing: &Addressing, seeks_piman: bool, at_most: Duration) -> Result<(), String> {
    let before = Before::read();
    let elsewhere =
        before.is_none() && fs::read_to_string(ROUTES).is_ok_and(|routes| link::is_configured(&routes));
    if *addressing == Addressing::Off || elsewhere {
        return Ok(());
    }
    let mut search = Search {
        kernel: Kernel::open().map_err(|e| format!("the kernel has no network: {e}"))?,
        start: Instant::now(),
        before,
        seeks_piman,
        asking: Vec::new(),
        said: None,
    };
    search.run(addressing, at_most)
}

/// The address of an earlier attempt.
struct Before {
    interface: String,
    address: Ipv4Addr,
    prefix: u8,
}

impl Before {
    fn read() -> Option<Self> {
        let text = fs::read_to_string(KNOWN).ok()?;
        let mut words = text.lines().find_map(|l| l.strip_prefix("#lease "))?.split(' ');
        Some(Self {
            interface: words.next()?.to_owned(),
            address: words.next()?.parse().ok()?,
            prefix: words.next()?.parse().ok()?,
        })
    }
}

/// An interface that is asked on.
struct Asking {
    interface: Interface,
    socket: Socket,
    client: Client,
}

struct Search {
    kernel: Kernel,
    start: Instant,
    before: Option<Before>,
    seeks_piman: bool,
    asking: Vec<Asking>,
    said: Option<(String, Instant)>,
}

impl Search {
    fn run(&mut self, addressing: &Addressing, at_most: Duration) -> Result<(), String> {
        let named = match addressing {
            Addressing::DhcpOn(name) => Some(name.as_str()),
            Addressing::Fixed(fixed) => fixed.interface.as_deref(),
            Addressing::Dhcp | Addressing::Off => None,
        };
        loop {
            let links = self.look(named);
            if let Addressing::Fixed(fixed) = addressing {
                if let Some(interface) = links.0.iter().find(|i| i.link == Link::Up) {
                    return self.take_fixed(interface, fixed);
                }
            } else {
                self.ask_on(&links);
            }
            let lacking = match (named, self.asking.is_empty()) {
                (_, false) => {
                    let names: Vec<_> = self.asking.iter().map(|a| a.interface.name.as_str()).collect();
                    format!("no DHCP server has answered on {} yet", names.join(", "))
                }
                (Some(name), true) if links.0.is_empty() => format!("there is no interface {name}"),
                (_, true) => links.to_string(),
            };
            if self.start.elapsed() >= at_most {
                return Err(format!("no address: {lacking} (waited {} s)", at_most.as_secs()));
            }
            if self.said.as_ref().is_none_or(|(words, at)| *words != lacking || at.elapsed() >= REMIND) {
                log::info!("waiting for an address: {lacking}");
                self.said = Some((lacking, Instant::now()));
            }
            if let Some((n, lease)) = self.listen() {
                let asking = self.asking.swap_remove(n);
                return self.take_lease(asking, lease);
            }
        }
    }

    /// The interfaces that count, switched on.
    fn look(&self, named: Option<&str>) -> Links {
        let mut links = Links::read(Path::new(link::FOLDER));
        links.0.retain(|i| i.mac.is_some() && named.is_none_or(|name| name == i.name));
        for interface in links.0.iter().filter(|i| i.link == Link::Down) {
            if let Err(e) = self.kernel.switch_on(interface.number) {
                log::debug!("{} cannot be switched on: {e}", interface.name);
            }
        }
        links
    }

    fn ask_on(&mut self, links: &Links) {
        // A cable that was pulled and put in again may lead elsewhere now.
        self.asking.retain(|a| links.0.contains(&a.interface));
        for interface in links.0.iter().filter(|i| i.link == Link::Up) {
            let Some(mac) = interface.mac.filter(|_| self.asking.iter().all(|a| a.interface != *interface))
            else {
                continue;
            };
            let socket = match Socket::open(interface.number) {
                Ok(socket) => socket,
                Err(e) => {
                    log::warn!(
                        "{}: packets cannot be sent (the kernel needs CONFIG_PACKET): {e}",
                        interface.name
                    );
                    continue;
                }
            };
            let before = self.before.as_ref().filter(|b| b.interface == interface.name).map(|b| b.address);
            let client = Client::new(asker(mac), before, self.seeks_piman, self.start.elapsed());
            self.asking.push(Asking { interface: interface.clone(), socket, client });
        }
    }

    /// Sends what is due, and waits a little for answers. Which interface has a lease, if one has.
    fn listen(&mut self) -> Option<(usize, Lease)> {
        let now = self.start.elapsed();
        let mut wait = LOOK;
        for Asking { interface, socket, client } in &mut self.asking {
            if let Some((question, _)) = client.poll(now)
                && let Err(e) = socket.send(&message::wrap(&question))
            {
                log::debug!("{}: {e}", interface.name);
            }
            wait = wait.min(client.due().saturating_sub(now));
        }
        let mut fds: Vec<_> = self.asking.iter().map(|a| PollFd::new(&a.socket, PollFlags::IN)).collect();
        let time = Timespec { tv_sec: 0, tv_nsec: wait.subsec_nanos().max(1_000_000).into() };
        let _ = rustix::event::poll(&mut fds, Some(&time));
        drop(fds);
        let now = self.start.elapsed();
        let mut buffer = [0; 2048];
        for (n, Asking { interface, socket, client }) in self.asking.iter_mut().enumerate() {
            while let Some(packet) = socket.receive(&mut buffer) {
                match message::unwrap(packet).and_then(|m| client.handle(m, now)) {
                    Some(Event::Bound(lease)) => return Some((n, lease)),
                    Some(Event::Lost) => log::info!("{}: the server refuses the address", interface.name),
                    None => {}
                }
            }
        }
        None
    }

    fn take_lease(&mut self, asking: Asking, lease: Lease) -> Result<(), String> {
        let interface = asking.interface;
        self.give(&interface, lease.address, lease.prefix, lease.router)?;
        log::info!(
            "{} has {}/{} from {} for {} s{}{}",
            interface.name,
            lease.address,
            lease.prefix,
            lease.server,
            lease.time.as_secs(),
            lease.router.map(|r| format!(", router {r}")).unwrap_or_default(),
            lease.boot.as_ref().map(|b| format!(", boot server {b}")).unwrap_or_default()
        );
        let kept = format!("#lease {} {} {}\n", interface.name, lease.address, lease.prefix);
        note("DHCP", &kept, &lease.dns, lease.boot.as_deref());
        let (client, start) = (asking.client, self.start);
        let renewing = thread::Builder::new().spawn(move || renew(client, lease, start));
        if let Err(e) = renewing {
            log::warn!("the address will not be renewed: {e}");
        }
        Ok(())
    }

    fn take_fixed(&mut self, interface: &Interface, fixed: &Fixed) -> Result<(), String> {
        self.give(interface, fixed.address, fixed.prefix, fixed.router)?;
        log::info!("{} has {}/{}, as ip= says", interface.name, fixed.address, fixed.prefix);
        let kept = format!("#lease {} {} {}\n", interface.name, fixed.address, fixed.prefix);
        note("MANUAL", &kept, &fixed.dns, fixed.server.map(|s| s.to_string()).as_deref());
        Ok(())
    }

    fn give(
        &self,
        interface: &Interface,
        address: Ipv4Addr,
        prefix: u8,
        router: Option<Ipv4Addr>,
    ) -> Result<(), String> {
        if let Some(before) = self.before.as_ref().filter(|b| b.address != address)
            && let Some(old) =
                Links::read(Path::new(link::FOLDER)).0.iter().find(|i| i.name == before.interface)
        {
            let _ = self.kernel.remove_address(old.number, before.address, before.prefix);
        }
        let what =
            |e: io::Error| format!("{}: the kernel does not take the address {address}: {e}", interface.name);
        self.kernel.add_address(interface.number, address, prefix).map_err(what)?;
        if let Some(router) = router
            && let Err(e) = self.kernel.set_router(interface.number, router)
        {
            log::warn!("{}: the kernel does not take the router {router}: {e}", interface.name);
        }
        Ok(())
    }
}

fn asker(mac: [u8; 6]) -> Asker {
    let serial = Identity::of_this_machine().serial;
    let low = serial.as_deref().and_then(|s| s.get(s.len().saturating_sub(8)..));
    Asker {
        mac,
        serial: low.and_then(|s| u32::from_str_radix(s, 16).ok()),
        // The standard library's hash keys are random numbers of the kernel.
        number: RandomState::new().hash_one(mac) as u32,
    }
}

/// Writes down what is known, for the rest of the agent and for looking up names.
fn note(how: &str, more: &str, dns: &[Ipv4Addr], boot: Option<&str>) {
    let mut text = format!("#PROTO: {how}\n{more}");
    for server in dns {
        text += &format!("nameserver {server}\n");
    }
    if let Some(boot) = boot {
        text += &format!("bootserver {boot}\n");
    }
    let path = Path::new(KNOWN);
    let made = path.parent().map_or(Ok(()), fs::create_dir_all);
    if let Err(e) = made.and_then(|()| fs::write(path, text)) {
        log::warn!("{KNOWN}: {e}");
    }
}

/// Keeps the lease for as long as the attempt lasts. The address is never given up: an
/// installation that is under way would fail for certain, and not only if somebody else gets it.
fn renew(mut client: Client, lease: Lease, start: Instant) {
    let mut socket = None;
    let mut buffer = [0; 2048];
    loop {
        let now = start.elapsed();
        if client.due() == Duration::MAX {
            return;
        }
        if now < client.due() {
            thread::sleep((client.due() - now).min(Duration::from_secs(60)));
            continue;
        }
        let Some((question, to)) = client.poll(now) else { continue };
        if socket.is_none() {
            socket = renewal_socket(lease.address).inspect_err(|e| log::debug!("renewing: {e}")).ok();
        }
        let Some(socket) = &socket else { continue };
        let to = match to {
            To::Server(server) => server,
            To::Everybody => Ipv4Addr::BROADCAST,
        };
        if let Err(e) = socket.send_to(&question, (to, message::SERVER_PORT)) {
            log::debug!("renewing: {e}");
        }
        while let Ok(length) = socket.recv(&mut buffer) {
            match client.handle(buffer.get(..length).unwrap_or_default(), start.elapsed()) {
                Some(Event::Bound(_)) => {
                    log::info!("the lease of {} goes on", lease.address);
                    break;
                }
                Some(Event::Lost) => {
                    log::warn!(
                        "the lease of {} has ended; it is used until this attempt is over",
                        lease.address
                    );
                    return;
                }
                None => {}
            }
        }
    }
}

fn renewal_socket(address: Ipv4Addr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind((address, message::CLIENT_PORT))?;
    socket.set_broadcast(true)?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    Ok(socket)
}
