//! The bytes of every kind of reply, as they have been since the first version: requests as bytes in, replies
//! as bytes out, through the proxy and through the pool.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::Ipv4Addr;

use super::message::{Ask, encode, search};
use super::network::Network;
use super::pool::{Pool, Step};
use super::proxy::{self, Boot, Port};
use super::{Fixed, Range};
use crate::sys::mac::Mac;

const ME: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);

/// Hexadecimal, with `[n]` for n zeros where there are four or more.
fn dump(bytes: &[u8]) -> String {
    let mut out = String::new();
    let mut rest = bytes;
    while let Some(first) = rest.first() {
        let zeros = rest.iter().take_while(|b| **b == 0).count();
        if zeros >= 4 {
            write!(out, "[{zeros}]").unwrap();
            rest = &rest[zeros..];
        } else {
            write!(out, "{first:02x}").unwrap();
            rest = &rest[1..];
        }
    }
    out
}

/// A request as a client sends it: options by number, in this order.
fn request(mac: [u8; 6], flags: u16, ciaddr: [u8; 4], giaddr: [u8; 4], options: &[(u8, &[u8])]) -> Ask {
    let mut bytes = vec![0; 240];
    bytes[..4].copy_from_slice(&[1, 1, 6, 3]);
    bytes[4..8].copy_from_slice(&0x1234_5678_u32.to_be_bytes());
    bytes[8..10].copy_from_slice(&[0, 9]);
    bytes[10..12].copy_from_slice(&flags.to_be_bytes());
    bytes[12..16].copy_from_slice(&ciaddr);
    bytes[24..28].copy_from_slice(&giaddr);
    bytes[28..34].copy_from_slice(&mac);
    // A name in the fields that some firmware fills.
    bytes[44..48].copy_from_slice(b"name");
    bytes[108..112].copy_from_slice(b"file");
    bytes[236..].copy_from_slice(&[99, 130, 83, 99]);
    for (code, value) in options {
        bytes.extend([*code, value.len() as u8]);
        bytes.extend_from_slice(value);
    }
    bytes.push(255);
    Ask::parse(&bytes).unwrap()
}

const PI: [u8; 6] = [0xb8, 0x27, 0xeb, 0, 0, 1];
const PC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const NONE: [u8; 4] = [0; 4];
const PXE: (u8, &[u8]) = (60, b"PXEClient:Arch:00000:UNDI:002001");
const GUID: (u8, &[u8]) = (97, b"\0RPi4\x11\x31\xc0\0\0\x01\x02\x03\x01\xef\xcd\xab");

fn replies() -> Vec<(&'static str, String)> {
    let boot = Boot { file: "bootcode.bin".into(), everybody: false };
    let everybody = Boot { file: "undionly.kpxe".into(), everybody: true };
    let mut all = Vec::new();
    let mut proxied = |name, ask: &Ask, port, boot: &Boot| {
        let reply = proxy::answer(ask, port, ME, boot).unwrap();
        all.push((name, dump(&encode(&reply).unwrap())));
    };
    let rom = |kind| request(PI, 0x8000, NONE, NONE, &[(53, kind), (55, &[1, 3, 43, 60]), GUID, PXE]);
    proxied("proxy, a boot ROM discovers", &rom(&[1]), Port::Dhcp, &boot);
    proxied("proxy, a boot ROM asks the other port", &rom(&[3]), Port::Pxe, &boot);
    let relayed = request(PI, 0, NONE, [10, 9, 0, 1], &[PXE, (53, &[1]), (61, b"\x01id"), (82, b"relay")]);
    proxied("proxy, through a relay, with an identifier", &relayed, Port::Dhcp, &boot);
    let agent = request(PC, 0x8000, NONE, NONE, &[(53, &[1]), (60, b"piman"), (57, &[5, 0xc0])]);
    proxied("proxy, the agent", &agent, Port::Dhcp, &boot);
    let pc = request(PC, 0x8000, [10, 0, 0, 77], NONE, &[(53, &[8]), (60, b"PXEClient:Arch:00007")]);
    proxied("proxy, a PC", &pc, Port::Dhcp, &everybody);
    let long = Boot { file: "a/".repeat(150), everybody: true };
    proxied("proxy, a name that does not fit its field", &pc, Port::Dhcp, &long);

    let net = Network {
        me: ME,
        mask: [255, 255, 255, 0].into(),
        router: Some([10, 0, 0, 254].into()),
        dns: vec![[10, 0, 0, 253].into(), [8, 8, 8, 8].into()],
    };
    let fixed: Vec<Fixed> = vec!["abcdef01=10.0.0.51".parse().unwrap()];
    let range = Range { first: [10, 0, 0, 10].into(), last: [10, 0, 0, 20].into() };
    let mut pool = Pool::new(Some(range), fixed, 3601, BTreeMap::new());
    let mut pooled = |name, ask: &Ask, net: &Network| {
        let mut step = pool.handle(ask, net, &boot, 0);
        if let Step::Probe(ip) = step {
            step = pool.probed(ask, ip, false, net, &boot, 0);
        }
        let Step::Reply(reply) = step else { panic!("{name}: {step:?}") };
        all.push((name, dump(&encode(&reply).unwrap())));
    };
    pooled("server, a boot ROM discovers", &rom(&[1]), &net);
    pooled(
        "server, a boot ROM requests",
        &request(PI, 0, NONE, NONE, &[(53, &[3]), PXE, GUID, (54, &ME.octets()), (50, &[10, 0, 0, 51])]),
        &net,
    );
    let system = [2, 0, 0, 0, 0, 7];
    pooled(
        "server, a laptop discovers",
        &request(system, 0, NONE, NONE, &[(53, &[1]), (61, b"\x01\x02")]),
        &net,
    );
    pooled("server, a laptop renews", &request(system, 0, [10, 0, 0, 10], NONE, &[(53, &[3])]), &net);
    pooled("server, no", &request(system, 0, NONE, NONE, &[(53, &[3]), (50, &[192, 168, 9, 9]), GUID]), &net);
    pooled("server, the rest only", &request(system, 0, [10, 0, 0, 77], NONE, &[(53, &[8])]), &net);
    let bare = Network { router: None, dns: Vec::new(), ..net };
    pooled(
        "server, without router and name server",
        &request(PC, 0, NONE, NONE, &[(53, &[1]), (60, b"piman")]),
        &bare,
    );

    all.push(("a search", dump(&search(Mac(PC), 0x0102_0304).unwrap())));
    all
}

#[test]
fn every_reply_is_what_it_was() {
    let replies = replies();
    assert_eq!(replies.len(), GOLDEN.len());
    for ((name, bytes), golden) in replies.iter().zip(GOLDEN) {
        assert_eq!((*name, bytes.as_str()), *golden);
    }
}

const GOLDEN: &[(&str, &str)] = &[
    (
        "proxy, a boot ROM discovers",
        "0201060012345678000080[9]0a000001[4]b827eb000001[74]626f6f74636f64652e62696e[116]638253632b200601030a0400505845091400001152617370626572727920506920426f6f74ff35010236040a0000013c09505845436c69656e74420831302e302e302e31430c626f6f74636f64652e62696e611100525069341131c0000001020301efcdabff",
    ),
    (
        "proxy, a boot ROM asks the other port",
        "0201060012345678000080[9]0a000001[4]b827eb000001[74]626f6f74636f64652e62696e[116]638253632b200601030a0400505845091400001152617370626572727920506920426f6f74ff35010536040a0000013c09505845436c69656e74420831302e302e302e31430c626f6f74636f64652e62696e611100525069341131c0000001020301efcdabff",
    ),
    (
        "proxy, through a relay, with an identifier",
        "0201060012345678[12]0a0000010a090001b827eb000001[74]626f6f74636f64652e62696e[116]638253632b200601030a0400505845091400001152617370626572727920506920426f6f74ff35010236040a0000013c09505845436c69656e743d03016964420831302e302e302e31430c626f6f74636f64652e62696e520572656c6179ff",
    ),
    (
        "proxy, the agent",
        "0201060012345678000080[9]0a000001[4]02[4]01[74]626f6f74636f64652e62696e[116]6382536335010236040a0000013c0570696d616e420831302e302e302e31430c626f6f74636f64652e62696eff[19]",
    ),
    (
        "proxy, a PC",
        "0201060012345678000080[9]0a000001[4]02[4]01[74]756e64696f6e6c792e6b707865[115]6382536335010536040a0000013c09505845436c69656e74420831302e302e302e31430d756e64696f6e6c792e6b707865ff[14]",
    ),
    (
        "proxy, a name that does not fit its field",
        "0201060012345678000080[9]0a000001[4]02[4]01[202]6382536335010536040a0000013c09505845436c69656e74420831302e302e302e3143ff612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f61432d2f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612f612fff",
    ),
    (
        "server, a boot ROM discovers",
        "0201060012345678000080[5]0a0000330a000001[4]b827eb000001[74]626f6f74636f64652e62696e[116]638253630104ffffff0003040a0000fe06080a0000fd080808081c040a0000ff2b200601030a0400505845091400001152617370626572727920506920426f6f74ff330400000e1135010236040a0000013a04000007083b0400000c4e3c09505845436c69656e74420831302e302e302e31430c626f6f74636f64652e62696e611100525069341131c0000001020301efcdabff",
    ),
    (
        "server, a boot ROM requests",
        "0201060012345678[8]0a0000330a000001[4]b827eb000001[74]626f6f74636f64652e62696e[116]638253630104ffffff0003040a0000fe06080a0000fd080808081c040a0000ff2b200601030a0400505845091400001152617370626572727920506920426f6f74ff330400000e1135010536040a0000013a04000007083b0400000c4e3c09505845436c69656e74420831302e302e302e31430c626f6f74636f64652e62696e611100525069341131c0000001020301efcdabff",
    ),
    (
        "server, a laptop discovers",
        "0201060012345678[8]0a00000a[8]02[4]07[202]638253630104ffffff0003040a0000fe06080a0000fd080808081c040a0000ff330400000e1135010236040a0000013a04000007083b0400000c4e3d020102ff",
    ),
    (
        "server, a laptop renews",
        "0201060012345678[4]0a00000a0a00000a[8]02[4]07[202]638253630104ffffff0003040a0000fe06080a0000fd080808081c040a0000ff330400000e1135010536040a0000013a04000007083b0400000c4eff[4]",
    ),
    (
        "server, no",
        "0201060012345678000080[17]02[4]07[202]6382536335010636040a000001611100525069341131c0000001020301efcdabff[31]",
    ),
    (
        "server, the rest only",
        "0201060012345678[20]02[4]07[202]638253630104ffffff0003040a0000fe06080a0000fd080808081c040a0000ff35010536040a000001ff[22]",
    ),
    (
        "server, without router and name server",
        "0201060012345678[8]0a00000b0a000001[4]02[4]01[74]626f6f74636f64652e62696e[116]638253630104ffffff001c040a0000ff330400000e1135010236040a0000013a04000007083b0400000c4e3c0570696d616e420831302e302e302e31430c626f6f74636f64652e62696eff",
    ),
    ("a search", "0101060001020304000080[17]02[4]01[202]63825363350101ff[56]"),
];
