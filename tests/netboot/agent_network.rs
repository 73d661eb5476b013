//! The agent as `/init` sets up its network by itself: in a namespace with an interface that is
//! switched off, against our DHCP server, dnsmasq and busybox' udhcpd.

use std::fs;
use std::time::Duration;

use piman_tests::netns::{Network, assert_says, said};

const SERVER: [&str; 6] =
    ["--dhcp", "server", "--dhcp-range", "192.168.77.10-192.168.77.12", "--dhcp-router", "192.168.77.254"];

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
#[cfg_attr(lacks = "ip", ignore = "needs ip (iproute2)")]
fn from_an_interface_that_is_off_to_our_server() {
    let mut network = Network::make();
    let pi = network.pi.clone();
    network.serve(&SERVER);
    network.ip(&pi, "link set eth0 down");
    // Twice: the second attempt has the first one's address confirmed.
    let text = said(network.attempt(&network.pi, "", "ATTEMPT; ATTEMPT; cat /run/piman-net"));
    let first = "eth0 has 192.168.77.10/24 from 192.168.77.1 for 3600 s, router 192.168.77.254, boot server 192.168.77.1";
    assert_says(&text, &[first, "error: ", first, "error: ", "#lease eth0 192.168.77.10 24", "bootserver"]);
    let log = network.text("log");
    assert_eq!(log.matches("piman is offered 192.168.77.10").count(), 1, "{log}");
    assert_eq!(log.matches("piman has 192.168.77.10").count(), 2, "{log}");
    assert!(network.ip(&pi, "route").contains("default via 192.168.77.254 dev eth0"));
    assert!(network.ip(&pi, "address show dev eth0").contains("192.168.77.10/24 brd 192.168.77.255"));
    // It was the server that it told of its disk.
    network.wait("log", "disk: ");
    // Moved to a network where the address is another's: it gets one that is right.
    network.stop();
    network.ip(&pi, "address flush dev eth0");
    fs::remove_file(network.dir.path().join("state/dhcp-leases")).unwrap_or_default();
    network.serve(&["--dhcp", "server", "--dhcp-lease", "b8:27:eb:00:00:01=192.168.77.40"]);
    let stale = "echo '#lease eth0 10.9.9.9 24' > /run/piman-net; ATTEMPT";
    let text = said(network.attempt(&network.pi, "", stale));
    assert_says(&text, &["eth0: the server refuses the address", "eth0 has 192.168.77.40/24"]);
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
#[cfg_attr(lacks = "ip", ignore = "needs ip (iproute2)")]
#[cfg_attr(lacks = "dnsmasq", ignore = "needs dnsmasq")]
#[cfg_attr(lacks = "busybox", ignore = "needs busybox")]
fn a_server_of_others_gives_the_address_and_our_proxy_says_where_piman_is() {
    let mut network = Network::make();
    let pi = network.pi.clone();
    let other = network.other("192.168.77.2/24");
    let dir = network.dir.path().display().to_string();
    let dnsmasq = format!(
        "dnsmasq -k -p 0 -C /dev/null -u root --log-dhcp --log-facility=- --dhcp-range=192.168.77.100,192.168.77.110,1h \
         --dhcp-leasefile={dir}/dnsmasq-leases --pid-file={dir}/dnsmasq-pid --interface=eth0 --bind-interfaces --dhcp-boot=other.bin,other,192.168.77.2"
    );
    let udhcpd = format!("busybox udhcpd -f {dir}/udhcpd.conf");
    let conf = format!(
        "start 192.168.77.120\nend 192.168.77.130\ninterface eth0\nlease_file {dir}/udhcpd-leases\n\
         pidfile {dir}/udhcpd.pid\noption subnet 255.255.255.0\noption router 192.168.77.2\noption lease 3600\n"
    );
    fs::write(network.dir.path().join("udhcpd.conf"), conf).unwrap();
    fs::write(network.dir.path().join("udhcpd-leases"), "").unwrap();
    for (line, address) in [(dnsmasq, "192.168.77.1"), (udhcpd, "192.168.77.1")] {
        let mut words = line.split_whitespace();
        let program = words.next().unwrap();
        let mut command = network.command(&other, program);
        command.args(words);
        network.start(command, "other");
        network.serve(&["--dhcp", "proxy"]);
        network.ip(&pi, "link set eth0 down");
        let text = said(network.attempt(&network.pi, "", "ATTEMPT"));
        assert_says(
            &text,
            &["eth0 has 192.168.77.1", "from 192.168.77.2", "boot server 192.168.77.1", "error: "],
        );
        network.wait("log", "piman is told where to boot from");
        network.wait("log", "disk: ");
        // Without the proxy the command line says it.
        network.stop();
        network.ip(&pi, "address flush dev eth0");
        let mut again = network.command(&other, program);
        again.args(line.split_whitespace().skip(1));
        network.start(again, "other");
        let text = said(network.attempt(&network.pi, &format!("piman.server={address}:9"), "ATTEMPT"));
        assert_says(&text, &["from 192.168.77.2", "192.168.77.1"]);
        network.stop();
        network.ip(&pi, "address flush dev eth0");
    }
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
#[cfg_attr(lacks = "ip", ignore = "needs ip (iproute2)")]
fn a_server_that_comes_late_and_a_cable_too() {
    let mut network = Network::make();
    let server = network.server.clone();
    network.ip(&server, "link set port0 down");
    let attempt = network.attempt(&network.pi, "", "ATTEMPT");
    network.start(attempt, "agent");
    network.wait("agent", "eth0 has no carrier (is the cable in?)");
    network.ip(&server, "link set port0 up");
    network.wait("agent", "no DHCP server has answered on eth0 yet");
    network.serve(&SERVER);
    network.wait("agent", "eth0 has 192.168.77.1");
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
#[cfg_attr(lacks = "ip", ignore = "needs ip (iproute2)")]
#[cfg_attr(lacks = "busybox", ignore = "needs busybox")]
fn a_lease_is_renewed_while_the_attempt_lasts() {
    let mut network = Network::make();
    let other = network.other("192.168.77.2/24");
    let dir = network.dir.path().display().to_string();
    let conf = format!(
        "start 192.168.77.120\nend 192.168.77.130\ninterface eth0\nlease_file {dir}/udhcpd-leases\n\
         pidfile {dir}/udhcpd.pid\noption subnet 255.255.255.0\nmin_lease 8\noption lease 8\n"
    );
    fs::write(network.dir.path().join("udhcpd.conf"), conf).unwrap();
    fs::write(network.dir.path().join("udhcpd-leases"), "").unwrap();
    let mut udhcpd = network.command(&other, "busybox");
    udhcpd.args(["udhcpd", "-f", "udhcpd.conf"]);
    network.start(udhcpd, "udhcpd");
    // A server that never says anything.
    let mut silent = network.command(&other, "nc");
    silent.args(["-l", "-p", "3333"]);
    network.start(silent, "nc");
    let start = std::time::Instant::now();
    let script = "truncate -s 512M disk; ATTEMPT";
    let attempt = network.attempt(&network.pi, "piman.server=192.168.77.2", script);
    network.start(attempt, "agent");
    network.wait("agent", " from 192.168.77.2 for 8 s");
    network.wait("agent", "goes on");
    assert!(start.elapsed() >= Duration::from_secs(4), "half of its time had passed");
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
#[cfg_attr(lacks = "ip", ignore = "needs ip (iproute2)")]
fn an_address_on_the_command_line() {
    let mut network = Network::make();
    let pi = network.pi.clone();
    network.serve(&SERVER);
    network.ip(&pi, "link set eth0 down");
    let ip = "ip=192.168.77.66:192.168.77.1:192.168.77.254:255.255.255.0:pi:eth0:off:192.168.77.53";
    let text = said(network.attempt(&network.pi, ip, "ATTEMPT; cat /etc/resolv.conf"));
    assert_says(&text, &["eth0 has 192.168.77.66/24, as ip= says", "error: ", "nameserver 192.168.77.53"]);
    assert!(network.ip(&pi, "route").contains("default via 192.168.77.254 dev eth0"));
    network.wait("log", "disk: ");
    assert!(!network.text("log").contains("is offered"));
}
