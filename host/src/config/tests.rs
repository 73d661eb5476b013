use super::*;
use crate::state::Preview;

fn parse(text: &str) -> anyhow::Result<Options> {
    Ok(toml::from_str(text)?)
}

#[test]
fn flags_win_over_the_file() {
    let file =
        parse("rootfs = '/a'\ncontrol-port = 1\nidle-timeout = '5m'\nno-date = true\nstall-timeout = 7");
    let flags = Options { control_port: Some(2), no_date: Some(false), ..Options::default() };
    let settings = Settings::try_from(flags.or(file.unwrap())).unwrap();
    assert_eq!((settings.control_port, settings.date, settings.rootfs_port), (2, true, ROOTFS_PORT));
    assert_eq!(settings.timeouts.idle, Duration::from_secs(300));
    assert_eq!(settings.stall, Duration::from_secs(7));
}

#[test]
fn old_peers_have_no_limit_but_the_operators() {
    let limits = |text: &str| {
        let settings = Settings::try_from(parse(text).unwrap()).unwrap();
        [settings.old, settings.ours].map(|l| (l.stall.map(|s| s.as_secs()), l.slowest, l.span.as_secs()))
    };
    assert_eq!(limits("rootfs = '/a'"), [(None, 0, 300), (Some(300), SLOWEST, 300)]);
    assert_eq!(limits("rootfs = '/a'\nstall-timeout = '1m'"), [(Some(60), 0, 60), (Some(60), SLOWEST, 60)]);
    assert_eq!(limits("rootfs = '/a'\nmin-rate = 500"), [(None, 500, 300), (Some(300), 500, 300)]);
    assert_eq!(limits("rootfs = '/a'\nmin-rate = 0")[1], (Some(300), 0, 300));
}

#[test]
fn what_is_wrong_in_a_file_is_named() {
    for (text, names) in [
        ("rootsf = '/a'", "rootsf"),
        ("control-port = 70000", "70000"),
        ("idle-timeout = 'soon'", "soon"),
        ("listen = 'here'", "IP address"),
    ] {
        let error = format!("{:#}", parse(text).unwrap_err());
        assert!(error.contains(names), "{error}");
    }
}

#[test]
fn booting_is_off_unless_it_is_asked_for() {
    let settings = |text: &str| parse(&format!("rootfs = '/a'\n{text}")).and_then(Settings::try_from);
    assert_eq!(settings("").unwrap().netboot, None);
    let on = settings("netboot = '/b'").unwrap().netboot.unwrap();
    assert_eq!((on.tftp_port, on.dhcp), (69, None));
    let on = settings(
        "netboot = '/b'\ndhcp = 'server'\ndhcp-interface = 'eth1'\ndhcp-range = '10.0.0.5-10.0.0.9'\ndhcp-lease = ['abcdef01=10.0.0.7']",
    );
    let dhcp = on.unwrap().netboot.unwrap().dhcp.unwrap();
    assert_eq!((dhcp.mode, dhcp.interface.as_str(), dhcp.fixed.len()), (Mode::Server, "eth1", 1));
    for (text, names) in [
        ("dhcp = 'proxy'", "--netboot"),
        ("tftp-port = 69", "--netboot"),
        ("http-boot-port = 80", "--http-boot-port has no effect without --netboot"),
        ("netboot = '/b'\ndhcp-interface = 'eth0'", "--dhcp proxy"),
        ("netboot = '/b'\ndhcp = 'proxy'", "--dhcp-interface"),
        ("netboot = '/b'\ndhcp-range = '10.0.0.5'", "10.0.0.5"),
        ("netboot = '/b'\ndhcp = 'maybe'", "maybe"),
    ] {
        let error = format!("{:#}", settings(text).unwrap_err());
        assert!(error.contains(names), "{text}: {error}");
    }
}

#[test]
fn message_channels() {
    let settings = |text: &str| parse(text).and_then(Settings::try_from);
    assert_eq!(settings("").unwrap().messages, None);
    let all = settings(
        "messages-port = 9123\nmessages-channel = ['lab=9124', 'lab=127.0.0.1:9125']\nmessages-chat = ['talk=9126']",
    );
    let all = all.unwrap();
    assert!(all.check(&Preview::default()).is_ok(), "it is something to serve");
    let messages = all.messages.unwrap();
    assert_eq!((messages.limit, messages.queue), (1 << 20, 256));
    assert_eq!(messages.channels.iter().map(|c| c.at.len()).collect::<Vec<_>>(), [1, 2, 1]);
    for (text, names) in [
        ("messages-channel = ['lab']", "NAME=PORT"),
        ("messages-channel = ['a=1']\nmessages-chat = ['a=2']", "not both"),
        ("messages-port = 1\nmessages-limit-kib = 0", "--messages-limit-kib"),
        ("messages-port = 1\nmessages-queue = 0", "--messages-queue"),
    ] {
        let error = format!("{:#}", settings(text).unwrap_err());
        assert!(error.contains(names), "{text}: {error}");
    }
    for (text, names) in [
        ("messages-port = 9123\nmessages-channel = ['a=9123']", "--messages-channel"),
        ("messages-port = 5003\ntelemetry-dir = '/s'", "--telemetry-port"),
        ("messages-port = 9123\nnetboot = '/b'\nhttp-boot-port = 9123", "--http-boot-port"),
        ("rpc-port = 7\nmessages-chat = ['a=127.0.0.1:7']", "--messages-chat"),
    ] {
        let error = settings(text).and_then(|s| s.check(&Preview::default())).unwrap_err().to_string();
        assert!(error.contains(names), "{text}: {error}");
    }
    // Two addresses, one port.
    let two = settings("messages-channel = ['a=127.0.0.1:7', 'b=127.0.0.2:7', 'c=[::1]:7']").unwrap();
    assert!(two.check(&Preview::default()).is_ok());
}

#[test]
fn what_is_installed_decides_what_is_possible() {
    let nothing = Preview::default();
    let images = Preview { images: 1, default: None };
    let check =
        |options, state: &Preview| Settings::try_from(options).and_then(|s| s.check(state).map(|()| s));
    assert!(check(Options::default(), &nothing).is_err());
    assert!(check(Options::default(), &images).is_ok(), "with images of the catalogue");
    let same = || Options { rpc_port: Some(1), control_port: Some(4444), ..Options::default() };
    assert!(check(same(), &images).unwrap_err().to_string().contains("rootfs-port"));
    assert!(check(same(), &nothing).unwrap_err().to_string().contains("--rootfs FILE"));
    let control = Options { rpc_port: Some(3333), ..Options::default() };
    assert!(check(control.clone(), &nothing).is_ok(), "nobody else wants the port then");
    assert!(check(control, &images).is_err());
    let any = Some(0);
    let free = Options {
        rootfs: Some("/a".into()),
        control_port: any,
        rootfs_port: any,
        fetch_port: any,
        ..Options::default()
    };
    assert!(check(free, &nothing).is_ok());
}
