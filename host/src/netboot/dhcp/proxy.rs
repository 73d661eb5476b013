//! Beside another DHCP server: only where to boot from, only to those who ask for that.

use std::net::Ipv4Addr;

use piman_core::dhcp::Kind;

use super::message::{Ask, Reply};

/// To which port a request came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Port {
    /// 67, where everybody's requests come.
    Dhcp,
    /// 4011, where only those come that have our offer.
    Pxe,
}

/// What is told to Pis.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Boot {
    /// The file that a client should ask for; boot ROMs know what they want without.
    pub file: String,
    /// Whether others than Raspberry Pis are answered too.
    pub everybody: bool,
}

impl Boot {
    /// Whether this client is told where to boot from.
    #[must_use]
    pub fn is_for(&self, ask: &Ask) -> bool {
        self.everybody || ask.is_pi() || ask.is_agent()
    }

    /// Whether it belongs to the timeline of a device: a machine that boots, and no laptop that gets
    /// an address, nor a running Pi that goes on using its own.
    #[must_use]
    pub fn is_told_of(&self, ask: &Ask) -> bool {
        let boots = ask.is_pxe() || ask.is_agent();
        self.is_for(ask) && (boots || ask.is_pi() && ask.address().is_none())
    }
}

/// The reply to a request, if there is one: no address is ever given.
#[must_use]
pub fn answer(ask: &Ask, port: Port, me: Ipv4Addr, boot: &Boot) -> Option<Reply> {
    if !(ask.is_pxe() || ask.is_agent()) || !boot.is_for(ask) {
        return None;
    }
    let kind = match (port, ask.kind) {
        (Port::Dhcp, Kind::Discover) => Kind::Offer,
        // A request at the other port is for the server that gives addresses; whoever sends it to us
        // has taken our offer for one.
        (Port::Pxe, Kind::Request | Kind::Inform) => Kind::Ack,
        (Port::Dhcp, Kind::Inform) => Kind::Ack,
        _ => return None,
    };
    let mut reply = ask.reply(kind, me);
    ask.add_boot(&mut reply, me, &boot.file);
    Some(reply)
}

#[cfg(test)]
mod tests {
    use piman_core::dhcp::code;

    use super::super::message::tests::{Opt, ask, ask_with, rom};
    use super::*;

    const ME: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);

    fn boot(everybody: bool) -> Boot {
        Boot { file: "bootcode.bin".into(), everybody }
    }

    fn kind(ask: &Ask, port: Port) -> Option<Kind> {
        Some(answer(ask, port, ME, &boot(false))?.kind())
    }

    #[test]
    fn a_pi_is_told_where_to_boot_and_gets_no_address() {
        let discover = ask(Kind::Discover, 1, &rom());
        let reply = answer(&discover, Port::Dhcp, ME, &boot(false)).unwrap();
        assert_eq!(reply.kind(), Kind::Offer);
        assert_eq!((reply.header.your_address, reply.header.next_server), (Ipv4Addr::UNSPECIFIED, ME));
        for code in [code::LEASE_TIME, code::SUBNET_MASK, code::ROUTER] {
            assert!(reply.get(code).is_none(), "{code}");
        }
        let request = ask(Kind::Request, 1, &rom());
        assert_eq!((kind(&request, Port::Pxe), kind(&discover, Port::Pxe)), (Some(Kind::Ack), None));
    }

    #[test]
    fn the_agent_is_told_that_piman_is_here() {
        let class = [(code::CLASS, b"piman".to_vec())];
        let mut agent = ask(Kind::Discover, 1, &class);
        // On a board whose address nobody knows, too.
        agent.mac.0 = [2, 0, 0, 0, 0, 1];
        let reply = answer(&agent, Port::Dhcp, ME, &boot(false)).unwrap();
        assert_eq!((reply.header.your_address, reply.header.next_server), (Ipv4Addr::UNSPECIFIED, ME));
        assert_eq!(reply.get(code::CLASS), Some(&b"piman"[..]));
        agent.kind = Kind::Request;
        assert_eq!(kind(&agent, Port::Dhcp), None, "the address is another server's business");
    }

    #[test]
    fn what_is_for_the_other_server() {
        let other = [rom(), vec![(code::SERVER, vec![10, 0, 0, 9])]].concat();
        assert_eq!(kind(&ask(Kind::Request, 1, &other), Port::Dhcp), None);
        assert_eq!(kind(&ask(Kind::Request, 1, &rom()), Port::Dhcp), None);
        let mistaken = [rom(), vec![(code::SERVER, ME.octets().to_vec())]].concat();
        assert_eq!(kind(&ask(Kind::Request, 1, &mistaken), Port::Dhcp), None);
        for not_ours in [Kind::Release, Kind::Decline, Kind::Offer] {
            assert_eq!(kind(&ask(not_ours, 1, &rom()), Port::Dhcp), None);
        }
    }

    #[test]
    fn what_belongs_to_a_timeline() {
        let of_pi = |options: &[Opt]| ask(Kind::Request, 1, options);
        let stranger = |options: &[Opt]| {
            let mut ask = of_pi(options);
            ask.mac.0 = [2, 0, 0, 0, 0, 1];
            ask
        };
        let pxe = [(code::CLASS, b"PXEClient:Arch:00007".to_vec())];
        assert!(boot(false).is_told_of(&of_pi(&rom())) && boot(false).is_told_of(&of_pi(&[])));
        let with = |options: &[Opt]| ask_with(Kind::Request, 1, [10, 0, 0, 7].into(), options);
        assert!(!boot(false).is_told_of(&with(&[])), "it goes on using its address");
        assert!(boot(false).is_told_of(&with(&rom())), "it boots all the same");
        for everybody in [false, true] {
            assert!(!boot(everybody).is_told_of(&stranger(&[])), "a laptop");
            assert_eq!(boot(everybody).is_told_of(&stranger(&pxe)), everybody, "a PC that boots");
        }
    }

    #[test]
    fn others_are_left_alone() {
        // A Pi's system, not its boot ROM; and a PC that boots from the network.
        assert_eq!(kind(&ask(Kind::Discover, 1, &[]), Port::Dhcp), None);
        let pxe = [(code::CLASS, b"PXEClient:Arch:00007".to_vec())];
        let mut pc = ask(Kind::Discover, 1, &pxe);
        pc.mac.0 = [2, 0, 0, 0, 0, 1];
        assert_eq!(kind(&pc, Port::Dhcp), None);
        let reply = answer(&pc, Port::Dhcp, ME, &boot(true)).unwrap();
        assert!(reply.get(code::VENDOR).is_none(), "a PC has no Pi's menu");
    }
}
