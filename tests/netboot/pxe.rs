//! The proxy beside DHCP servers of others: with iPXE as the client, behind a relay agent; and what
//! `piman doctor` says of such servers.

use std::fs;
use std::process::Command;

use piman_tests::binaries;
use piman_tests::disk::run;
use piman_tests::netns::{Network, assert_says, said};

/// What a PC's network card boots by.
const ROM: &str = "/usr/lib/ipxe/qemu/pxe-e1000.rom";

/// dnsmasq in a namespace, as a server that knows nothing of piman.
fn dnsmasq(network: &mut Network, namespace: &str, more: &str) {
    let dir = network.dir.path().display().to_string();
    let line = format!(
        "-k -p 0 -C /dev/null -u root --log-dhcp --log-facility=- --no-ping --dhcp-leasefile={dir}/leases-{namespace} \
         --pid-file={dir}/pid-{namespace} {more}"
    );
    let mut command = network.command(namespace, "dnsmasq");
    command.args(line.split_whitespace());
    let log = format!("dnsmasq-{namespace}");
    // What an earlier one said must not be taken for this one's.
    let _ = fs::remove_file(network.dir.path().join(&log));
    network.start(command, &log);
    network.wait(&log, "started, version");
}

const RANGE: &str = "--dhcp-range=192.168.77.100,192.168.77.110,1h --interface=eth0 --bind-interfaces";

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
#[cfg_attr(lacks = "ip", ignore = "needs ip (iproute2)")]
#[cfg_attr(lacks = "ipxe", ignore = "needs qemu-system-x86 and ipxe-qemu")]
#[cfg_attr(lacks = "dnsmasq", ignore = "needs dnsmasq")]
#[cfg_attr(lacks = "busybox", ignore = "needs busybox")]
fn ipxe_boots_by_the_proxy_beside_dnsmasq_and_udhcpd() {
    let mut network = Network::make();
    let server = network.server.clone();
    let other = network.other("192.168.77.2/24");
    network.ip(&server, "tuntap add dev tap0 mode tap");
    network.ip(&server, "link set tap0 master cable up");
    network.serve(&["--dhcp", "proxy", "--dhcp-everybody", "--dhcp-file", "start.ipxe"]);
    let dir = network.dir.path().to_owned();
    let conf = format!(
        "start 192.168.77.120\nend 192.168.77.130\ninterface eth0\nlease_file {0}/udhcpd-leases\n\
         pidfile {0}/udhcpd.pid\noption subnet 255.255.255.0\noption lease 3600\n",
        dir.display()
    );
    fs::write(dir.join("udhcpd.conf"), conf).unwrap();
    fs::write(dir.join("udhcpd-leases"), "").unwrap();
    for by in ["dnsmasq", "udhcpd"] {
        // That the script has run shows in that it fetches another file.
        let script = format!("#!ipxe\nimgfetch tftp://192.168.77.1/seen-{by}\npoweroff\n");
        fs::write(dir.join("boot/start.ipxe"), script).unwrap();
        fs::write(dir.join(format!("boot/seen-{by}")), by).unwrap();
        if by == "dnsmasq" {
            dnsmasq(&mut network, &other, RANGE);
        } else {
            let mut udhcpd = network.command(&other, "busybox");
            udhcpd.args(["udhcpd", "-f", "udhcpd.conf"]);
            network.start(udhcpd, "udhcpd");
        }
        let mut machine = network.command(&server, "qemu-system-x86_64");
        machine.args([
            "-M",
            "pc",
            "-m",
            "128",
            "-nographic",
            "-monitor",
            "none",
            "-serial",
            "stdio",
            "-no-reboot",
        ]);
        machine.args(["-netdev", "tap,id=n0,ifname=tap0,script=no,downscript=no", "-device"]);
        machine.arg(format!("e1000,netdev=n0,mac=02:00:00:00:01:01,bootindex=0,romfile={ROM}"));
        network.start(machine, "machine");
        network.wait("log", "the boot ROM is told where to boot from");
        network.wait("log", "start.ipxe: ");
        network.wait("log", &format!("seen-{by}: "));
        assert!(!network.text("log").contains("is offered"), "the proxy gives no addresses");
        network.stop();
        if by == "dnsmasq" {
            assert_says(&network.text(&format!("dnsmasq-{other}")), &["DHCPACK(eth0) 192.168.77.1"]);
            network.serve(&["--dhcp", "proxy", "--dhcp-everybody", "--dhcp-file", "start.ipxe"]);
        }
    }
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
#[cfg_attr(lacks = "ip", ignore = "needs ip (iproute2)")]
#[cfg_attr(lacks = "dnsmasq", ignore = "needs dnsmasq")]
#[cfg_attr(lacks = "busybox", ignore = "needs busybox")]
fn behind_a_relay_agent() {
    let mut network = Network::make();
    // The Pi is in another network, 10.9.0.0, from which the relay leads here.
    let server = network.server.clone();
    let other = network.other("192.168.77.2/24");
    let relay = network.other("192.168.77.3/24");
    let far = format!("{relay}-far");
    for line in [
        format!("netns add {far}"),
        format!("-n {relay} link add down0 type veth peer name eth0 address b8:27:eb:00:00:07 netns {far}"),
        format!("-n {relay} address add 10.9.0.1/24 dev down0"),
        format!("-n {relay} link set down0 up"),
        format!("-n {server} route add 10.9.0.0/24 via 192.168.77.3"),
        format!("-n {other} route add 10.9.0.0/24 via 192.168.77.3"),
    ] {
        run(Command::new("ip").args(line.split_whitespace()));
    }
    network.adopt(&far);
    run(network.command(&relay, "sh").args(["-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"]));
    dnsmasq(&mut network, &other, "--dhcp-range=10.9.0.100,10.9.0.110,255.255.255.0,1h --interface=eth0");
    dnsmasq(&mut network, &relay, "--dhcp-relay=10.9.0.1,192.168.77.1 --dhcp-relay=10.9.0.1,192.168.77.2");
    network.serve(&["--dhcp", "proxy"]);
    let text = said(network.attempt(&far, "", "ATTEMPT"));
    assert_says(&text, &["eth0 has 10.9.0.1", "boot server 192.168.77.1", "error: "]);
    network.wait("log", "piman is told where to boot from");
    network.wait("log", "disk: ");
    // A server that has no addresses for that network says nothing.
    network.stop();
    network.ip(&far, "address flush dev eth0");
    dnsmasq(&mut network, &relay, "--dhcp-relay=10.9.0.1,192.168.77.1");
    network.serve(&["--dhcp", "server", "--dhcp-range", "192.168.77.10-192.168.77.12"]);
    let mut client = network.command(&far, "busybox");
    client.args(["udhcpc", "-i", "eth0", "-f", "-q", "-n", "-t", "2", "-T", "1", "-s", "/bin/true"]);
    assert!(!client.status().unwrap().success());
    network.wait("log", "other networks are not served");
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
#[cfg_attr(lacks = "ip", ignore = "needs ip (iproute2)")]
#[cfg_attr(lacks = "dnsmasq", ignore = "needs dnsmasq")]
fn doctor_finds_other_servers() {
    let mut network = Network::make();
    let other = network.other("192.168.77.2/24");
    // Makes the boot folder and the archive.
    network.serve(&["--dhcp", "proxy"]);
    let doctor = |network: &Network, more: &[&str]| {
        let mut command = network.command(&network.server, &binaries::piman().display().to_string());
        command.args(["doctor", "--rootfs", "root.tar.gz", "--state", "state", "--netboot", "boot"]);
        command.args(["--dhcp-interface", "cable"]).args(more);
        said(command)
    };
    const SERVER: [&str; 4] = ["--dhcp", "server", "--dhcp-range", "192.168.77.10-192.168.77.12"];
    // The server that runs has all the ports.
    let text = doctor(&network, &["--dhcp", "proxy"]);
    for words in [
        "another program has port 3333",
        "UDP port 69",
        "another program of this machine listens on UDP port 67",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
    network.stop();
    let text = doctor(&network, &["--dhcp", "proxy"]);
    assert!(text.contains("no server answers on cable: a proxy gives no addresses"), "{text}");
    let text = doctor(&network, &SERVER);
    assert!(text.contains("no other server answers"), "{text}");
    dnsmasq(&mut network, &other, RANGE);
    network.wait(&format!("dnsmasq-{other}"), "DHCP, IP range");
    let text = doctor(&network, &["--dhcp", "proxy"]);
    assert!(text.contains("192.168.77.2 gives the addresses"), "{text}");
    let text = doctor(&network, &SERVER);
    assert!(text.contains("192.168.77.2 gives addresses on cable already"), "{text}");
    assert!(!network.text(&format!("dnsmasq-{other}")).contains("DHCPACK"), "nothing was taken");
}
