//! Beside another DHCP server: only where to boot from, only to those who ask for that.

use std::net::Ipv4Addr;

use dhcproto::v4::{Message, MessageType};

use super::message::Ask;

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
pub fn answer(ask: &Ask, port: Port, me: Ipv4Addr, boot: &Boot) -> Option<Message> {
    if !(ask.is_pxe() || ask.is_agent()) || !boot.is_for(ask) {
        return None;
    }
    let kind = match (port, ask.kind) {
        (Port::Dhcp, MessageType::Discover) => MessageType::Offer,
        // A request at the other port is for the server that gives addresses; whoever sends it to us
        // has taken our offer for one.
        (Port::Pxe, MessageType::Request | MessageType::Inform) => MessageType::Ack,
        (Port::Dhcp, MessageType::Inform) => MessageType::Ack,
        _ => return None,
    };
    let mut reply = ask.reply(kind, me);
    ask.add_boot(&mut reply, me, &boot.file);
    Some(reply)
}

#[cfg(test)]
mod tests {
    use dhcproto::v4::{DhcpOption, OptionCode};

    use super::super::message::tests::{ask, ask_with, rom};
    use super::*;

    const ME: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);

    fn boot(everybody: bool) -> Boot {
        Boot { file: "bootcode.bin".into(), everybody }
    }

    fn kind(ask: &Ask, port: Port) -> Option<MessageType> {
        answer(ask, port, ME, &boot(false))?.opts().msg_type()
    }

    #[test]
    fn a_pi_is_told_where_to_boot_and_gets_no_address() {
        let discover = ask(MessageType::Discover, 1, &rom());
        let reply = answer(&discover, Port::Dhcp, ME, &boot(false)).unwrap();
        assert_eq!(reply.opts().msg_type(), Some(MessageType::Offer));
        assert_eq!((reply.yiaddr(), reply.siaddr()), (Ipv4Addr::UNSPECIFIED, ME));
        for code in [OptionCode::AddressLeaseTime, OptionCode::SubnetMask, OptionCode::Router] {
            assert!(!reply.opts().contains(code), "{code:?}");
        }
        let request = ask(MessageType::Request, 1, &rom());
        assert_eq!((kind(&request, Port::Pxe), kind(&discover, Port::Pxe)), (Some(MessageType::Ack), None));
    }

    #[test]
    fn the_agent_is_told_that_piman_is_here() {
        let class = [DhcpOption::ClassIdentifier(b"piman".to_vec())];
        let mut agent = ask(MessageType::Discover, 1, &class);
        // On a board whose address nobody knows, too.
        agent.mac.0 = [2, 0, 0, 0, 0, 1];
        let reply = answer(&agent, Port::Dhcp, ME, &boot(false)).unwrap();
        assert_eq!((reply.yiaddr(), reply.siaddr()), (Ipv4Addr::UNSPECIFIED, ME));
        assert_eq!(reply.opts().get(OptionCode::ClassIdentifier), class.first());
        agent.kind = MessageType::Request;
        assert_eq!(kind(&agent, Port::Dhcp), None, "the address is another server's business");
    }

    #[test]
    fn what_is_for_the_other_server() {
        let other = [rom(), vec![DhcpOption::ServerIdentifier([10, 0, 0, 9].into())]].concat();
        assert_eq!(kind(&ask(MessageType::Request, 1, &other), Port::Dhcp), None);
        assert_eq!(kind(&ask(MessageType::Request, 1, &rom()), Port::Dhcp), None);
        let mistaken = [rom(), vec![DhcpOption::ServerIdentifier(ME)]].concat();
        assert_eq!(kind(&ask(MessageType::Request, 1, &mistaken), Port::Dhcp), None);
        for not_ours in [MessageType::Release, MessageType::Decline, MessageType::Offer] {
            assert_eq!(kind(&ask(not_ours, 1, &rom()), Port::Dhcp), None);
        }
    }

    #[test]
    fn what_belongs_to_a_timeline() {
        let of_pi = |options: &[DhcpOption]| ask(MessageType::Request, 1, options);
        let stranger = |options: &[DhcpOption]| {
            let mut ask = of_pi(options);
            ask.mac.0 = [2, 0, 0, 0, 0, 1];
            ask
        };
        let pxe = [DhcpOption::ClassIdentifier(b"PXEClient:Arch:00007".to_vec())];
        assert!(boot(false).is_told_of(&of_pi(&rom())) && boot(false).is_told_of(&of_pi(&[])));
        let with = |options: &[DhcpOption]| ask_with(MessageType::Request, 1, [10, 0, 0, 7].into(), options);
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
        assert_eq!(kind(&ask(MessageType::Discover, 1, &[]), Port::Dhcp), None);
        let pxe = [DhcpOption::ClassIdentifier(b"PXEClient:Arch:00007".to_vec())];
        let mut pc = ask(MessageType::Discover, 1, &pxe);
        pc.mac.0 = [2, 0, 0, 0, 0, 1];
        assert_eq!(kind(&pc, Port::Dhcp), None);
        let reply = answer(&pc, Port::Dhcp, ME, &boot(true)).unwrap();
        assert!(!reply.opts().contains(OptionCode::VendorExtensions), "a PC has no Pi's menu");
    }
}
