//! `piman netboot build`, and `piman serve` with DHCP and TFTP in a network namespace, tried with
//! clients that others wrote.

use std::fs;
use std::net::Ipv4Addr;
use std::process::Command;

use piman_core::dhcp::client::{Asker, QUESTION, Question, Reply};
use piman_core::dhcp::server::Request;
use piman_core::dhcp::{Builder, Header, Kind, Message, Op, build, code};
use piman_tests::binaries;
use piman_tests::disk::run;
use piman_tests::netns::{Network, agent, build, ingredients, printed};
use piman_tests::wait::until;
use proptest::prelude::*;

/// A public key for the Pis is where the agent looks for it.
#[test]
fn a_public_key_is_where_the_agent_looks_for_it() {
    let dir = tempfile::tempdir().unwrap();
    ingredients(dir.path());
    let key =
        "untrusted comment: minisign public key\nRWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3\n";
    for (name, text) in [("key.pub", key), ("bad.pub", "RWQ")] {
        fs::write(dir.path().join(name), text).unwrap();
    }
    let with = |file| ["--kernel", "kernel", "--firmware", "firmware", "--public-key", file];
    run(&mut build(dir.path(), "one", &with("key.pub")));
    let out = dir.path().join("unpacked");
    fs::create_dir(&out).unwrap();
    let unpack = "gzip -dc $1 | (busybox cpio -i -d -m || true) 2>/dev/null";
    let packed = dir.path().join("one/initramfs.cpio.gz");
    run(Command::new("sh").arg("-c").arg(unpack).arg("-").arg(&packed).current_dir(&out));
    let inside = out.join(pi_agent::trust::FILE.trim_start_matches('/'));
    assert_eq!(fs::read_to_string(inside).unwrap(), key);
    let refused = build(dir.path(), "two", &with("bad.pub")).output().unwrap();
    assert!(!refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("bad.pub"));
}

#[test]
fn the_same_input_gives_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    ingredients(dir.path());
    let more = ["--firmware", "firmware", "--kernel", "kernel", "--modules", "modules"];
    let said = printed(&mut build(dir.path(), "one", &more));
    run(&mut build(dir.path(), "two", &more));
    let mut names: Vec<String> = fs::read_dir(dir.path().join("one"))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    let expected = [
        "bcm2711-rpi-4-b.dtb",
        "cmdline.txt",
        "config.txt",
        "fixup4.dat",
        "initramfs.cpio.gz",
        "kernel8.img",
        "overlays",
        "start4.elf",
    ];
    assert_eq!(names, expected);
    for name in
        names.iter().map(String::as_str).filter(|n| *n != "overlays").chain(["overlays/disable-bt.dtbo"])
    {
        let read = |folder: &str| fs::read(dir.path().join(folder).join(name)).unwrap();
        assert!(read("one") == read("two"), "{name}");
    }
    assert!(said.contains("a Pi 3 will not boot: there is no bootcode.bin"), "{said}");
    assert!(!said.contains("a Pi 4 will not boot"), "{said}");
    // What others unpack is what we packed.
    let packed = dir.path().join("one/initramfs.cpio.gz");
    let out = dir.path().join("unpacked");
    fs::create_dir(&out).unwrap();
    run(Command::new("sh")
        .arg("-c")
        .arg("gzip -dc $1 | busybox cpio -t")
        .arg("-")
        .arg(&packed)
        .current_dir(&out));
    let unpack = "gzip -dc $1 | (busybox cpio -i -d -m || true) 2>/dev/null";
    run(Command::new("sh").arg("-c").arg(unpack).arg("-").arg(&packed).current_dir(&out));
    assert_eq!(fs::read(out.join("init")).unwrap(), agent());
    assert!(!out.join("etc/piman").exists(), "nobody gave a key");
    assert_eq!(fs::read_to_string(out.join("lib/modules/piman/000-a.ko")).unwrap(), "a.ko");
    assert_eq!(fs::read_to_string(out.join("lib/modules/piman/001-b.ko")).unwrap(), "b.ko");
    assert!(dir.path().join("one/overlays/overlay_map.dtb").exists());
    assert!(!dir.path().join("one/overlays/README").exists());
    // The other packing takes the first one's place.
    run(&mut build(dir.path(), "one", &[&more[..], &["--packing", "zstd"]].concat()));
    let zstd = fs::read(dir.path().join("one/initramfs.cpio.zst")).unwrap();
    run(&mut build(dir.path(), "two", &[&more[..], &["--packing", "zstd"]].concat()));
    assert!(zstd == fs::read(dir.path().join("two/initramfs.cpio.zst")).unwrap());
    assert!(!packed.exists());
    let config = fs::read_to_string(dir.path().join("one/config.txt")).unwrap();
    assert!(config.contains("initramfs initramfs.cpio.zst followkernel"), "{config}");
    let archive = zstd::decode_all(&*zstd).unwrap();
    assert!(archive.windows(9).any(|w| w == b"TRAILER!!"));
}

#[test]
fn what_could_not_boot_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    ingredients(dir.path());
    let fails = |more: &[&str], says: &str| {
        let output = build(dir.path(), "out", more).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(says), "{says}: {said}");
    };
    fs::write(dir.path().join("empty"), "").unwrap();
    fails(&["--kernel", "empty"], "no kernel for 64-bit ARM");
    fails(&["--firmware", "modules"], "has no firmware");
    fails(&["--modules", "firmware"], "no modules");
    fails(&["--kernel", "kernel", "--cmdline", "a\nb"], "one line");
    fs::write(dir.path().join("agent"), "#!/bin/sh\n").unwrap();
    fails(&["--kernel", "kernel"], "--agent");
    assert!(!dir.path().join("out").exists(), "nothing is left half");
}

const SERVER: [&str; 8] = [
    "--dhcp",
    "server",
    "--dhcp-range",
    "192.168.77.10-192.168.77.12",
    "--dhcp-router",
    "192.168.77.254",
    "--dhcp-dns",
    "192.168.77.253",
];

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
#[cfg_attr(lacks = "ip", ignore = "needs ip (iproute2)")]
#[cfg_attr(lacks = "busybox", ignore = "needs busybox")]
fn a_client_gets_an_address_files_and_a_timeline() {
    let mut network = Network::make();
    let pi = network.pi.clone();
    network.serve(&SERVER);
    let told = network.udhcpc("");
    for line in [
        "ip=192.168.77.10",
        "subnet=255.255.255.0",
        "router=192.168.77.254",
        "dns=192.168.77.253",
        "lease=3600",
        "siaddr=192.168.77.1",
        "serverid=192.168.77.1",
    ] {
        assert!(told.lines().any(|l| l == line), "{line}: {told}");
    }
    network.ip(&pi, "address add 192.168.77.10/24 dev eth0");
    let length = fs::metadata(network.dir.path().join("boot/initramfs.cpio.gz")).unwrap().len();
    network.in_pi("busybox tftp -g -b 1468 -r abcdef01/initramfs.cpio.gz -l fetched 192.168.77.1");
    assert_eq!(fs::metadata(network.dir.path().join("fetched")).unwrap().len(), length);
    network.wait("log", "initramfs.cpio.gz: ");

    // What happened is saved from time to time.
    until("the device is known", || network.piman(&["devices"]).contains("b8:27:eb:00:00:01"));
    for words in ["is offered 192.168.77.10", "has 192.168.77.10", "initramfs.cpio.gz: "] {
        until(words, || network.piman(&["device", "b8:27:eb:00:00:01"]).contains(words));
    }

    // The lease is there after a restart, and the address the same.
    network.stop();
    network.ip(&pi, "address flush dev eth0");
    network.serve(&SERVER);
    assert!(network.udhcpc("").contains("ip=192.168.77.10"));
    assert!(network.udhcpc("-r 192.168.77.10").contains("ip=192.168.77.10"));
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
#[cfg_attr(lacks = "ip", ignore = "needs ip (iproute2)")]
#[cfg_attr(lacks = "busybox", ignore = "needs busybox")]
fn an_address_that_somebody_has_is_not_given() {
    let mut network = Network::make();
    // Another machine on the same cable, with an address of the pool.
    let pi = network.pi.clone();
    network.ip(&pi, "link add other link eth0 type macvlan mode bridge");
    network.ip(&pi, "link set other up");
    network.ip(&pi, "address add 192.168.77.10/24 dev other");
    network.serve(&SERVER);
    assert!(network.udhcpc("").contains("ip=192.168.77.11"));
    network.wait("log", "somebody has 192.168.77.10");
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
#[cfg_attr(lacks = "ip", ignore = "needs ip (iproute2)")]
#[cfg_attr(lacks = "busybox", ignore = "needs busybox")]
fn fixed_leases_and_a_pool_that_is_empty() {
    let mut network = Network::make();
    network.serve(&["--dhcp", "server", "--dhcp-lease", "b8:27:eb:00:00:01=192.168.77.40"]);
    assert!(network.udhcpc("").contains("ip=192.168.77.40"));
    network.stop();
    network.serve(&["--dhcp", "server", "--dhcp-lease", "b8:27:eb:00:00:02=192.168.77.40"]);
    let pi = network
        .command(&network.pi, "busybox")
        .args(["udhcpc", "-i", "eth0", "-f", "-q", "-n", "-t", "2", "-T", "1", "-s", "/bin/true"])
        .status();
    assert!(!pi.unwrap().success(), "the only address is another's");
    network.wait("log", "no address is left");
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
#[cfg_attr(lacks = "ip", ignore = "needs ip (iproute2)")]
#[cfg_attr(lacks = "busybox", ignore = "needs busybox")]
fn a_proxy_gives_no_address_and_others_hear_nothing() {
    let mut network = Network::make();
    network.serve(&["--dhcp", "proxy"]);
    for class in ["PXEClient:Arch:00000:UNDI:002001", "udhcp"] {
        let client =
            ["udhcpc", "-i", "eth0", "-f", "-q", "-n", "-t", "2", "-T", "1", "-s", "/bin/true", "-V", class];
        let pi = network.command(&network.pi, "busybox").args(client).status();
        assert!(!pi.unwrap().success(), "a proxy has no address to give");
    }
    network.wait("log", "the boot ROM is told where to boot from");
    let log = fs::read_to_string(network.dir.path().join("log")).unwrap();
    assert!(!log.contains("is offered"), "{log}");
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
#[cfg_attr(lacks = "ip", ignore = "needs ip (iproute2)")]
fn ranges_of_another_network_are_refused() {
    let mut network = Network::make();
    network.serve(&["--dhcp", "proxy"]);
    network.stop();
    let refused = |more: &[&str], says: &str| {
        let mut command = network.command(&network.server, binaries::piman().to_str().unwrap());
        command
            .args([
                "serve",
                "--rootfs",
                "root.tar.gz",
                "--allow-unfit",
                "--state",
                "state",
                "--netboot",
                "boot",
            ])
            .args(more);
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(says), "{says}: {said}");
    };
    let server = ["--dhcp", "server", "--dhcp-interface", "cable", "--dhcp-range"];
    refused(&[&server[..], &["10.0.0.1-10.0.0.9"]].concat(), "is not in the network of cable");
    refused(&["--dhcp", "server", "--dhcp-interface", "cable"], "--dhcp-range");
    refused(&["--dhcp", "proxy", "--dhcp-interface", "eth9"], "cable (192.168.77.1)");
}

fn any_options() -> impl Strategy<Value = Vec<(u8, Vec<u8>)>> {
    // Fill bytes, the mark of the end, and what moves options elsewhere are not options that one writes.
    let code = (1..255_u8).prop_filter("no plain option", |code| *code != code::OVERLOAD);
    prop::collection::vec((code, prop::collection::vec(any::<u8>(), 0..700)), 0..8)
}

fn any_header() -> impl Strategy<Value = Header<'static>> {
    let address = || any::<[u8; 4]>().prop_map(Ipv4Addr::from);
    let numbers = (any::<bool>(), any::<u32>(), any::<u16>(), any::<u16>(), any::<[u8; 6]>());
    (numbers, address(), address(), address(), address()).prop_map(|(numbers, client, your, next, relay)| {
        let (is_reply, number, seconds, flags, mac) = numbers;
        let op = if is_reply { Op::Reply } else { Op::Request };
        Header {
            seconds,
            flags,
            client_address: client,
            your_address: your,
            next_server: next,
            relay,
            ..Header::new(op, number, mac)
        }
    })
}

proptest! {
    #[test]
    fn a_dhcp_message_that_is_written_is_read(header in any_header(), options in any_options()) {
        let length = build::length(options.iter().map(|(_, value)| value.len()));
        let mut out = vec![0xaa; length];
        let write = |out: &mut [u8]| {
            let mut builder = Builder::new(out, &header);
            for (code, value) in &options {
                builder.option(*code, value);
            }
            builder.finish()
        };
        prop_assert_eq!(write(&mut out), Ok(length));
        prop_assert!(write(&mut out.clone()[1..]).is_err(), "it is as long as it says");
        let message = Message::parse(&out).unwrap();
        let known = |address: Ipv4Addr| Some(address).filter(|a| !a.is_unspecified());
        prop_assert_eq!((message.op(), message.mac()), (Some(header.op), Some(header.mac)));
        prop_assert_eq!((message.number(), message.seconds()), (header.number, header.seconds));
        prop_assert_eq!((message.flags(), message.is_cut()), (header.flags, false));
        prop_assert_eq!(message.client_address(), known(header.client_address));
        prop_assert_eq!(message.your_address(), known(header.your_address));
        prop_assert_eq!(message.next_server(), known(header.next_server));
        prop_assert_eq!(message.relay(), known(header.relay));
        for (code, _) in &options {
            let want: Vec<u8> = options.iter().filter(|(c, _)| c == code).flat_map(|(_, v)| v.clone()).collect();
            let value = message.option(*code).unwrap();
            prop_assert!(value.is(&want) && value.length() == want.len());
        }
    }

    /// The client's questions as the server reads them.
    #[test]
    fn a_question_arrives(
        who in (any::<[u8; 6]>(), prop::option::of(any::<u32>()), any::<u32>()),
        kind in 1..=8_u8,
        addresses in any::<[Option<[u8; 4]>; 3]>(),
        seconds in any::<u16>(),
    ) {
        let (mac, serial, number) = who;
        let [has, wants, server] = addresses.map(|a| a.map(Ipv4Addr::from).filter(|a| !a.is_unspecified()));
        let kind = Kind::from_number(kind);
        let mut out = [0; QUESTION];
        let written = Question { kind, has, wants, server, seconds }.write(&Asker { mac, serial, number }, &mut out);
        prop_assert_eq!(written, Ok(QUESTION));
        let request = Request::parse(&out).unwrap();
        prop_assert_eq!((request.kind, request.mac, request.number()), (kind, mac, number));
        prop_assert_eq!((request.address(), request.requested(), request.server()), (has, wants, server));
        prop_assert!(request.class().is_some_and(|class| class.is(b"piman")));
        prop_assert_eq!(request.machine_id().is_some(), serial.is_some());
        prop_assert!(Reply::parse(&out, &Asker { mac, serial, number }).is_none(), "it is no answer");
    }

    #[test]
    fn any_bytes_are_a_message_or_none(
        bytes in prop::collection::vec(any::<u8>(), 0..600),
        calm in any::<bool>(),
    ) {
        let mut bytes = bytes;
        if calm && bytes.len() >= 240 {
            bytes[0] = bytes[0] % 2 + 1;
            bytes[1..3].copy_from_slice(&[1, 6]);
            bytes[4..8].fill(7);
            bytes[236..240].copy_from_slice(&[99, 130, 83, 99]);
        }
        if let Some(message) = Message::parse(&bytes) {
            let all: usize = message.options().map(|(_, value)| value.len()).sum();
            prop_assert!(all <= bytes.len());
            prop_assert!(message.options().all(|(code, _)| message.option(code).is_some()));
        }
        if let Some(request) = Request::parse(&bytes) {
            prop_assert!(request.class().is_none_or(|class| class.length() >= 2));
            let who = Asker { mac: request.mac, serial: None, number: request.number() };
            bytes[0] = 2;
            prop_assert!(Reply::parse(&bytes, &who).is_none_or(|r| r.dns.len() <= 4));
        }
    }
}
