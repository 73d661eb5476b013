//! The network of the interface on which DHCP is answered.

use std::net::Ipv4Addr;

use piman_core::dhcp::code;

use super::message::Reply;

/// What a server's network is like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// The server's own address.
    pub me: Ipv4Addr,
    /// The mask of the network.
    pub mask: Ipv4Addr,
    /// The router that clients are told of.
    pub router: Option<Ipv4Addr>,
    /// The name servers that clients are told of.
    pub dns: Vec<Ipv4Addr>,
}

impl Network {
    /// Whether an address is in this network.
    #[must_use]
    pub fn contains(&self, ip: Ipv4Addr) -> bool {
        ip & self.mask == self.me & self.mask
    }

    /// The address of everybody in it.
    fn broadcast(&self) -> Ipv4Addr {
        self.me | !self.mask
    }

    /// Whether a client can have this address.
    #[must_use]
    pub fn is_usable(&self, ip: Ipv4Addr) -> bool {
        let edge = ip == self.broadcast() || ip == self.me & self.mask;
        self.contains(ip) && ip != self.me && Some(ip) != self.router && (!edge || self.mask.to_bits() >= !1)
    }

    /// Tells a client of it.
    pub fn describe(&self, reply: &mut Reply) {
        reply.set(code::SUBNET_MASK, &self.mask.octets());
        reply.set(code::BROADCAST, &self.broadcast().octets());
        if let Some(router) = self.router {
            reply.set(code::ROUTER, &router.octets());
        }
        let dns: Vec<u8> = self.dns.iter().flat_map(Ipv4Addr::octets).collect();
        reply.set(code::NAME_SERVER, &dns);
    }
}
