use std::collections::BTreeSet;

use piman_core::install::Installation;
use piman_core::install::personal::{Bundle, Place, User};

use super::*;
use crate::images::fitness::{Boot, Has, System};
use crate::images::personalise::items;
use crate::images::personalise::template::Facts;

const HASH: &str = "$6$salt$abcdefghijklmnopqrstuvwxyz";

/// What is odd in it would end a string, a line or a command where somebody forgot to quote it.
const ALL: &str = r##"
hostname = "lab-{ordinal:02}"
locale = "de_DE.UTF-8"
timezone = "UTC"
keyboard = "gb"
ntp = ["10.0.0.1", "ntp.lab"]
ssh = true

[wifi]
ssid = "L'ab \"ü\" \\ $HOME;#"
psk = "it's \"so\" \\ $(x) #1"
country = "DE"
hidden = true

[[users]]
name = "op"
full-name = "O'Per \"ator\" ü $(x)"
password-hash = "$6$salt$abcdefghijklmnopqrstuvwxyz"
ssh-keys = ["ssh-ed25519 AAAA op's \"key\" ü", "ssh-rsa BBBB"]
groups = ["i2c"]
sudo = "without-password"
shell = "/bin/zsh"

[[users]]
name = "guest"
locked = true
sudo = false

[[files]]
path = "/etc/motd"
content = "{{hostname}} is {{serial}}\n"
template = true

[[files]]
path = "/etc/token"
content = "hunter2"
secret = true
owner = "op"

[[folders]]
path = "/srv/lab"
owner = "op:users"
mode = "2775"

[[scripts]]
name = "one"
content = "#!/bin/sh\necho 1\n"

[[scripts]]
name = "two"
content = "#!/bin/sh\necho {{ordinal}}\n"
template = true
"##;

fn system(kind: Kind, has: &[Has]) -> System {
    let boot = Boot { has_place: true, ..Boot::default() };
    System { kind, has: has.iter().copied().collect::<BTreeSet<_>>(), boot, ..System::default() }
}

fn debian(kind: Kind) -> System {
    system(kind, &[Has::Systemd, Has::NetworkManager, Has::Timesyncd, Has::Ssh, Has::PiHome])
}

fn subject(system: &System) -> Subject<'_> {
    let facts = Facts {
        serial: Some("10000000abcdef01".into()),
        group: Some("lab".into()),
        ordinal: 7,
        ..Facts::default()
    };
    Subject {
        facts,
        system,
        is_disk: true,
        boots_from_card: true,
        occasion: Occasion::Install,
        installation: Installation(0x2a),
        identity: IdentityMode::Renew,
    }
}

fn profile(text: &str) -> Profile {
    Profile::parse(text).unwrap()
}

/// All files by place and path, and everything as it is shown.
struct Seen {
    rendered: Rendered,
    shown: String,
}

impl Seen {
    fn of(text: &str, subject: &Subject<'_>) -> Self {
        let rendered = render(&profile(text), subject).unwrap();
        let shown = items(&Bundle::parse(rendered.draft.bytes()).unwrap());
        Self { rendered, shown }
    }

    fn items(&self) -> impl Iterator<Item = Item<'_>> {
        Bundle::parse(self.rendered.draft.bytes()).unwrap().items()
    }

    fn file(&self, at: Place, name: &str) -> Option<String> {
        self.items().find_map(|item| match item {
            Item::File { place, path, content, .. } if (place, path) == (at, name) => {
                Some(String::from_utf8(content.to_vec()).unwrap())
            }
            _ => None,
        })
    }

    fn user(&self, name: &str) -> Option<User<'_>> {
        self.items().find_map(|item| match item {
            Item::User(user) if user.name == name => Some(user),
            _ => None,
        })
    }

    fn line(&self, wanted: &str) -> bool {
        self.items().any(|item| matches!(item, Item::Line { text, .. } if text == wanted))
    }

    fn word(&self, wanted: &str) -> bool {
        self.items().any(|item| matches!(item, Item::Word { text, .. } if text == wanted))
    }
}

#[test]
fn the_same_input_gives_the_same_bytes_and_no_secret_is_in_what_is_shown() {
    for kind in [Kind::Plain, Kind::CloudInit, Kind::CustomToml, Kind::UserConf, Kind::DietPi] {
        let system = debian(kind);
        for occasion in [Occasion::Install, Occasion::Again] {
            let subject = Subject { occasion, ..subject(&system) };
            let one = render(&profile(ALL), &subject).unwrap();
            assert_eq!(one.draft, render(&profile(ALL), &subject).unwrap().draft, "{kind}");
            assert_eq!(one.hostname.as_deref(), Some("lab-07"));
            let hidden = render(&profile(ALL).hidden(), &subject).unwrap();
            let shown = items(&Bundle::parse(hidden.draft.bytes()).unwrap());
            for secret in ["hunter2", "$(x) #1", "abcdefghijkl"] {
                assert!(!shown.contains(secret), "{kind}: {shown}");
            }
            assert!(!format!("{one:?}").contains("hunter2"));
        }
    }
}

#[test]
fn into_a_plain_system() {
    let plain = debian(Kind::Plain);
    let seen = Seen::of(ALL, &subject(&plain));
    assert!(seen.shown.starts_with("identity  made new: machine-id, SSH host keys, disk identifiers\n"));
    assert_eq!(seen.file(Place::Root, "/etc/hostname").as_deref(), Some("lab-07\n"));
    assert_eq!(seen.file(Place::Root, "/etc/motd").as_deref(), Some("lab-07 is 10000000abcdef01\n"));
    for line in ["127.0.1.1\tlab-07", "LANG=de_DE.UTF-8", "XKBLAYOUT=\"gb\"", "KEYMAP=uk"] {
        assert!(seen.line(line), "{line}");
    }
    let wifi =
        seen.file(Place::Root, "/etc/NetworkManager/system-connections/piman-wifi.nmconnection").unwrap();
    assert!(
        wifi.contains("\nssid=76;39;97;98;32;34;195;188;34;32;92;") && wifi.contains("\nhidden=true\n"),
        "{wifi}"
    );
    assert!(wifi.contains("\npsk=it's\\s\"so\"\\s\\\\\\s$(x)\\s#1\n"), "{wifi}");
    let op = seen.user("op").unwrap();
    assert_eq!((op.password, op.groups, op.shell, op.locked), (HASH, "i2c,sudo,wheel", "/bin/zsh", false));
    assert_eq!(op.keys, "ssh-ed25519 AAAA op's \"key\" ü\nssh-rsa BBBB\n");
    assert!(seen.user("guest").unwrap().locked);
    let sudo = seen.file(Place::Root, "/etc/sudoers.d/010_piman-op").unwrap();
    assert_eq!(sudo, "op ALL=(ALL) NOPASSWD: ALL\n");
    let scripts: Vec<_> =
        seen.shown.lines().filter(|l| l.starts_with("file ") && l.contains("/first-boot/")).collect();
    assert_eq!(scripts.len(), 3, "{scripts:?}");
    for (script, begins) in scripts.iter().zip(["000-piman-locale-", "001-one-", "002-two-"]) {
        assert!(script.contains(begins) && script.contains(" 0700 "), "{script}");
    }
    assert!(seen.shown.contains("    echo 7\n"));
    assert!(seen.shown.contains("root:/etc/token 0600 op:op"));
    // On a system that has been running nothing of its identity changes.
    let again = Seen::of(ALL, &Subject { occasion: Occasion::Again, ..subject(&plain) });
    assert!(!again.shown.contains("identity") && again.user("op").is_some());
    let keep = Seen::of("identity = 'keep'", &subject(&plain));
    assert_eq!(keep.shown, "");
}

#[test]
fn for_cloud_init() {
    let cloud = debian(Kind::CloudInit);
    let seen = Seen::of(ALL, &subject(&cloud));
    let user_data = seen.file(Place::Boot, "/user-data").unwrap();
    let json = user_data.strip_prefix("#cloud-config\n").unwrap();
    let data: serde_json::Value = serde_json::from_str(json).unwrap();
    assert_eq!(data["hostname"], "lab-07");
    assert_eq!(data["users"][0]["gecos"], "O'Per \"ator\" ü $(x)");
    assert_eq!(
        (&data["users"][0]["passwd"], &data["users"][0]["lock_passwd"]),
        (&HASH.into(), &false.into())
    );
    assert_eq!(data["users"][1]["lock_passwd"], true);
    assert!(data["runcmd"][0][2].as_str().unwrap().contains("enable --now ssh.service"));
    let network: serde_json::Value =
        serde_json::from_str(&seen.file(Place::Boot, "/network-config").unwrap()).unwrap();
    let point = &network["wifis"]["wlan0"]["access-points"]["L'ab \"ü\" \\ $HOME;#"];
    assert_eq!((&point["password"], &point["hidden"]), (&"it's \"so\" \\ $(x) #1".into(), &true.into()));
    assert!(seen.file(Place::Boot, "/meta-data").unwrap().contains("\"piman-000000000000002a\""));
    assert!(seen.word("ds=nocloud;i=piman-000000000000002a") && seen.user("op").is_none());
    // Files and scripts are written directly.
    assert!(seen.file(Place::Root, "/etc/motd").is_some() && seen.shown.contains("001-two-"));
    // Another installation is another instance; an archive has them where every cloud-init looks.
    let other =
        Subject { installation: Installation(1), is_disk: false, boots_from_card: false, ..subject(&cloud) };
    let seen = Seen::of(ALL, &other);
    let meta = seen.file(Place::Root, "/var/lib/cloud/seed/nocloud/meta-data").unwrap();
    assert!(meta.contains("piman-0000000000000001") && !seen.shown.contains("word "));
    // Accounts that are there are changed directly.
    let again = Seen::of(ALL, &Subject { occasion: Occasion::Again, ..subject(&cloud) });
    assert!(again.user("op").is_some());
}

/// An image has its own way to a first user; a profile that says nothing of it must not take that away.
#[test]
fn what_cloud_init_finds_on_an_image_stays_if_the_profile_has_nothing_in_its_place() {
    let cloud = debian(Kind::CloudInit);
    let names = ["/user-data", "/meta-data", "/network-config"];
    let there = |text: &str| {
        let seen = Seen::of(text, &subject(&cloud));
        (names.map(|name| seen.file(Place::Boot, name).is_some()), seen.shown.contains("ds=nocloud"))
    };
    assert_eq!(there(""), ([false; 3], false));
    assert_eq!(there("identity = 'keep'"), ([false; 3], false));
    let wifi = "[wifi]\nssid = 'x'\npsk = 'hunter2-hunter2'\ncountry = 'GB'";
    assert_eq!(there(wifi), ([false, true, true], true));
    assert_eq!(there("hostname = 'lab'"), ([true, true, false], true));
}

#[test]
fn files_for_cloud_init_as_they_are() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("user-data"), "#cloud-config\nx: 1\n").unwrap();
    std::fs::write(dir.path().join("network-config"), "version: 2\n").unwrap();
    let text = "cloud-init = '.'\nhostname = 'a'\n[[users]]\nname = 'op'\nlocked = true";
    let given = profile(text).take_in(dir.path()).unwrap();
    let cloud = debian(Kind::CloudInit);
    let rendered = render(&given, &subject(&cloud)).unwrap();
    let shown = items(&Bundle::parse(rendered.draft.bytes()).unwrap());
    assert!(shown.contains("    x: 1\n") && shown.contains("    version: 2\n"), "{shown}");
    // What their user-data does not say is done directly.
    assert!(shown.contains("meta-data") && shown.contains("/etc/hostname") && shown.contains("user      op"));
    let plain = debian(Kind::Plain);
    let error = render(&given, &subject(&plain)).unwrap_err();
    assert!(error.contains("cloud-init: the image is of the kind `plain`"), "{error}");
}

#[test]
fn for_raspberry_pi_os_bookworm() {
    let bookworm = debian(Kind::CustomToml);
    let seen = Seen::of(ALL, &subject(&bookworm));
    // Only a kernel with the card's own command line would have it read, and the first boot is one from the network.
    assert!(seen.file(Place::Boot, "/custom.toml").is_none() && !seen.shown.contains("init="));
    assert_eq!(seen.file(Place::Boot, "/userconf.txt").unwrap(), format!("op:{HASH}\n"));
    assert_eq!(seen.file(Place::Boot, "/ssh").unwrap(), "");
    assert_eq!(seen.user("pi").map(|pi| pi.keys.lines().count()), Some(2), "it becomes op");
    assert_eq!(seen.file(Place::Root, "/etc/hostname").unwrap(), "lab-07\n");
    assert!(seen.shown.contains("/etc/NetworkManager/system-connections/"), "{}", seen.shown);
    assert!(seen.line("LANG=de_DE.UTF-8") && seen.line("XKBLAYOUT=\"gb\"") && seen.line("KEYMAP=uk"));
    assert!(seen.user("guest").is_some() && seen.user("op").is_none());
    assert!(seen.shown.contains("usermod -c 'O'\\''Per \"ator\" ü $(x)' op"), "{}", seen.shown);
    // As somebody has it, with what else there is.
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("custom.toml"), "config_version = 1\n").unwrap();
    let given = profile("custom-toml = 'custom.toml'\nhostname = 'a'").take_in(dir.path()).unwrap();
    let rendered = render(&given, &subject(&bookworm)).unwrap();
    let shown = items(&Bundle::parse(rendered.draft.bytes()).unwrap());
    assert!(shown.contains("    config_version = 1\n") && shown.contains("/etc/hostname"), "{shown}");
    assert!(shown.contains("init=/usr/lib/raspberrypi-sys-mods/firstboot"), "{shown}");
    // On a running system it would rename an account.
    for subject in [
        Subject { occasion: Occasion::Again, ..subject(&bookworm) },
        Subject { is_disk: false, ..subject(&bookworm) },
    ] {
        let seen = Seen::of(ALL, &subject);
        assert!(seen.file(Place::Boot, "/userconf.txt").is_none() && seen.user("op").is_some());
    }
    let nothing = Seen::of("", &subject(&bookworm));
    assert!(nothing.rendered.draft.bytes().len() < 40, "{}", nothing.shown);
}

#[test]
fn for_older_raspberry_pi_os() {
    let bullseye = system(Kind::UserConf, &[Has::Systemd, Has::Timesyncd, Has::Ssh, Has::PiHome]);
    let seen = Seen::of(ALL, &subject(&bullseye));
    assert_eq!(seen.file(Place::Boot, "/userconf.txt").unwrap(), format!("op:{HASH}\n"));
    assert_eq!(seen.file(Place::Boot, "/ssh").as_deref(), Some(""));
    let wifi = seen.file(Place::Boot, "/wpa_supplicant.conf").unwrap();
    assert!(wifi.contains("country=DE\n") && wifi.contains("\tpsk=\"it's \"so\" \\ $(x) #1\"\n"), "{wifi}");
    assert!(wifi.contains("\tssid=4c27616220"), "{wifi}");
    let pi = seen.user("pi").unwrap();
    assert!(pi.keeps_password && pi.keys.lines().count() == 2 && seen.user("op").is_none());
    // The account `pi` stays what it is.
    let own = Seen::of(&format!("[[users]]\nname = 'pi'\npassword-hash = '{HASH}'"), &subject(&bullseye));
    assert!(own.file(Place::Boot, "/userconf.txt").is_none() && own.user("pi").unwrap().password == HASH);
}

#[test]
fn for_dietpi() {
    let dietpi = debian(Kind::DietPi);
    let seen = Seen::of(ALL, &subject(&dietpi));
    for line in [
        "AUTO_SETUP_NET_HOSTNAME=lab-07",
        "AUTO_SETUP_TIMEZONE=UTC",
        "AUTO_SETUP_NET_WIFI_COUNTRY_CODE=DE",
        "CONFIG_NTP_MIRROR=10.0.0.1 ntp.lab",
        "aWIFI_KEY[0]='it'\\''s \"so\" \\ $(x) #1'",
    ] {
        assert!(seen.line(line), "{line}: {}", seen.shown);
    }
    assert!(seen.user("op").is_some() && seen.file(Place::Root, "/etc/hostname").is_none());
    let own = format!("[[users]]\nname = 'dietpi'\npassword-hash = '{HASH}'");
    assert!(render(&profile(&own), &subject(&dietpi)).unwrap_err().contains("AUTO_SETUP_GLOBAL_PASSWORD"));
    let keys = Seen::of("[[users]]\nname = 'root'\nssh-keys = ['ssh-rsa A']", &subject(&dietpi));
    assert!(keys.user("root").unwrap().keeps_password);
}

#[test]
fn for_home_assistant_os() {
    let home = system(Kind::HomeAssistant, &[]);
    let text = "ntp = ['10.0.0.1']\n[wifi]\nssid = 'x'\npsk = '12345678'\n
        [[users]]\nname = 'root'\nssh-keys = ['ssh-rsa A']\n
        [[files]]\npath = '/CONFIG/udev/x.rules'\nat = 'boot'\ncontent = 'y'";
    let seen = Seen::of(text, &subject(&home));
    assert_eq!(seen.file(Place::Boot, "/CONFIG/authorized_keys").as_deref(), Some("ssh-rsa A\n"));
    assert!(seen.file(Place::Boot, "/CONFIG/network/piman-wifi").unwrap().contains("psk=12345678"));
    assert!(seen.file(Place::Boot, "/CONFIG/udev/x.rules").is_some() && !seen.shown.contains("identity"));
    let error = render(&profile(ALL), &subject(&home)).unwrap_err();
    for key in ["hostname", "scripts", "folders", "accounts other than root", "country"] {
        assert!(error.contains(key), "{error}");
    }
}

#[test]
fn what_an_image_or_a_pi_cannot_have_is_said() {
    let bare = system(Kind::Plain, &[]);
    for (text, says) in [
        ("ssh = true", "no SSH server"),
        ("ntp = ['x']", "neither systemd-timesyncd nor chrony"),
        ("[wifi]\nssid = 'x'", "neither NetworkManager nor"),
        ("[[scripts]]\nname = 'x'\ncontent = '#!'", "no systemd, which runs them: x"),
        ("hostname = '{mac}'", "its hardware address is needed"),
        ("custom-toml = 'x'", "does not read that"),
        ("[[files]]\npath = '/x'\ncontent = '{{mac}}'\ntemplate = true", "file /x: its hardware address"),
    ] {
        let error = render(&profile(text), &subject(&bare)).unwrap_err();
        assert!(error.contains(says), "{text}: {error}");
    }
    // What cannot be seen is not said to be missing.
    for (root, says) in [
        (
            RootAccess::Unseen("partition 2 has blocks of 1024 bytes".into()),
            "cannot be seen here: partition 2 has",
        ),
        (RootAccess::Closed("partition 2 is btrfs".into()), "agents cannot write into: partition 2 is btrfs"),
    ] {
        let unseen = System { root, ..bare.clone() };
        for text in
            ["ssh = true", "ntp = ['x']", "[wifi]\nssid = 'x'", "[[scripts]]\nname = 'x'\ncontent = '#!'"]
        {
            let error =
                render(&profile(&format!("identity = 'keep'\n{text}")), &subject(&unseen)).unwrap_err();
            assert!(error.contains(says) && !error.contains("has no"), "{text}: {error}");
        }
    }
    let two = "[[files]]\npath = '/a'\nfrom = 'x'\n[[files]]\npath = '/b'\nfrom = 'x'";
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("x"), vec![b'x'; 4 << 20]).unwrap();
    let large = profile(two).take_in(dir.path()).unwrap();
    assert!(render(&large, &subject(&bare)).unwrap_err().contains("take files out of the profile"));
}

#[test]
fn networks_without_network_manager() {
    let networkd = system(Kind::Plain, &[Has::Systemd, Has::WpaSupplicant, Has::Networkd, Has::Chrony]);
    let seen = Seen::of("ntp = ['a']\n[wifi]\nssid = 'x'", &subject(&networkd));
    let wifi = seen.file(Place::Root, "/etc/wpa_supplicant/wpa_supplicant-wlan0.conf").unwrap();
    assert!(wifi.contains("\tkey_mgmt=NONE\n"), "{wifi}");
    assert_eq!(
        seen.file(Place::Root, "/etc/chrony/sources.d/piman.sources").as_deref(),
        Some("server a iburst\n")
    );
    let key = format!("[wifi]\nssid = 'x'\npsk = '{}'", "0a".repeat(32));
    let seen = Seen::of(&key, &subject(&networkd));
    assert!(
        seen.file(Place::Root, "/etc/wpa_supplicant/wpa_supplicant-wlan0.conf")
            .unwrap()
            .contains("\tpsk=0a0a")
    );
}

#[test]
fn the_agents_service_and_ssh_on_and_off() {
    let plain = debian(Kind::Plain);
    let on = Seen::of("service = true\nssh = true", &subject(&plain)).shown;
    let off = Seen::of("service = false\nssh = false", &subject(&plain)).shown;
    assert!(on.contains("multi-user.target.wants/piman-agent.service ->"), "{on}");
    assert!(on.contains("multi-user.target.wants/ssh.service -> /lib/systemd/system/ssh.service"), "{on}");
    assert!(
        off.contains("piman-agent.service.d/profile.conf")
            && off.contains("remove    root:/etc/systemd/system/sockets")
    );
}
