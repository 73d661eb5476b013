use super::*;

fn found(text: &str, state: Option<&Preview>) -> Vec<String> {
    contradictions(&toml::from_str(text).unwrap(), state)
}

#[test]
fn each_by_itself() {
    let nothing = Preview::default();
    let install = "rootfs = '/a'\n";
    let boot = "netboot = '/b'\n";
    let proxy = "netboot = '/b'\ndhcp = 'proxy'\ndhcp-interface = 'e'\n";
    let server = "netboot = '/b'\ndhcp = 'server'\ndhcp-interface = 'e'\ndhcp-range = '10.0.0.5-10.0.0.9'\n";
    let (files, records) = ("transfer-dir = '/t'\n", "telemetry-dir = '/r'\n");
    for good in [install, boot, proxy, server, files, records, "rpc-port = 1", "messages-port = 1"] {
        assert_eq!(found(good, Some(&nothing)), [""; 0], "{good}");
    }
    for (begin, text, says) in [
        ("", "", "nothing to serve"),
        (boot, "control-port = 1", "--control-port has no effect without --rootfs"),
        (boot, "no-date = true", "--no-date"),
        (boot, "no-images = true", "--no-images"),
        (boot, "policy = ['foreign=boot']", "--policy"),
        (records, "only-known = true", "--only-known"),
        (boot, "old-pis = 'ask'", "--old-pis"),
        (boot, "first-report-timeout = 1", "--first-report-timeout"),
        (boot, "idle-timeout = 1", "--idle-timeout"),
        (boot, "stall-timeout = 1", "--stall-timeout"),
        (records, "min-rate = 1", "--min-rate"),
        (records, "shutdown-timeout = 1", "--shutdown-timeout"),
        (boot, "connections = 1", "--connections"),
        (boot, "serial = ['/dev/x']", "--serial"),
        (boot, "rpc-password-file = '/p'", "--rpc-port"),
        (boot, "telemetry-sync = true", "--telemetry-dir"),
        (boot, "telemetry-rotate-mib = 1", "--telemetry-dir"),
        (boot, "telemetry-quota-mib = 1", "--telemetry-dir"),
        (boot, "messages-queue = 1", "--messages-port"),
        (boot, "transfer-keep = '1h'", "--transfer-dir"),
        (records, "transfer-quota-mib = 1", "--transfer-dir"),
        (boot, "reserve-mib = 1", "where peers bring data"),
        (install, "tftp-transfers = 9", "--netboot"),
        (boot, "dhcp-router = '10.0.0.1'", "--dhcp proxy"),
        (boot, "wait-for-interface = 5", "--listen"),
        (boot, "dhcp = 'proxy'", "--dhcp-interface"),
        (proxy, "dhcp-range = '10.0.0.5-10.0.0.9'", "a proxy gives no addresses"),
        (proxy, "dhcp-lease-time = '1h'", "a proxy gives no addresses"),
        (proxy, "dhcp-force = true", "a proxy gives no addresses"),
        (proxy, "listen = '127.0.0.1'", "nothing listens there"),
        (proxy, "listen = 'fe80::1'", "nothing listens there"),
        (proxy, "tftp-port = 67", "a port of DHCP"),
        (server, "dhcp-lease = ['abcdef01=10.0.0.7', 'abcdef02=10.0.0.7']", "two Pis"),
        (server, "dhcp-lease = ['abcdef01=10.0.0.7', 'abcdef01=10.0.0.8']", "another address"),
        ("netboot = '/b'\ndhcp = 'server'\ndhcp-interface = 'e'\n", "", "--dhcp-range"),
        (boot, "tftp-transfers = 0", "--tftp-transfers is 0"),
        (install, "connections-per-address = 0", "nobody can connect"),
        (install, "connections = 5\nconnections-per-address = 6", "ends it before"),
        (install, "policy = ['foreign=boot', 'foreign=wait']", "foreign=wait and foreign=boot"),
        (install, "serial = ['/dev/x:9600', '/dev/x']", "twice"),
        (install, "serial = ['/dev/x:fast']", "--serial"),
        (install, "reinstall-file = '/a'", "emptied"),
        (files, "state = '/t'", "everybody could get"),
        (boot, "state = '/b/state'", "whose files everybody gets"),
        (install, "control-port = 4444", "--rootfs-port"),
        (files, "rpc-port = 50001", "--transfer-port"),
    ] {
        let all = found(&format!("{begin}{text}"), Some(&nothing));
        assert!(all.len() == 1 && all[0].contains(says), "{begin}{text}: {all:?}");
    }
}

#[test]
fn all_at_once_and_what_depends_on_the_state() {
    let text = "rootfs = '/a'\nconnections = 0\ndhcp = 'proxy'\nrpc-password-file = '/p'\nfetch-port = 3333";
    let all = found(text, None);
    assert_eq!(all.len(), 5, "{all:?}");
    let error = refuse(&all).unwrap_err().to_string();
    assert!(error.starts_with("5 things") && error.lines().count() == 6, "{error}");

    let unknown = found("control-port = 1", None);
    assert_eq!(unknown, [""; 0], "perhaps there are images");
    let images = |default: Option<&str>| Preview {
        images: 1,
        default: default.map(|path| ("lab".to_owned(), path.into())),
    };
    assert_eq!(found("control-port = 1", Some(&images(Some("/i")))), [""; 0]);
    assert_eq!(found("rootfs = '/a'", Some(&images(None))), [""; 0], "for those without an image");
    assert_eq!(found("rootfs = '/a'", Some(&images(Some("/a")))), [""; 0], "it is the same");
    let all = found("rootfs = '/a'", Some(&images(Some("/i"))));
    assert!(all.len() == 1 && all[0].contains("image lab") && all[0].contains("--none"), "{all:?}");
}
